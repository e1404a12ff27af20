"""One call that is served: what its metadata say, the private context that its handler runs in, and its single end.

`CallServing.serve` begins the call. What it returns runs each step of the handler, gives it its servicer context, and
ends the operation. The handler runs in a copy of the context variables that is entered for each step and thrown away at
the end: nothing is attached in a context of anybody else's, and nothing can fail to detach.

`message_scope` is for one message of a stream, in a handler or in a client. `header_lines` and `header_text` read the
metadata, and `rewrite_metadata` removes from them what a handler must not see.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, Unpack

import grpc  # type: ignore[import-untyped]
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Span

from meshmw._context.carriers import Lines
from meshmw._context.current import Current
from meshmw._foreign import is_end_of_call, metadata_pair
from meshmw._lifecycle.operation import AttributeValue, LazyAttributes
from meshmw._lifecycle.rpc import RpcOperation, begin_server, server_attributes
from meshmw._lifecycle.serving import ServerOptions, Serving
from meshmw._policy.patterns import PathPatterns
from meshmw._policy.trust import RequestView
from meshmw.baggage import with_member, without_member
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

# Kubernetes asks for a server's health every few seconds, and tools ask what it serves.
UNTOUCHED: Final = (
    "/grpc.health.v1.Health",
    "/grpc.reflection.v1.ServerReflection",
    "/grpc.reflection.v1alpha.ServerReflection",
)
# A service has fewer methods, and a stranger who makes names up must not fill the memory.
_CACHED_METHODS: Final = 256
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}
# What grpcio raises in a handler whose call is over. It has further exceptions, which it does not export.
_OVER: Final = (asyncio.CancelledError, concurrent.futures.CancelledError, GeneratorExit)


# As grpcio hands them out: pairs of a name and of a text or, for `-bin`, bytes.
Metadata: TypeAlias = Iterable[tuple[str, Any]]


class CallServing(Serving):
    """Holds the options of one server interceptor, over what `configure()` decided, and begins to serve calls.

    Attributes:
        passes_untouched: Says whether the calls of a method, given its path, pass as if there were no interceptor.
    """

    passes_untouched: Callable[[str], bool]

    def __init__(self, untouched: Sequence[str], **options: Unpack[ServerOptions]) -> None:
        super().__init__("grpc", **options)
        self.passes_untouched = lru_cache(_CACHED_METHODS)(PathPatterns(untouched, "untouched").match)

    @property
    def makes_spans(self) -> bool:
        """Say whether this interceptor makes the SERVER spans, and contrib's further in is to stand back."""
        return self.effective().server_spans != "off"

    def serve(self, method: str, context: Any, is_over: Callable[[], bool], *, is_known: bool) -> Served:
        """Begin to serve a call whose handler is about to run.

        Args:
            method: The call's path, such as `/package.Service/Method`.
            is_known: Whether the path is one that was registered; else it names no span.
            context: The servicer context.
            is_over: Says whether the call is over on the wire.
        """
        if isinstance(context, TracedServicerContext):
            return NestedCall(context)
        effective, around = self.effective(), otel_context.get_current()
        call = _Call(method, context, effective.propagator.passthrough, is_known)
        decision = self.decide(call, effective, around)
        attributes = LazyAttributes(call.attributes)
        name = method if is_known else None
        operation = begin_server(decision, around, effective.tracer, method=name, attributes=attributes)
        return ServedCall(operation, context, decision.extraction.rewrites, is_over)


class _Call:
    """Reads a call where grpcio keeps it."""

    __slots__ = ("_context", "_is_known", "_metadata", "lines", "path")

    def __init__(self, method: str, context: Any, passthrough: tuple[str, ...], is_known: bool) -> None:
        self._context = context
        self._is_known = is_known
        self._metadata = context.invocation_metadata()
        self.path = method
        self.lines: Lines = header_lines(self._metadata, passthrough)

    def view(self) -> RequestView:
        address, port = peer_address(self._context.peer()) or (None, None)
        # Without a port it is a socket's path.
        peer = None if port is None else address
        return RequestView("POST", self.path, peer, lambda name: header_text(self._metadata, name))

    def marked_span(self, _ambient: Span, _read_by_host: bool) -> None:
        return None  # contrib leaves no mark

    def attributes(self) -> dict[str, AttributeValue]:
        agent = self.lines["user-agent"][0] if "user-agent" in self.lines else None
        return server_attributes(self.path, peer_address(self._context.peer()), agent, is_known=self._is_known)


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

    __slots__ = ("_grpc", "_is_over", "_operation", "_status", "context", "run")

    def __init__(
        self, operation: RpcOperation, context: Any, rewrites: Mapping[str, str | None], is_over: Callable[[], bool]
    ) -> None:
        variables = copy_context()
        variables.run(otel_context.attach, operation.context)
        self.run: Callable[..., Any] = variables.run
        self._status = _Status()
        self.context = TracedServicerContext(context, rewrites, variables.copy, self._status)
        self._grpc = context
        self._operation = operation
        self._is_over = is_over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish(error)

    def finish(self, error: BaseException | None = None) -> None:
        """End the operation with the status that the client gets; the first end counts."""
        code, aborted = self._status.code, self._status.aborted
        says_over = error is not None and (isinstance(error, _OVER) or is_end_of_call(error))
        # An abort on an aio server tells the client before anything else happens here.
        if not aborted and (says_over or self._is_over()):
            event = None if says_over or isinstance(error, grpc.RpcError) else error
            self._operation.complete(self._why_over(), event)
            return
        if error is not None and code in (None, "OK"):
            code = "UNKNOWN"
        self._operation.complete(code or "OK", None if aborted else error)

    def _why_over(self) -> str:
        """Return the code of a call that ended on the wire; a client's deadline may have cancelled it just before."""
        return "DEADLINE_EXCEEDED" if is_late(self._grpc) else "CANCELLED"


