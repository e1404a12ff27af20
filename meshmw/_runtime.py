"""What `configure()` decided, for every adapter to look up when it serves or sends.

It is looked up per request, so that the order in which an application is put together does not matter: a middleware may
be made before `configure()` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

from opentelemetry import trace

from meshmw._context.carriers import HeaderNames
from meshmw._notices import LOGGER, quoted
from meshmw._otel import KNOWN_SDKS, LAZY_SPANS, parts_of, passing_on, sdk_of
from meshmw._policy.patterns import PathPatterns
from meshmw._policy.trust import TrustPolicy
from meshmw._policy.words import DEFAULT_MESSAGING_PARENT, DEFAULT_SERVER_SPANS, MessagingParent, ServerSpans
from meshmw._version import __version__
from meshmw.errors import SettingsError
from meshmw.propagator import MeshPropagator

if TYPE_CHECKING:
    from meshmw.settings import Settings

# The process's own tracer; a stand-in until somebody sets a tracer provider, and a link to that from then on.
TRACER: Final = passing_on(trace.get_tracer("meshmw", __version__))


def _own_tracer() -> trace.Tracer:
    # Anew: what stands for it until there is a provider goes on to do so, with a call more for each span.
    return _quickest(trace.get_tracer("meshmw", __version__))


def _quickest(tracer: trace.Tracer) -> trace.Tracer:
    """Return what makes the same spans as a tracer does in less time, where that is known, and else the tracer."""
    version = sdk_of(tracer)
    if version is None:
        return passing_on(tracer)
    if version not in KNOWN_SDKS:
        _say_unknown(version)
        return tracer
    from meshmw._lazy_span import LazyTracer  # of the SDK, which a process need not have

    return LazyTracer(tracer)


@cache
def _say_unknown(version: str) -> None:
    LOGGER.debug("meshmw does not know opentelemetry-sdk %s, so spans are the SDK's own, which take more time", version)


def tracer_of(provider: trace.TracerProvider) -> trace.Tracer:
    """Return meshmw's tracer of a provider.

    Raises:
        TypeError: It is no tracer provider.
    """
    if not hasattr(provider, "get_tracer"):
        raise TypeError(f"tracer_provider takes a TracerProvider, not {quoted(provider)}")
    return _quickest(provider.get_tracer("meshmw", __version__))


def checked_propagator(propagator: object) -> MeshPropagator | None:
    """Return the propagator that a caller was given, or None for the configured one.

    Raises:
        TypeError: It is no `MeshPropagator`.
    """
    if propagator is None or isinstance(propagator, MeshPropagator):
        return propagator
    raise TypeError(f"propagator takes a MeshPropagator, not {quoted(propagator)}")


def _is_to_be_asked(_parent: trace.SpanContext, *_: object) -> None:
    return None


class Runtime:
    """Holds what every adapter of this process shares.

    Attributes:
        propagator: Reads and writes the trace headers.
        exclude: Path patterns of requests that get no SERVER span.
        flush: Exports what is queued, for a server that is about to end the process; None where nothing is to be done.
        trust: How far callers are trusted.
        trusted_peers: Networks in CIDR notation that `trust` was made with, for a middleware with its own.
        server_spans: Who makes the SERVER span: this package unless a host has (`auto`), contrib, or nobody (`off`).
        messaging_parent: Whether processing one message is a child of what sent it, or a new trace that links to that.
        tracer: Makes the spans. It is the provider's own where there is one by now: the stand-in takes a call more.
        header_names: The header names that servers look for, in each protocol's spelling.
        dropped: Returns the span below a parent whose flags alone tell the tracer's sampler not to record it; None for
            any other, and where the sampler is to be asked.
        recorded: Returns the span below a parent whose flags alone tell it to record that; None in all other cases.
    """

    __slots__ = (
        "dropped",
        "exclude",
        "flush",
        "header_names",
        "messaging_parent",
        "propagator",
        "recorded",
        "server_spans",
        "tracer",
        "trust",
        "trusted_peers",
    )

    def __init__(
        self,
        *,
        propagator: MeshPropagator | None = None,
        exclude: PathPatterns | None = None,
        flush: Callable[[], object] | None = None,
        trust: TrustPolicy | None = None,
        trusted_peers: tuple[str, ...] = (),
        server_spans: ServerSpans = DEFAULT_SERVER_SPANS,
        messaging_parent: MessagingParent = DEFAULT_MESSAGING_PARENT,
        tracer: trace.Tracer | None = None,
    ) -> None:
        self.propagator = propagator or MeshPropagator()
        self.exclude = exclude or PathPatterns()
        self.flush = flush
        self.trust = trust or TrustPolicy()
        self.trusted_peers = trusted_peers
        self.server_spans: ServerSpans = server_spans
        self.messaging_parent: MessagingParent = messaging_parent
        self.trace_by(tracer or _own_tracer())
        self.header_names = HeaderNames(self.propagator.passthrough)

    def trace_by(self, tracer: trace.Tracer) -> None:
        """Have a tracer make the spans."""
        self.tracer = tracer
        # Others' tracers may have something else of that name.
        is_lazy = type(tracer).__module__ == LAZY_SPANS
        self.dropped: Callable[[trace.SpanContext], trace.Span | None]
        self.recorded: Callable[..., trace.Span | None]
        self.dropped, self.recorded = (
            (getattr(tracer, name) if is_lazy else _is_to_be_asked) for name in ("dropped", "recorded")
        )

    @classmethod
    def from_settings(
        cls, settings: Settings, propagator: MeshPropagator, flush: Callable[[], object] | None = None
    ) -> Runtime:
        """Return what the settings say, with a propagator that was made of them."""
        return cls(
            propagator=propagator,
            exclude=PathPatterns(settings.exclude),
            trust=TrustPolicy(settings.trust, settings.trusted_peers, propagator.rejections),
            trusted_peers=settings.trusted_peers,
            server_spans=settings.server_spans,
            messaging_parent=settings.messaging_parent,
            flush=flush,
        )


_installed: Runtime | None = None
_fallback: Runtime | None = None


def install(runtime: Runtime) -> None:
    """Make a runtime the one that adapters use from now on."""
    global _installed
    runtime.trace_by(_own_tracer())
    _installed = runtime


def installed() -> Runtime | None:
    """Return what `configure()` installed, or None before it was called."""
    return _installed


def current() -> Runtime:
    """Return what `configure()` installed, or strict defaults with one warning where nothing was configured."""
    return _installed or _fallback or _fall_back()


def tracer() -> trace.Tracer:
    """Return the process's own tracer, without a stand-in where `configure()` has found or set a provider."""
    return TRACER if _installed is None else _installed.tracer


