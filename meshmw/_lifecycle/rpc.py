"""Remote procedure calls, served and sent: their spans, their status, and how contrib stands beside us.

The attributes follow the RPC semantic conventions, release candidate of 2026.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode

from meshmw._context.current import Current
from meshmw._lifecycle.decide import Decision, claimed, context_below
from meshmw._lifecycle.operation import (
    Attributes,
    AttributeValue,
    Operation,
    StandDown,
    error_type,
    is_suppressed,
    record_exception,
    record_refusals,
)
from meshmw._otel import SPAN_KEY, SUPPRESS_KEY

_SYSTEM: Final = "grpc"
# The package, and the instrumentation scope of its spans.
_CONTRIB: Final = "opentelemetry.instrumentation.grpc"
# A server is to blame for these alone; of a client's span, everything but OK is an error (gRPC spans, span status).
_SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


def begin_server(
    decision: Decision, around: Context, tracer: trace.Tracer, *, method: str | None, attributes: Attributes
) -> RpcOperation:
    """Begin to serve a call.

    Args:
        decision: Whose its span is, and what is trusted of its metadata.
        around: What is current.
        tracer: Makes the span.
        method: The path, such as `/package.Service/Method`; None for one that a caller may have made up.
        attributes: Of the span, if one is made.
    """
    context = context_below(decision, around)
    if decision.whose != "ours":
        span = decision.host_span or trace.get_current_span(context)
        if decision.whose == "host":
            record_refusals(span, decision.extraction)
        return RpcOperation(span, claimed(context, span), owned=False, server=True)
    name = _SYSTEM if method is None else _method_name(method)
    span = tracer.start_span(name, context, decision.kind, attributes, decision.links)
    record_refusals(span, decision.extraction, link=False)
    return RpcOperation(span, claimed(context, span), server=True)


def begin_client(method: str, attributes: Attributes, tracer: trace.Tracer) -> RpcOperation:
    """Begin an outbound call as a child of what is current; a span that contrib opened for this call is adopted.

    Where instrumentation is suppressed there is no span, and the operation's context holds nothing to send.

    Args:
        method: The path, such as `/package.Service/Method`.
        attributes: Of the span, if one is made.
        tracer: Makes the span.
    """
    parent = otel_context.get_current()
    current = trace.get_current_span(parent)
    if is_suppressed(parent):
        return RpcOperation(trace.INVALID_SPAN, Context(), owned=False, server=False)
    if _is_of_contrib(current, method):
        return RpcOperation(current, parent, owned=False, server=False)
    span = tracer.start_span(_method_name(method), parent, SpanKind.CLIENT, attributes)
    return RpcOperation(span, Context({**parent, SPAN_KEY: span}), server=False)


class RpcOperation(Operation):
    """Holds one call, from its first metadata to its status.

    Args:
        span: The call's span.
        context: What is current while user code runs.
        owned: Whether the span is ours to add to and to end.
        server: Whether the call is served here; whose fault a status is depends on that.
    """

    __slots__ = ("_first", "_server")

    def __init__(self, span: Span, context: Context, *, owned: bool = True, server: bool) -> None:
        super().__init__(span, context, owned=owned)
        self._server = server
        # A handler's thread and the thread that learns of a cancellation may come here at once.
        self._first = threading.Lock()

    def complete(self, code: str | None, error: BaseException | None = None) -> None:
        """Record how the call ended, and end the span; only the first end counts.

        Args:
            code: The status code's name, or None where the call never came so far as to have one.
            error: What user code or grpcio raised, where that is worth an event.
        """
        if not self._first.acquire(blocking=False):
            return
        if self.is_open:
            self._record(code, error)
        self.end()

    def _record(self, code: str | None, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            record_exception(self.span, error)
        failed: str | None = None
        if code is not None:
            self.span.set_attribute("rpc.status_code", code)
            failed = code if self._is_error(code) else None
        elif isinstance(error, Exception):
            failed = error_type(error)
        if failed is not None:
            self.span.set_attribute("error.type", failed)
            self.span.set_status(StatusCode.ERROR)

    def _is_error(self, code: str) -> bool:
        return code in _SERVER_ERRORS if self._server else code != "OK"


def server_attributes(
    method: str, peer: tuple[str, int | None] | None, user_agent: str | None, *, is_known: bool = True
) -> dict[str, AttributeValue]:
    """Return the attributes of an RPC server span that are known when the call arrives.

    Args:
        method: The path, such as `/package.Service/Method`.
        peer: The address and port of whoever is at the other end of the connection; a Unix socket has no port.
        user_agent: The client's own name.
        is_known: Whether the server has such a method, and does not take whatever callers make up.
    """
    found: dict[str, AttributeValue] = {"rpc.system.name": _SYSTEM, "rpc.method": _method_name(method)}
    if not is_known:
        # "the attribute MUST be set to `_OTHER`"                                          RPC spans, rpc.method
        found |= {"rpc.method": "_OTHER", "rpc.method_original": _method_name(method)}
    if peer is not None:
        found["network.peer.address"] = found["client.address"] = peer[0]
        if peer[1] is not None:
            found["network.peer.port"] = found["client.port"] = peer[1]
    if user_agent:
        found["user_agent.original"] = user_agent
    return found


def client_attributes(method: str, address: str, port: int | None) -> dict[str, AttributeValue]:
    """Return the attributes of an RPC client span that are known when the call begins.

    Args:
        method: The path, such as `/package.Service/Method`.
        address: The host, address or socket path that the channel was made for.
        port: The server's port, where the channel names one.
    """
    found: dict[str, AttributeValue] = {
        "rpc.system.name": _SYSTEM,
        "rpc.method": _method_name(method),
        "server.address": address,
    }
    return found | {"server.port": port} if port is not None else found


def _method_name(method: str) -> str:
    """Return `rpc.method`, which is also the span's name: `package.Service/Method`, without the slash in front."""
    return method.removeprefix("/")


def stand_contrib_down(
    whoami: Callable[[], object], package: str = _CONTRIB
) -> contextlib.AbstractContextManager[None]:
    """Return a block in which contrib's interceptors pass calls on untouched; it does nothing where nobody loaded them.

    Args:
        whoami: Names the thread or the task that runs: `threading.get_ident` or `asyncio.current_task`.
        package: Of contrib's, that of another instrumentation which asks whether it is suppressed.
    """
    if package not in sys.modules:
        return contextlib.nullcontext()
    return Current(Context({**otel_context.get_current(), SUPPRESS_KEY: _OnlyHere(whoami)}))


class _OnlyHere(StandDown):
    """Counts as true in the thread or task that made it, and nowhere else.

    grpcio starts threads and tasks further in. They copy the context, and some of them outlive the call by far; what
    they run is not to be suppressed.
    """

    __slots__ = ("_here", "_whoami")

    def __init__(self, whoami: Callable[[], object]) -> None:
        self._whoami = whoami
        self._here = whoami()

    def __bool__(self) -> bool:
        return self._whoami() == self._here


def _is_of_contrib(span: Span, method: str) -> bool:
    scope = getattr(span, "instrumentation_scope", None)
    return (
        getattr(scope, "name", None) == _CONTRIB
        and getattr(span, "kind", None) is SpanKind.CLIENT
        and getattr(span, "name", None) == method
        and span.is_recording()
    )
