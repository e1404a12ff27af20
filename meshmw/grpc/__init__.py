"""gRPC: interceptors that keep one trace one trace, for unary and streaming calls, threads and asyncio.

    server = grpc.server(pool, interceptors=[TraceContextServerInterceptor()])
    server = grpc.aio.server(interceptors=[AsyncTraceContextServerInterceptor()])
    channel = grpc.intercept_channel(grpc.insecure_channel(target), TraceContextClientInterceptor(target))
    channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(target))

A call that is served goes through `_server` (how grpcio finds a method's handler, and the function in its place) and
`_serving` (options, metadata, context and end). A call that is made goes through `_client`.
"""

from __future__ import annotations

from meshmw._lifecycle.serving import ServerOptions
from meshmw.errors import extra_named

with extra_named("grpc", "grpcio", "grpc"):
    import grpc  # type: ignore[import-untyped]
    import grpc.aio  # type: ignore[import-untyped]  # noqa: F401

from meshmw.grpc._client import ClientOptions, TraceContextClientInterceptor, client_interceptors
from meshmw.grpc._server import AsyncTraceContextServerInterceptor, TraceContextServerInterceptor
from meshmw.grpc._serving import message_scope

__all__ = [
    "AsyncTraceContextServerInterceptor",
    "ClientOptions",
    "ServerOptions",
    "TraceContextClientInterceptor",
    "TraceContextServerInterceptor",
    "client_interceptors",
    "message_scope",
]


def __dir__() -> list[str]:
    return sorted(__all__)
