"""A server for which there is no middleware: Tornado, Sanic's own server, Twisted, or a protocol of your own.

    with meshmw.server_span(headers, method="GET", target="/stock/7?full=1", peer=("10.0.0.9", 41000)) as span:
        status = answer(span.headers)
        span.set_status(status)

`set_route` names the SERVER span of the request that is being served, whichever middleware or block serves it.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeGuard, Unpack
from urllib.parse import unquote, unquote_to_bytes

from meshmw._context.carriers import (
    as_lines,
    checked_headers,
    lines_of_pairs,
    lower,
    pairs_of,
    plain_text,
    with_rewrites,
)
from meshmw._frameworks import listen
from meshmw._lifecycle.http import OPERATION, HttpOperation, Request, current_operation
from meshmw._lifecycle.http_conventions import authority_of, is_known_route, protocol_version, server_attributes
from meshmw._lifecycle.operation import AttributeValue, end_dropped, watch_collections
from meshmw._lifecycle.serving import ServerOptions, Serving
from meshmw._notices import LOGGER, quoted
from meshmw._policy.patterns import path_of
from meshmw._policy.trust import RequestView

__all__ = ["ServerOptions", "ServerSpan", "TraceContextBoundary", "server_span", "set_route"]

Address: TypeAlias = str | Sequence[Any] | None

# To decode 64 KiB of escapes takes longer than to serve a request, and no span shows that much.
_MOST_TARGET: Final = 8_192


def __dir__() -> list[str]:
    return sorted(__all__)


def server_span(
    headers: Any,
    *,
    method: str | bytes,
    target: str | bytes,
    scheme: str = "http",
    peer: Address = None,
    server: Address = None,
    http_version: str | None = None,
) -> ServerSpan:
    """Return a block that serves one HTTP request as the middleware do: it continues the caller's trace.

    The headers are read and validated, the request's context is current inside the block, and one SERVER span lasts as
    long as the block. A span that a host opened for the same request is adopted. What the block raises is recorded, and
    goes on; where no status was set it counts as 500. The block works as it is in `async` functions too. Nothing that
    a client sends makes it raise.

    Args:
        headers: The request's headers: pairs of name and value, of text or bytes, or a mapping. A mapping may ignore
            case, and have several lines of one name.
        method: Such as `GET`.
        target: What the client asks for, with the query, as the request line has it.
        scheme: `http` or `https`.
        peer: The client's address: its host, or host and port, as sockets have it.
        server: The server's own host and port. They are said where the request has no `host` header.
        http_version: Such as `1.1`, `HTTP/1.1` or `2`.

    Raises:
        TypeError: An argument is of a type that is none of these, or no copy of the headers can be changed.
    """
    return _configured().span(
        headers,
        method=method,
        target=target,
        scheme=scheme,
        peer=peer,
        server=server,
        http_version=http_version,
    )


def set_route(template: str | None) -> None:
    """Name the SERVER span of the request that is served here, and give span and metric their `http.route`.

    Call it in the request, in any function, coroutine or thread that has its context. Where a framework has a route of
    its own, this one counts. Outside of a request, and once it is answered, nothing happens.

    Args:
        template: The route as the application knows it, such as `/stock/{item}`, never the path that was asked for;
            with the prefix below which the application stands. Nothing happens for None.

    Raises:
        TypeError: It is no text.
    """
    if not _is_route(template):
        return
    operation = current_operation()
    if operation is None:
        LOGGER.debug("set_route was called outside of a request that meshmw serves, and names nothing")
        return
    operation.choose_route(template)


class TraceContextBoundary:
    """Opens `server_span` blocks with options of its own. Keep one for all requests.

    Args:
        options: Those of `meshmw.wsgi.TraceContextMiddleware`. Each that you leave out is what `configure()` decided.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    def __init__(self, **options: Unpack[ServerOptions]) -> None:
        self._serving = Serving("http", **options)
        listen()
        watch_collections()

    def span(
        self,
        headers: Any,
        *,
        method: str | bytes,
        target: str | bytes,
        scheme: str = "http",
        peer: Address = None,
        server: Address = None,
        http_version: str | None = None,
    ) -> ServerSpan:
        """Return a block that serves one request, as `meshmw.server_span` does."""
        path, _, query = _text(target, "target").partition("?")
        path, given = path_of(path), checked_headers(headers)
        came = {
            "given": given,
            "headers": given,
            "query": query,
            "scheme": _text(scheme, "scheme"),
            "peer": _address(peer, "peer"),
            "server": _address(server, "server"),
            "version": "" if http_version is None else _text(http_version, "http_version"),
        }
        return ServerSpan(self._serving, _PlainRequest(_text(method, "method"), _decoded(path, target), {}, came))


