"""One call that is served: what its metadata say, the private context that its handler runs in, and its single end.

The handler runs in a copy of the context variables that is entered for each of its steps and thrown away at the end.
So nothing is attached in a context of anybody else's, and nothing can fail to detach. Knows grpcio's servicer contexts
and the life cycle of operations. Must not know how handlers are wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final, Self

import grpc  # type: ignore[import-untyped]
from opentelemetry import context as otel_context
from opentelemetry import trace

from meshmw.boundary.rpc import RpcOperation, begin_server
from meshmw.grpc.metadata import joined, lines_of, peer_address
from meshmw.grpc.servicer_context import TracedServicerContext
from meshmw.policy.paths import PathPatterns
from meshmw.policy.request_view import RequestView
from meshmw.policy.trust import Trust, TrustCallable
from meshmw.propagation.extraction import Extraction
from meshmw.propagation.reading import Lines
from meshmw.propagator import MeshPropagator
from meshmw.runtime import Runtime, ServerSpans
from meshmw.semconv.attributes import LazyAttributes
from meshmw.semconv.rpc import server_attributes
from meshmw.serving import ServerOptions

# Kubernetes asks for the health of each server every few seconds, and tools for what it serves.
UNTOUCHED: Final = (
    "/grpc.health.v1.Health",
    "/grpc.reflection.v1.ServerReflection",
    "/grpc.reflection.v1alpha.ServerReflection",
)
_HOST_TRUST: Final = "- contrib's interceptor has trusted this caller otherwise: list this interceptor before it"
# grpcio's words, not exported, for a call that is over on the wire while its handler goes on.
_OVER: Final = frozenset({"CancelledError", "GeneratorExit", "ExecuteBatchError", "_ServerStoppedError"})


class ServedCall:
    """Runs the steps of one handler in a context of their own, and ends the operation once; at the end of its block.

    Args:
        operation: The call's operation.
        context: grpcio's servicer context.
        rewrites: Headers that the handler must not see as they came.
        is_over: Says whether the call is over on the wire, cancelled or timed out.

    Attributes:
        run: Calls a function in the call's context and returns what it returns.
        context: The servicer context for the handler.
    """

    __slots__ = ("_grpc", "_is_over", "_operation", "context", "run")

    def __init__(
        self, operation: RpcOperation, context: Any, rewrites: dict[str, str | None], is_over: Callable[[], bool]
    ) -> None:
        private = copy_context()
        private.run(otel_context.attach, operation.context)
        self.run: Callable[..., Any] = private.run
        self.context = TracedServicerContext(context, rewrites, private.copy)
        self._grpc = context
        self._operation = operation
        self._is_over = is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish(error)

    def finish(self, error: BaseException | None = None) -> None:
        """End the operation with the status that the client gets; the first end counts.

        Args:
            error: What the handler raised, if it did.
        """
        # An abort on an aio server has told the client before anything else happens here.
        if not self.context.aborted and (type(error).__name__ in _OVER or self._is_over()):
            event = None if isinstance(error, grpc.RpcError) or type(error).__name__ in _OVER else error
            self._operation.complete(self._why_over(), event)
            return
        code = self.context.code_name
        if error is not None and code in (None, "OK"):
            code = "UNKNOWN"
        self._operation.complete(code or "OK", None if self.context.aborted else error)

    def _why_over(self) -> str:
        """Return the code of a call that ended on the wire; a client's deadline may have cancelled it just before."""
        remaining = self._grpc.time_remaining()
        return "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"


class CallOptions(ServerOptions):
    """Holds the options of one server interceptor; each that is None is the settings' own, looked up per call.

    Args:
        untouched: Path patterns of calls that pass as if there were no interceptor.
        exclude: Path patterns of calls that get no span.
        trust: How far callers are believed.
        server_spans: `auto` or `off`.
        propagator: Reads the metadata.
        tracer_provider: Makes the spans.
    """

    def __init__(
        self,
        *,
        untouched: Sequence[str],
        exclude: Sequence[str] | None,
        trust: Trust | TrustCallable | None,
        server_spans: ServerSpans | None,
        propagator: MeshPropagator | None,
        tracer_provider: trace.TracerProvider | None,
    ) -> None:
        super().__init__(
            exclude=exclude,
            trust=trust,
            server_spans=server_spans,
            propagator=propagator,
            tracer_provider=tracer_provider,
            protocol="grpc",
        )
        self._untouched = PathPatterns(untouched)

    def leaves(self, method: str) -> bool:
        """Say whether a call passes untouched."""
        return self._untouched.match(method)

    @property
    def makes_spans(self) -> bool:
        """Say whether this interceptor makes the SERVER spans, and contrib's further in is to stand back."""
        return self.settled().server_spans != "off"

    def serve(self, method: str, context: Any, is_over: Callable[[], bool]) -> ServedCall:
        """Begin to serve a call whose handler is about to run."""
        settled = self.settled()
        metadata = context.invocation_metadata()
        lines = lines_of(metadata, settled.propagator.passthrough)
        extraction, beside_host = _believed(settled, lines, lambda: _view(method, context, metadata))
        agent = lines["user-agent"][0] if "user-agent" in lines else None
        operation = begin_server(
            extraction,
            method=method,
            attributes=LazyAttributes(lambda: server_attributes(method, peer_address(context.peer()), agent)),
            propagator=settled.propagator,
            spans="off" if settled.server_spans == "off" or settled.exclude.match(method) else "auto",
            beside_host=beside_host,
            tracer=self._tracer,
        )
        return ServedCall(operation, context, extraction.rewrites, is_over)


def _believed(settled: Runtime, lines: Lines, view: Callable[[], RequestView]) -> tuple[Extraction, bool]:
    """Return what metadata say, as far as the caller is believed, and whether contrib has believed it otherwise."""
    read, told = settled.propagator.read_once(lines)
    extraction = read.believed(settled.trust.static or settled.trust.decide(view()))
    beside_host = told is not None and told != extraction and trace.get_current_span().get_span_context().is_valid
    if beside_host:
        settled.propagator.rejections.record("context", "host_trust", _HOST_TRUST)
    elif told == extraction:
        # The very object that contrib has put into its context tells that its span is this call's.
        extraction = told
    return extraction, beside_host


def _view(method: str, context: Any, metadata: Any) -> RequestView:
    address, port = peer_address(context.peer()) or (None, None)
    # Without a port it is a socket's path.
    return RequestView("POST", method, None if port is None else address, lambda name: joined(metadata, name))
