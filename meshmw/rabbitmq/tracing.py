"""What a channel, an exchange or a queue does about each message. Must not import a client."""

from __future__ import annotations

from typing import Any

from meshmw.boundary.delegation import Instrumented
from meshmw.boundary.operation_scope import OperationScope
from meshmw.rabbitmq.messages import Message
from meshmw.rabbitmq.operations import begin_process, begin_send, written


class Tracing(Instrumented):
    """Begins the operations of messages that are published or handed out."""

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
