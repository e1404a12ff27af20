"""httpx clients and transports that carry the current trace on every request, redirects included.

Drop-in: `meshmw.httpx.Client` takes what `httpx.Client` takes, and `TraceContextTransport` wraps the transport of an
existing client.
"""

from __future__ import annotations

import httpx

from meshmw._transports import AsyncBody, AsyncTransport, SyncBody, SyncTransport

__all__ = ["AsyncClient", "AsyncTraceContextTransport", "Client", "TraceContextTransport"]


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
        propagator: Writes the headers; the configured one by default.
        tracer_provider: Makes the spans; the global one by default.
    """

    request_class = httpx.Request
    stream_class = _Body


class AsyncTraceContextTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """Does as `TraceContextTransport` for an async client, around a transport such as `httpx.AsyncHTTPTransport()`."""

    request_class = httpx.Request
    stream_class = _AsyncBody


class Client(httpx.Client):
    """Is `httpx.Client`, with every argument it takes, whose requests carry the current trace.

    The own transport, proxies and mounts of the client are wrapped as they are used.
    """

    def _transport_for_url(self, url: httpx.URL) -> httpx.BaseTransport:
        transport = super()._transport_for_url(url)
        return transport if isinstance(transport, TraceContextTransport) else TraceContextTransport(transport)


class AsyncClient(httpx.AsyncClient):
    """Is `httpx.AsyncClient`, with every argument it takes, whose requests carry the current trace."""

    def _transport_for_url(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        transport = super()._transport_for_url(url)
        if isinstance(transport, AsyncTraceContextTransport):
            return transport
        return AsyncTraceContextTransport(transport)