@cache
def _configured() -> TraceContextBoundary:
    return TraceContextBoundary()


class ServerSpan:
    """Serves one request: as a `with` block, or by `begin()`, `current()` and `end()` where no block spans it.

    Args:
        serving: What requests are served with.
        request: What is asked.

    Attributes:
        headers: The headers as the application is to see them, without what was refused, in the shape in which they
            came. Where nothing was refused it is the same object.
    """

    __slots__ = ("__weakref__", "_came", "_dropped", "_operation", "_request", "_serving", "headers")

    _dropped: weakref.finalize[..., Self]

    def __init__(self, serving: Serving, request: _PlainRequest) -> None:
        self._serving = serving
        self._request = request
        self._operation: HttpOperation | None = None
        self._came = request.carrier
        self.headers: Any = request.carrier["headers"]

    def __enter__(self) -> Self:
        self.begin()
        self._came["current"] = current = self._begun().current()
        current.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if "current" in self._came:
            self._came["current"].leave(kind)
        self.end(error)

    def begin(self) -> Self:
        """Begin the span without making anything current, for a server whose functions each serve a part of a request.

        Raises:
            RuntimeError: It has begun before.
        """
        if self._operation is not None:
            raise RuntimeError("this request is served already; make one block for each request")
        request = self._request
        effective = self._serving.effective()
        request.lines = lines_of_pairs(self.headers, effective.header_names.names)
        self._operation = self._came[OPERATION] = self._serving.begin(request, effective)
        self.headers = self._came["headers"]
        self._dropped = weakref.finalize(self, _drop, self._operation, self._came)
        # At the end of the process, and of one that was forked from it, other blocks are open and not dropped.
        self._dropped.atexit = False
        return self

    def current(self) -> AbstractContextManager[None]:
        """Return a block in which the request's context is current; it must not contain a `yield` to another frame.

        Raises:
            RuntimeError: It has not begun.
        """
        return self._begun().current()

    def set_status(self, code: int) -> None:
        """Note the response's status code; from 500 on the span is an error. The last one counts.

        Raises:
            TypeError: It is no whole number.
        """
        self._came["status"] = _status_code(code)

    def set_route(self, template: str | None) -> None:
        """Name the span after the route that the server has matched; what `meshmw.set_route` was given goes before it.

        Args:
            template: Such as `/stock/{item}`, never the path that was asked for; nothing happens for None.

        Raises:
            TypeError: It is no text.
            RuntimeError: It has not begun.
        """
        if _is_route(template):
            self._begun().route(template)

    def record_exception(self, error: BaseException) -> None:
        """Record an exception that the server answers itself, and that does not leave the block.

        Raises:
            RuntimeError: It has not begun.
        """
        self._begun().fail(error)

    def end(self, error: BaseException | None = None) -> None:
        """End the span, once.

        Args:
            error: What the application has raised, if it has. The response is then incomplete.

        Raises:
            RuntimeError: It has not begun.
        """
        _end(self._begun(), self._came, error)
        self._dropped.detach()

    def _begun(self) -> HttpOperation:
        if self._operation is None:
            raise RuntimeError("this request is not served yet: enter the block, or call begin()")
        return self._operation