def flush() -> None:
    """Export what is queued, as `configure()` has arranged, before a server ends the process."""
    if _installed is not None and _installed.flush is not None:
        _installed.flush()


def is_global(propagator: MeshPropagator) -> bool:
    """Say whether hosts' own telemetry reads headers with this propagator."""
    found = _global_propagator()
    return propagator in (found, *parts_of(found))


def _global_propagator() -> object:
    # Not at import: this module of OpenTelemetry raises where OTEL_PROPAGATORS names a package that is not installed.
    from opentelemetry import propagate

    return propagate.get_global_textmap()


def _fall_back() -> Runtime:
    """Serve with what is there: a MeshPropagator set by OTEL_PROPAGATORS is a configuration too."""
    global _fallback
    found = _global_propagator()
    ours = next((each for each in (found, *parts_of(found)) if isinstance(each, MeshPropagator)), None)
    if ours is None:
        LOGGER.warning(
            "meshmw serves before it was configured (global propagator: %s, tracer provider: %s). "
            "Add as the first line of the program:  import meshmw.auto",
            type(found).__name__,
            type(trace.get_tracer_provider()).__name__,
        )
    _fallback = Runtime() if ours is None else _from_environment(ours)
    return _fallback


def _from_environment(propagator: MeshPropagator) -> Runtime:
    from meshmw.settings import Settings

    try:
        return Runtime.from_settings(Settings(), propagator)
    except SettingsError:
        # Somebody made the propagator by hand, beside settings that cannot be used: no request fails for those.
        return Runtime(propagator=propagator)