class NestedCall:
    """Runs the steps of one handler as they are: the same interceptor further out serves the call, and ends it.

    Attributes:
        run: Calls a function and returns what it returns.
        context: The servicer context for the handler.
    """

    __slots__ = ("context",)

    run: Final[Callable[..., Any]] = operator.call

    def __init__(self, context: TracedServicerContext) -> None:
        self.context = context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finish(self, error: BaseException | None = None) -> None:
        """Do nothing."""


Served: TypeAlias = ServedCall | NestedCall


@dataclass(slots=True)
class _Status:
    """Notes how a handler says that its call ends.

    Attributes:
        code: The name of the status code that it has set, if it has.
        aborted: Whether it has aborted the call.
    """

    code: str | None = None
    aborted: bool = False


class TracedServicerContext:
    """Wraps grpcio's servicer context: clean metadata, callbacks inside the trace, and a note of the status.

    Args:
        context: grpcio's own, of a sync or an aio server, or of a sync handler on an aio server.
        rewrites: Headers that the handler must not see as they came.
        copy: Returns a copy of the call's context variables, for callbacks.
        status: Where the status is noted.
    """

    __slots__ = ("_context", "_copy", "_rewrites", "_status")

    _context: Any
    _copy: Callable[[], contextvars.Context]
    _rewrites: Mapping[str, str | None]
    _status: _Status

    def __init__(
        self,
        context: Any,
        rewrites: Mapping[str, str | None],
        copy: Callable[[], contextvars.Context],
        status: _Status,
    ) -> None:
        own = super().__setattr__
        own("_context", context)
        own("_rewrites", rewrites)
        own("_copy", copy)
        own("_status", status)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._context, name)
        # A server with threads has the first, an aio server the second. Callbacks run in the call's context.
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
        return rewrite_metadata(self._context.invocation_metadata(), self._rewrites)

    def set_code(self, code: Any) -> None:
        """Set the status code, and note it."""
        self._context.set_code(code)
        self._status.code = self._name(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        with self._aborting(code):
            return self._context.abort(code, *args, **kwargs)

    def abort_with_status(self, status: Any) -> Any:
        """Abort the call, and note the status; on an aio server this is to be awaited."""
        with self._aborting(status.code):
            return self._context.abort_with_status(status)

    @contextlib.contextmanager
    def _aborting(self, code: Any) -> Iterator[None]:
        """Note an abort, unless grpcio says that it was not called as it must be."""
        status, name = self._status, self._name(code)
        before = status.code, status.aborted
        # grpcio makes UNKNOWN of an abort that says OK.
        status.code, status.aborted = "UNKNOWN" if name == "OK" else name, True
        try:
            yield
        except TypeError:
            status.code, status.aborted = before
            raise

    def _name(self, code: Any) -> str:
        """Return the name of a status code; grpcio makes UNKNOWN of what is none."""
        # Only aio servers take numbers.
        if isinstance(code, int) and not isinstance(self._context, grpc.ServicerContext):
            code = _BY_NUMBER.get(code)
        return str(code.name) if isinstance(code, grpc.StatusCode) else "UNKNOWN"


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


def is_late(context: Any) -> bool:
    """Say whether the deadline that the client has set for a call has passed, as far as the context can tell."""
    # An interceptor further out may have put one of its own there, which need not know.
    with contextlib.suppress(Exception):
        remaining = context.time_remaining()
        return remaining is not None and bool(remaining <= 0)
    return False


def header_lines(metadata: Metadata | None, passthrough: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the lines of the headers that a server reads, by name; grpcio itself keeps only the last of several."""
    wanted = _wanted(passthrough)
    lines: dict[str, list[str]] = {}
    for key, value in metadata or ():
        if key in wanted:
            lines.setdefault(key, []).append(value if isinstance(value, str) else value.decode("latin-1"))
    return lines


@lru_cache(maxsize=64)
def _wanted(passthrough: tuple[str, ...]) -> frozenset[str]:
    return PROPAGATION_HEADERS | {SENT_HEADER, "user-agent", *passthrough}


def header_text(metadata: Metadata | None, name: str) -> str | None:
    """Return a header's text, several lines joined with commas (RFC 9110, 5.3), or None."""
    lines = [value for key, value in metadata or () if key == name and isinstance(value, str)]
    return ",".join(lines) if lines else None


def rewrite_metadata(metadata: Any, rewrites: Mapping[str, str | None]) -> Any:
    """Return inbound metadata with every line of the named headers replaced by one line, or by none."""
    if not rewrites or not metadata:
        return metadata
    kept = [pair for pair in metadata if pair[0] not in rewrites]
    return (*kept, *(metadata_pair(metadata, name, text) for name, text in rewrites.items() if text is not None))


# One connection carries many calls.
@lru_cache(maxsize=256)
def peer_address(peer: str) -> tuple[str, int | None] | None:
    """Return address and port of what grpcio calls a peer: `ipv4:10.0.0.9:41000`, `ipv6:%5B::1%5D:41000`, `unix:`."""
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return (rest, None) if rest else None
    address, _, port = rest.partition(",")[0].rpartition(":")
    address = address.replace("%5B", "").replace("%5D", "").strip("[]")
    return (address, int(port)) if address and port.isdecimal() else None