def _end(operation: HttpOperation, came: MutableMapping[str, Any], error: BaseException | None) -> None:
    if operation.is_over:
        return
    status = came.get("status")
    if error is not None:
        operation.fail(error)
        # A server answers so for an application that raised before it had answered.
        status = 500 if status is None and isinstance(error, Exception) else status
    if status is not None:
        operation.status(status, error_from=500)
    if error is None:
        operation.end()
    else:
        operation.break_off()


def _drop(operation: HttpOperation, came: MutableMapping[str, Any]) -> None:
    """End what nobody has ended, and nobody can any more."""
    if "current" in came:
        came["current"].leave(GeneratorExit)
    end_dropped(partial(_end, operation, came, GeneratorExit()))


class _PlainRequest(Request):
    """Reads a request where its server's own arguments are kept."""

    __slots__ = ()

    protocol = "http"

    def view(self) -> RequestView:
        headers = self.carrier["headers"]

        def lookup(name: str) -> str | None:
            lines = [
                plain_text(line)
                for given, value in pairs_of(headers)
                if lower(given) == name
                for line in as_lines(value)
            ]
            return ",".join(lines) if lines else None

        return RequestView(self.method, self.path, self.carrier["peer"][0], lookup)

    def attributes(self) -> dict[str, AttributeValue]:
        came, lines = self.carrier, self.lines
        client, port = came["peer"]
        return server_attributes(
            method=self.method,
            scheme=came["scheme"],
            path=self.path,
            query=came["query"],
            authority=lines["host"][0] if "host" in lines else _own_authority(*came["server"]),
            protocol_version=protocol_version(came["version"]),
            client=client,
            client_port=port,
            user_agent=lines["user-agent"][0] if "user-agent" in lines else None,
        )

    def is_same(self, other: Request) -> bool:
        if other.protocol != self.protocol:
            return super().is_same(other)
        asked = (self.method, self.path) == (other.method, other.path)
        if not asked or self.is_over:
            return False
        # One request in two blocks has the very headers that the outer block was given, or has handed out. The empty
        # tuple is everybody's.
        given, own = other.carrier["headers"], self.carrier
        return given != () and (given is own["headers"] or given is own["given"])

    def join(self, outer: Request) -> None:
        if outer.protocol == self.protocol:
            self.carrier["headers"] = outer.carrier["headers"]

    def rewrite(self, rewrites: dict[str, str | None]) -> None:
        super().rewrite(rewrites)
        self.carrier["headers"] = with_rewrites(self.carrier["headers"], rewrites)


def _own_authority(host: str | None, port: int | None) -> str | None:
    return authority_of(host, port) if host and port else None


def _text(value: object, name: str) -> str:
    if not isinstance(value, str | bytes):
        raise TypeError(f"{name} takes a text, not {quoted(value)}")
    return plain_text(value)


def _decoded(path: str, target: str | bytes) -> str:
    """Return a path without its escapes; one that came as bytes may be UTF-8 without any."""
    path = path[:_MOST_TARGET]
    if isinstance(target, bytes):
        return unquote_to_bytes(path.encode("latin-1")).decode("utf-8", "replace")
    return unquote(path)


def _address(value: object, name: str) -> tuple[str | None, int | None]:
    """Return the host and the port of a socket's address, as far as it has them."""
    if value is None or isinstance(value, str | bytes):
        return (plain_text(value) if value else None), None
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} takes a host, or a host and a port, not {quoted(value)}")
    host, port = (*value, None, None)[:2]
    text = plain_text(host if isinstance(host, bytes) else str(host)) if host else None
    return text, (port if isinstance(port, int) else None)


def _status_code(code: object) -> int:
    # Python's true and false are numbers too, and nobody means them.
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"set_status takes a status code, not {quoted(code)}")
    return int(code)


def _is_route(template: str | None) -> TypeGuard[str]:
    if template is None:
        return False
    if not isinstance(template, str):
        raise TypeError(f"set_route takes a route template, not {quoted(template)}")
    return is_known_route(template)
