"""The response of an ASGI application, as its messages tell it: its status, its route, and the operation's end.

Knows the messages of the ASGI protocol. Must not know how a request begins.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from meshmw.asgi_route import route_of
from meshmw.boundary.http_operation import HttpOperation
from meshmw.runtime import LOGGER

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

# A WebSocket that is closed before it was accepted is answered with 403 (ASGI, websocket.close).
_HANDSHAKE_STATUS: Final = {"websocket.accept": 101, "websocket.close": 403}
# The response with which a handshake is refused has the same messages, named with a prefix.
_STARTS: Final = frozenset({"http.response.start", "websocket.http.response.start", *_HANDSHAKE_STATUS})
_BODIES: Final = frozenset({"http.response.body", "http.response.zerocopysend", "websocket.http.response.body"})
# Nothing of the response comes after one of these.
_WHOLE: Final = frozenset({"http.response.pathsend", *_HANDSHAKE_STATUS})


class Response:
    """Watches what the application sends, and ends the operation with the last byte.

    A framework that answers 5xx for an exception raises it afterwards, so such an operation waits for its return.

    Args:
        operation: The request's.
        scope: Where the framework leaves the route.
        send: The server's own.
    """

    __slots__ = ("_complete", "_is_failure", "_operation", "_scope", "_send", "_started", "_trailers")

    def __init__(self, operation: HttpOperation, scope: Scope, send: Send) -> None:
        self._operation = operation
        self._scope = scope
        self._send = send
        self._started = False
        self._trailers = False
        self._is_failure = False
        self._complete = False

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, and read from it how far the response is."""
        kind: str = message["type"]
        if kind in _BODIES:
            is_last = not (self._trailers or message.get("more_body"))
        else:
            if kind in _STARTS and not self._started:
                self._start(kind, message)
            is_last = kind in _WHOLE or (kind == "http.response.trailers" and not message.get("more_trailers"))
        # What the server's own `send` returns is handed out as it is, but for the message that ends the operation.
        return self._send_last(message) if is_last else self._send(message)

    # Some ask whether they may await it before they call it: asgiref's WsgiToAsgi warns of any other function.
    if sys.version_info >= (3, 12):  # pragma: no cover - each version of Python takes one of the two
        inspect.markcoroutinefunction(send)
    else:  # pragma: no cover - so it is asked on Python 3.11, which has no function to say it
        send._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    async def _send_last(self, message: Message) -> None:
        await self._send(message)
        self._complete = True
        if self._is_failure:
            self._operation.answered()
        else:
            self.end()

    def fail(self, error: BaseException) -> None:
        """Record an error; a server answers 500 for an application that raised before it had answered."""
        if not self._started and isinstance(error, Exception):
            self._operation.status(500, error_from=500)
        self._operation.fail(error)

    def end(self) -> None:
        """End the operation under the route that the framework left in the scope."""
        operation = self._operation
        if operation.is_over:
            return
        if operation.is_open:
            try:
                if route := route_of(self._scope):
                    operation.route(route)
            except Exception:
                # Whatever a framework or an application has left in the scope: the response is theirs, a name is not.
                LOGGER.debug("the route could not be read from the scope", exc_info=True)
        if self._complete:
            operation.end()
        else:
            operation.break_off()

    def _start(self, kind: str, message: Message) -> None:
        self._started = True
        self._trailers = message.get("trailers", False)
        status = message["status"] if "status" in message else _HANDSHAKE_STATUS.get(kind, 0)
        self._is_failure = status >= 500
        self._operation.status(status, error_from=500)
