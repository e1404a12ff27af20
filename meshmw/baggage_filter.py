"""`BaggageSizeFilter`: the limits of W3C Baggage for an application that uses nothing else of meshmw.

Knows ASGI and WSGI just as far as where the header is. Must not know a span, a context or a setting; needs no SDK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias

from meshmw.carriers import rewrite_asgi, rewrite_wsgi
from meshmw.rejections import Rejections
from meshmw.wire import parse_baggage
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS

Scope: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[[Scope, Any, Any], Awaitable[None]]
WsgiApp: TypeAlias = Callable[[dict[str, Any], Any], Iterable[bytes]]

_DROPPED: Final = "- the members concerned are dropped, the others kept"


class BaggageSizeFilter:
    """Keeps the baggage that an ASGI application receives within limits. HTTP requests and WebSockets are handled.

    A header within the limits stays as it is. Of any other the members are kept from the left, whole and byte for
    byte, in one line; malformed ones are left out. Each reason is counted, and warned of once per window.

    Args:
        app: The ASGI application to wrap.
        max_members: Members kept at most, all header lines together.
        max_bytes: Bytes kept at most, all header lines together, commas included.
        warn_window: Seconds between two warnings of the same reason.

    Raises:
        ValueError: A limit is negative.
    """

    def __init__(
        self, app: AsgiApp, *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES, warn_window: float = 60.0
    ) -> None:
        self.app = app
        self._limit = _Limit(max_members, max_bytes, warn_window)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] in ("http", "websocket"):
            lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"baggage"]
            if lines and (rewrites := self._limit.rewrites(lines)):
                scope["headers"] = rewrite_asgi(scope["headers"], rewrites)
        await self.app(scope, receive, send)


class WsgiBaggageSizeFilter:
    """Keeps the baggage that a WSGI application receives within limits, as `BaggageSizeFilter` does for ASGI.

    Args:
        app: The WSGI application to wrap.
        max_members: Members kept at most.
        max_bytes: Bytes kept at most, commas included.
        warn_window: Seconds between two warnings of the same reason.

    Raises:
        ValueError: A limit is negative.
    """

    def __init__(
        self, app: WsgiApp, *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES, warn_window: float = 60.0
    ) -> None:
        self.app = app
        self._limit = _Limit(max_members, max_bytes, warn_window)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        line = environ.get("HTTP_BAGGAGE")
        if line is not None and (rewrites := self._limit.rewrites([line])):
            rewrite_wsgi(environ, rewrites)
        return self.app(environ, start_response)


class _Limit:
    def __init__(self, max_members: int, max_bytes: int, warn_window: float) -> None:
        if max_members < 0 or max_bytes < 0:
            raise ValueError("limits of baggage are 0 or more")
        self._max_members = max_members
        self._max_bytes = max_bytes
        self._rejections = Rejections(warn_window)

    def rewrites(self, lines: Sequence[str]) -> dict[str, str | None]:
        """Return what to put in the place of the header, None to remove it; nothing where it may stay."""
        members, reasons = parse_baggage(lines, max_members=self._max_members, max_bytes=self._max_bytes)
        for reason in reasons:
            self._rejections.record("baggage", reason, _DROPPED)
        # Empty members and blanks are no members, and yet take bytes.
        if not reasons and sum(map(len, lines)) + len(lines) - 1 <= self._max_bytes:
            return {}
        return {"baggage": ",".join(value.raw for value in members.values()) or None}
