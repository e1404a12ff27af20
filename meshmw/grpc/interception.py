"""What the server interceptors for threads and for asyncio have in common.

Knows options, and that contrib may be further in. Must not know whether a handler's finder is awaited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from opentelemetry import trace

from meshmw.grpc.contrib import stand_contrib_down
from meshmw.grpc.handlers import WrappedHandlers
from meshmw.grpc.serving import UNTOUCHED, CallOptions
from meshmw.policy.trust import Trust, TrustCallable
from meshmw.propagator import MeshPropagator
from meshmw.runtime import ServerSpans


class MethodInterceptor:
    """Holds what a server interceptor was told, and each method's handler once it is wrapped.

    Args:
        exclude: As for `TraceContextServerInterceptor`, and so the others.
        trust: How far callers are believed.
        server_spans: `auto` or `off`.
        propagator: Reads the metadata.
        tracer_provider: Makes the spans.
        untouched: Path patterns of calls that pass as if there were no interceptor.
    """

    def __init__(
        self,
        *,
        exclude: Sequence[str] | None = None,
        trust: Trust | TrustCallable | None = None,
        server_spans: ServerSpans | None = None,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        untouched: Sequence[str] = UNTOUCHED,
    ) -> None:
        self._options = CallOptions(
            untouched=untouched,
            exclude=exclude,
            trust=trust,
            server_spans=server_spans,
            propagator=propagator,
            tracer_provider=tracer_provider,
        )
        self._handlers = WrappedHandlers()

    def _contrib_down(self, whoami: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
        """Return a block in which contrib's interceptors further in stand back, where the spans are ours to make."""
        return stand_contrib_down(whoami) if self._options.makes_spans else contextlib.nullcontext()
