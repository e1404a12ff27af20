"""httpx clients and transports that carry the current trace on every request, redirects included.

Drop-in: `meshmw.httpx.Client` takes what `httpx.Client` takes, and `TraceContextTransport` wraps the transport of an
existing client.
"""

from __future__ import annotations

import httpx

from meshmw._transports import AsyncBody, AsyncTransport, ClientOptions, SyncBody, SyncTransport, wraps_transports

__all__ = ["AsyncClient", "AsyncTraceContextTransport", "Client", "ClientOptions", "TraceContextTransport"]


class _Body(SyncBody, httpx.SyncByteStream):
    pass


class _AsyncBody(AsyncBody, httpx.AsyncByteStream):
    pass


class TraceContextTransport(SyncTransport, httpx.BaseTransport):
    """Sends each request in a CLIENT span of the current trace, with the trace headers replaced.

    The caller's request is not changed. The span follows the HTTP client conventions and ends when the response's
    body closes.

    Args:
        transport: The transport that does the sending, such as `httpx.HTTPTransport()`.
        options: Each one that you leave out has its default.

            - `propagator`: writes the headers; the configured one by default;
            - `tracer_provider`: makes the spans; the global one by default.

    Raises:
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """

    request_class = httpx.Request
    stream_class = _Body


class AsyncTraceContextTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """Sends the requests of an async client, around a transport such as `httpx.AsyncHTTPTransport()`.

    In all else it is `TraceContextTransport`.
    """

    request_class = httpx.Request
    stream_class = _AsyncBody


@wraps_transports(TraceContextTransport)
class Client(httpx.Client):
    """Takes what `httpx.Client` takes and does what it does, with the current trace on every request.

    The client's own transport, its proxies and its mounts are each used in a `TraceContextTransport`.
    """


@wraps_transports(AsyncTraceContextTransport)
class AsyncClient(httpx.AsyncClient):
    """Takes what `httpx.AsyncClient` takes and does what it does, with the current trace on every request."""


def __dir__() -> list[str]:
    return sorted(__all__)
