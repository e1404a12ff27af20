"""httpx2 clients and transports that carry the current trace on every request, redirects included.

Drop-in: `meshmw.httpx2.Client` takes what `httpx2.Client` takes, and `TraceContextTransport` wraps the transport of an
existing client.
"""

from __future__ import annotations

from meshmw._transports import AsyncBody, AsyncTransport, ClientOptions, SyncBody, SyncTransport, wraps_transports
from meshmw.errors import extra_named

with extra_named("httpx2", "httpx2", "httpx2"):
    import httpx2

__all__ = ["AsyncClient", "AsyncTraceContextTransport", "Client", "ClientOptions", "TraceContextTransport"]


class _Body(SyncBody, httpx2.SyncByteStream):
    pass


class _AsyncBody(AsyncBody, httpx2.AsyncByteStream):
    pass


class TraceContextTransport(SyncTransport, httpx2.BaseTransport):
    """Sends each request in a CLIENT span of the current trace, with the trace headers replaced.

    The caller's request is not changed. The span follows the HTTP client conventions and ends when the response's
    body closes.

    Args:
        transport: The transport that does the sending, such as `httpx2.HTTPTransport()`.
        options: Each one that you leave out has its default.

            - `propagator`: writes the headers; the configured one by default;
            - `tracer_provider`: makes the spans; the global one by default.

    Raises:
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    request_class = httpx2.Request
    stream_class = _Body


class AsyncTraceContextTransport(AsyncTransport, httpx2.AsyncBaseTransport):
    """Sends the requests of an async client, around a transport such as `httpx2.AsyncHTTPTransport()`.

    In all else it is `TraceContextTransport`.
    """

    request_class = httpx2.Request
    stream_class = _AsyncBody


@wraps_transports(TraceContextTransport)
class Client(httpx2.Client):
    """Takes what `httpx2.Client` takes and does what it does, with the current trace on every request.

    The client's own transport, its proxies and its mounts are each used in a `TraceContextTransport`.
    """


@wraps_transports(AsyncTraceContextTransport)
class AsyncClient(httpx2.AsyncClient):
    """Takes what `httpx2.AsyncClient` takes and does what it does, with the current trace on every request."""


def __dir__() -> list[str]:
    return sorted(__all__)
