"""gRPC: interceptors that keep one trace one trace, for unary and streaming calls, threads and asyncio.

server = grpc.server(pool, interceptors=[TraceContextServerInterceptor()])
server = grpc.aio.server(interceptors=[AsyncTraceContextServerInterceptor()])
channel = grpc.intercept_channel(grpc.insecure_channel(target), TraceContextClientInterceptor(target))
channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(target))
"""

from __future__ import annotations

from meshmw.errors import MissingExtraError

try:
    import grpc  # type: ignore[import-untyped]  # noqa: F401
except ModuleNotFoundError as missing:  # pragma: no cover - the bare install's own check meets it
    raise MissingExtraError("grpcio", "grpc") from missing

from meshmw.grpc.aio_client import client_interceptors
from meshmw.grpc.aio_server import AsyncTraceContextServerInterceptor
from meshmw.grpc.client import TraceContextClientInterceptor
from meshmw.grpc.scope import message_scope
from meshmw.grpc.server import TraceContextServerInterceptor

__all__ = [
    "AsyncTraceContextServerInterceptor",
    "TraceContextClientInterceptor",
    "TraceContextServerInterceptor",
    "client_interceptors",
    "message_scope",
]
