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
from typing import Any, Final, Self, Unpack

import grpc  # type: ignore[import-untyped]
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw._context.current import Current
from meshmw._context.extraction import Lines
from meshmw._lifecycle.conventions import AttributeValue, LazyAttributes, rpc_server_attributes
from meshmw._lifecycle.rpc import RpcOperation, begin_server
from meshmw._lifecycle.serving import ServerOptions, Serving
from meshmw._policy.patterns import PathPatterns
from meshmw._policy.trust import RequestView
from meshmw.baggage import with_member, without_member
from meshmw.grpc._metadata import header_lines, joined, peer_address, rewritten

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


class CallServing(Serving):
    """Holds the options of one server interceptor, over what `configure()` decided, and begins to serve calls.

    Args:
        untouched: Path patterns of calls that pass as if there were no interceptor.
        options: Those that every server's adapter takes.
    """

    def __init__(self, untouched: Sequence[str], **options: Unpack[ServerOptions]) -> None:
        super().__init__("grpc", **options)
        self._untouched = PathPatterns(untouched)

    def leaves(self, method: str) -> bool:
        """Say whether a call passes untouched."""
        return self._untouched.match(method)

    @property
    def makes_spans(self) -> bool:
        """Say whether this interceptor makes the SERVER spans, and contrib's further in is to stand back."""
        return self.effective().server_spans != "off"

    def serve(self, method: str, context: Any, is_over: Callable[[], bool]) -> ServedCall:
        """Begin to serve a call whose handler is about to run.

        Args:
            method: The call's path, such as `/package.Service/Method`.
            context: grpcio's servicer context.
            is_over: Says whether the call is over on the wire.
        """
        effective, around = self.effective(), otel_context.get_current()
        call = _Call(method, context, effective.propagator.passthrough)
        decision = self.decide(call, effective, around)
        attributes = LazyAttributes(call.attributes)
        operation = begin_server(decision, around, effective.tracer, method=method, attributes=attributes)
        return ServedCall(operation, context, decision.extraction.rewrites, is_over)


class _Call:
    """Reads a call where grpcio keeps it."""

    __slots__ = ("_context", "_metadata", "lines", "path")

    def __init__(self, method: str, context: Any, passthrough: tuple[str, ...]) -> None:
        self._context = context
        self._metadata = context.invocation_metadata()
        self.path = method
        self.lines: Lines = header_lines(self._metadata, passthrough)

    def view(self) -> RequestView:
        address, port = peer_address(self._context.peer()) or (None, None)
        # Without a port it is a socket's path.
        peer = None if port is None else address
        return RequestView("POST", self.path, peer, lambda name: joined(self._metadata, name))

    def marked_span(self, _read_by_host: bool) -> None:
        return None  # contrib leaves no mark

    def attributes(self) -> dict[str, AttributeValue]:
        agent = self.lines["user-agent"][0] if "user-agent" in self.lines else None
        return rpc_server_attributes(self.path, peer_address(self._context.peer()), agent)


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
