"""One call that is served: what its metadata say, the private context that its handler runs in, and its single end.

The handler runs in a copy of the context variables that is entered for each of its steps and thrown away at the end.
So nothing is attached in a context of anybody else's, and nothing can fail to detach.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final, Self

import grpc  # type: ignore[import-untyped]
from opentelemetry import context as otel_context
from opentelemetry import trace

from meshmw._context.carriers import Lines
from meshmw._context.extraction import Extraction
from meshmw._lifecycle.conventions import LazyAttributes, rpc_server_attributes
from meshmw._lifecycle.rpc import RpcOperation, begin_server
from meshmw._lifecycle.serving import ServerOptions
from meshmw._policy.patterns import PathPatterns
from meshmw._policy.trust import RequestView, Trust, TrustCallable
from meshmw._runtime import Runtime, ServerSpans
from meshmw.grpc._metadata import header_lines, joined, peer_address, rewritten
from meshmw.propagator import MeshPropagator

# The servicer context as a handler gets it: clean metadata, callbacks inside the trace, and a note of the status.


_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class TracedServicerContext:
    """Is grpcio's servicer context in everything but what is written here.

    Args:
        context: grpcio's own, of a sync or an aio server, or of a sync handler on an aio server.
        rewrites: Headers that the handler must not see as they came.
        copy: Returns a copy of the call's context variables, for callbacks.

    Attributes:
        code_name: The name of the status code that the handler has set, if it has.
        aborted: Whether the handler has aborted the call.
    """

    __slots__ = ("_context", "_copy", "_rewrites", "aborted", "code_name")

    _context: Any
    _copy: Callable[[], contextvars.Context]
    _rewrites: Mapping[str, str | None]
    aborted: bool
    code_name: str | None

    def __init__(
        self, context: Any, rewrites: Mapping[str, str | None], copy: Callable[[], contextvars.Context]
    ) -> None:
        own = object.__setattr__
        own(self, "_context", context)
        own(self, "_rewrites", rewrites)
        own(self, "_copy", copy)
        own(self, "code_name", None)
        own(self, "aborted", False)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._context, name)
        # Each kind of server has one of the two; what they register is to see the call's context.
        if name == "add_callback":
            return lambda callback: found(lambda: self._copy().run(callback))
        if name == "add_done_callback":
            return lambda callback: found(lambda _: self._copy().run(callback, self))
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # An interceptor further out may look for what a handler has noted there.
        setattr(self._context, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """Return grpcio's class: `isinstance` answers as it would without this."""
        return type(self._context)

    def invocation_metadata(self) -> Any:
        """Return the metadata that came with the call, without malformed trace headers."""
        return rewritten(self._context.invocation_metadata(), self._rewrites)

    def set_code(self, code: Any) -> None:
        """Set the status code, and note it."""
        self._context.set_code(code)
        self._note(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        with self._noted(code):
            return self._context.abort(code, *args, **kwargs)

    def abort_with_status(self, status: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        with self._noted(status.code):
            return self._context.abort_with_status(status)

    @contextlib.contextmanager
    def _noted(self, code: Any) -> Iterator[None]:
        """Note an abort, unless grpcio says that it was not called as it must be."""
        before = self.code_name
        self._note(code, aborted=True)
        try:
            yield
        except TypeError:
            object.__setattr__(self, "aborted", False)
            object.__setattr__(self, "code_name", before)
            raise

    def _note(self, code: Any, *, aborted: bool = False) -> None:
        object.__setattr__(self, "aborted", self.aborted or aborted)
        # A server with threads takes no numbers.
        by_number = {} if isinstance(self._context, grpc.ServicerContext) else _BY_NUMBER
        known = code if isinstance(code, grpc.StatusCode) else by_number.get(code)
        # grpcio makes UNKNOWN of what is no code, and of an abort that says OK.
        if known is None or (aborted and known is grpc.StatusCode.OK):
            known = grpc.StatusCode.UNKNOWN
        object.__setattr__(self, "code_name", known.name)


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
        # An abort on an aio server tells the client before anything else happens here.
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
        return self.effective().server_spans != "off"

    def serve(self, method: str, context: Any, is_over: Callable[[], bool]) -> ServedCall:
        """Begin to serve a call whose handler is about to run."""
        effective = self.effective()
        metadata = context.invocation_metadata()
        lines = header_lines(metadata, effective.propagator.passthrough)
        extraction, host_disagrees = _trusted(effective, lines, lambda: _view(method, context, metadata))
        agent = lines["user-agent"][0] if "user-agent" in lines else None
        operation = begin_server(
            extraction,
            method=method,
            attributes=LazyAttributes(lambda: rpc_server_attributes(method, peer_address(context.peer()), agent)),
            propagator=effective.propagator,
            spans="off" if effective.server_spans == "off" or effective.exclude.match(method) else "auto",
            host_disagrees=host_disagrees,
            tracer=self._tracer,
        )
        return ServedCall(operation, context, extraction.rewrites, is_over)


def _trusted(effective: Runtime, lines: Lines, view: Callable[[], RequestView]) -> tuple[Extraction, bool]:
    """Return what metadata say, as far as the caller is believed, and whether contrib has believed it otherwise."""
    read, host_read = effective.propagator.read_once(lines)
    extraction = read.trusted(effective.trust.static or effective.trust.decide(view()))
    host_disagrees = (
        host_read is not None and host_read != extraction and trace.get_current_span().get_span_context().is_valid
    )
    if host_disagrees:
        effective.propagator.rejections.record("context", "host_trust", _HOST_TRUST)
    elif host_read == extraction:
        # The very object that contrib has put into its context tells that its span is this call's.
        extraction = host_read
    return extraction, host_disagrees


def _view(method: str, context: Any, metadata: Any) -> RequestView:
    address, port = peer_address(context.peer()) or (None, None)
    # Without a port it is a socket's path.
    return RequestView("POST", method, None if port is None else address, lambda name: joined(metadata, name))
