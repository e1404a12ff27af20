"""Objects that stand for a client's: its whole interface, beside the methods that trace. Must not import a client."""

from __future__ import annotations

from typing import Any

from meshmw.boundary.messaging import Messaging, OperationScope
from meshmw.rabbitmq.messages import Message
from meshmw.rabbitmq.spans import begin_process, begin_send, written


class Instrumented:
    """Has every attribute of a client's object, beside the methods that trace."""

    def __init__(self, client: Any, of: Messaging, keep_existing: bool) -> None:
        self.__wrapped__ = client
        self._of = of
        self._keep_existing = keep_existing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.__wrapped__)})

    def __repr__(self) -> str:
        return f"<meshmw.rabbitmq.instrument({self.__wrapped__!r})>"

    def _sending(self, exchange: str, routing_key: str, properties: Any, body: Any) -> OperationScope:
        return OperationScope(lambda: begin_send(self._of, exchange, routing_key, properties, body))

    def _carrying(self, properties: Any) -> Any:
        """Return a copy of properties or a message that carries what is current."""
        return written(self._of, properties, None, keep_existing=self._keep_existing)

    def _processing(self, message: Message) -> OperationScope:
        return OperationScope(lambda: begin_process(self._of, message))

    def _got(self, message: Any, queue: str, operation: str) -> Any:
        """Make a `receive` span for a message that is handed out, if it is one, and return it."""
        begin_process(self._of, Message.of(message, queue=queue), operation, "receive").end()
        return message
