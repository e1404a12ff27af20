"""gRPC: interceptors that keep one trace one trace, for unary and streaming calls, threads and asyncio.

server = grpc.server(pool, interceptors=[TraceContextServerInterceptor()])
server = grpc.aio.server(interceptors=[AsyncTraceContextServerInterceptor()])
channel = grpc.intercept_channel(grpc.insecure_channel(target), TraceContextClientInterceptor(target))
channel = grpc.aio.insecure_channel(target, interceptors=client_interceptors(target))
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw._context.current import Current
from meshmw.baggage import with_member, without_member
from meshmw.errors import MissingExtraError
from meshmw.grpc._client import TraceContextClientInterceptor, client_interceptors
from meshmw.grpc._server import AsyncTraceContextServerInterceptor, TraceContextServerInterceptor

# Per message: a child context for one message of a stream, which never outlives its block.


class message_scope:  # noqa: N801
    """Makes a child context current for one message: `with message_scope({"tenant": "a"}):`.

    gRPC carries metadata for each call, not for each message. Within the block the baggage is the stream's with these
    members set; whatever the block changes is gone at its end, and is never seen by the next message, by the rest of
    the stream, or by what runs beside it. Tasks and calls that begin in the block keep its context.

    Hand nothing out of the block by `yield` where it can be helped: what the stream's consumer does then is no part of
    the message. One object serves one block.

    Args:
        baggage: Members by key; None takes a member away.
        context: What to start from, such as `meshmw.extract(message.headers)`; the current context by default.

    Raises:
        ValueError: A key does not follow W3C Baggage.
    """

    def __init__(self, baggage: Mapping[str, str | None] | None = None, *, context: Context | None = None) -> None:
        self._members = dict(baggage or {})
        self._from = context
        # The keys are checked where they are written, and not at the first message.
        self._derived(Context())

    def __enter__(self) -> Context:
        """Make the child context current, and return it."""
        context = self._derived(otel_context.get_current() if self._from is None else self._from)
        self._block = Current(context)
        self._block.__enter__()
        return context

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._block.__exit__(kind, *error)

    def _derived(self, context: Context) -> Context:
        for key, value in self._members.items():
            context = without_member(key, context) if value is None else with_member(key, value, context=context)
        return context


try:
    import grpc  # type: ignore[import-untyped]  # noqa: F401
except ModuleNotFoundError as missing:  # pragma: no cover - the bare install's own check meets it
    raise MissingExtraError("grpcio", "grpc") from missing

__all__ = [
    "AsyncTraceContextServerInterceptor",
    "TraceContextClientInterceptor",
    "TraceContextServerInterceptor",
    "client_interceptors",
    "message_scope",
]
