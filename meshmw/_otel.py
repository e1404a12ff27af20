"""Every name of OpenTelemetry that its owner calls private, one function each.

Each function says what it assumes and falls back where that does not hold; `tests/test_otel.py` has a test for each, so
that a new release which breaks an assumption names it. Names that other packages call private are in `_foreign`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter, contains
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import opentelemetry.context
from opentelemetry import baggage, metrics, trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.trace import TraceState as OTelTraceState

from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceState

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

# OpenTelemetry keeps these two context keys private; what its public functions put into an empty context names them.
SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
BAGGAGE_KEY: Final = next(iter(baggage.set_baggage("key", "value", Context())))

# The packages of opentelemetry-python-contrib look for this key in the current context before they do anything.
# `opentelemetry.instrumentation.utils` writes it, and that package need not be installed.
SUPPRESS_KEY: Final = "suppress_instrumentation"
# The API's own keys, which the SDK's exporters and newer contrib packages write; without them there is the one above.
SUPPRESS_ALL_KEY: Final = getattr(opentelemetry.context, "_SUPPRESS_INSTRUMENTATION_KEY", SUPPRESS_KEY)
SUPPRESS_HTTP_KEY: Final = getattr(opentelemetry.context, "_SUPPRESS_HTTP_INSTRUMENTATION_KEY", SUPPRESS_KEY)
# Every package of contrib has imported it, and asks its functions whether instrumentation is suppressed.
_CONTRIB: Final = "opentelemetry.instrumentation."
_CONTRIB_UTILS: Final = "opentelemetry.instrumentation.utils"
# Returns whether any package of contrib is loaded. It is asked for every call, so it is a function of C.
IS_CONTRIB_LOADED: Final = partial(contains, sys.modules, _CONTRIB_UTILS)
_SERVERS: Final = ("aiohttp_server", "asgi", "django", "falcon", "fastapi", "flask", "pyramid", "starlette", "tornado")
_CONTRIB_SERVERS: Final = tuple(f"opentelemetry.instrumentation.{name}" for name in (*_SERVERS, "wsgi"))

# The SDK says here of every single attribute that it cuts or drops.
ATTRIBUTES_LOGGER: Final = "opentelemetry.attributes"


# What a span of the SDK holds, by one call of C: its public properties copy all first, for every span that ends.
SPAN_PARTS: Final = attrgetter(
    "_attributes._dict", "_context", "_name", "_status._description", "_events._dq", "_links._dq"
)
# The attributes of an event or a link.
ITEM_ATTRIBUTES: Final = attrgetter("_attributes._dict")
# A span context is a tuple: these are the items that are its flags, and its tracestate, which holds a mapping.
FLAGS_ITEM: Final = 3
TRACE_STATE: Final = 4
# Makes one of all its items, the last of which says whether its ids are valid; its constructor looks at them again.
SPAN_CONTEXT: Final[Callable[[tuple[int, int, bool, int, OTelTraceState, bool]], trace.SpanContext]] = partial(
    tuple.__new__, trace.SpanContext
)
TRACE_STATE_MEMBERS: Final = attrgetter("_dict")


# What `_lazy_span` does in place of the SDK: its tracer's `start_span`, and of its span these methods and properties.
_METHODS: Final = (
    *("__init__", "start", "set_attribute", "update_name", "end", "get_span_context", "_readable_span"),
    *("add_event", "_add_event"),
)
_PROPERTIES: Final = "attributes", "events", "links", "dropped_attributes", "dropped_events", "dropped_links"
# The versions of the SDK that `_lazy_span` is held equal to.
KNOWN_SDKS: Final = frozenset({"1.40", "1.41", "1.42", "1.43", "1.44", "1.45"})
# The module of `LazySpan` and `LazyTracer`, by name: it imports the SDK, which a process need not have.
LAZY_SPANS: Final = "meshmw._lazy_span"


class W3CTraceState(OTelTraceState):
    """Holds a tracestate with Level 2 keys, which OpenTelemetry's own constructor refuses together with all others.

    It fills `_dict`, in which OpenTelemetry's `TraceState` keeps its members and by which its other methods read.

    Args:
        state: The validated members.
    """

    def __init__(self, state: TraceState) -> None:
        super().__init__()
        self._dict = dict(state.members)
        self._state = state
        self._text: str | None = None

    def add(self, key: str, value: str) -> OTelTraceState:
        """Return a state with a new member leftmost, or this one where the key exists or the pair is not valid."""
        return self if key in self._dict else self.update(key, value)

    def update(self, key: str, value: str) -> OTelTraceState:
        """Return a state with the member leftmost, or this one where the pair is not valid.

        The rightmost member is dropped at 32 (W3C Trace Context Level 2, 3.5).
        """
        try:
            return W3CTraceState(self._state.insert(key, value))
        except InvalidHeaderError:
            return self

    def delete(self, key: str) -> OTelTraceState:
        """Return a state without the member."""
        return W3CTraceState(self._state.delete(key))

    def to_header(self) -> str:
        """Return the tracestate header's text."""
        if self._text is None:
            self._text = str(self._state)
        return self._text


def forget_unknown_providers() -> dict[str, str]:
    """Take variables that name a provider which is not installed out of the environment, and return what they held.

    The API reads OTEL_PYTHON_TRACER_PROVIDER and OTEL_PYTHON_METER_PROVIDER whenever somebody asks for a provider and
    none is set. Where one is empty, or names no entry point, it raises StopIteration, into the import of this package
    and later into requests.
    """
    forgotten = {}
    for kind in ("tracer_provider", "meter_provider"):
        variable = f"OTEL_PYTHON_{kind.upper()}"
        name = os.environ.get(variable)  # noqa: TID251  # before anything can ask for a provider
        if name is not None and not (name and _is_registered(f"opentelemetry_{kind}", name)):
            forgotten[variable] = os.environ.pop(variable)  # noqa: TID251
    return forgotten


def _is_registered(group: str, name: str) -> bool:
    from importlib.metadata import entry_points  # takes 20 ms, for the few who name a provider

    return bool(entry_points(group=group, name=name))


def past_contrib(method: Any) -> Any:
    """Return a method of a client without the wrapper that contrib's instrumentation has put on it.

    Most of these ask nobody whether they are to stand back, so that an operation would have two spans and two parents.
    wrapt keeps a method in `__wrapped__` and who wraps it in `_self_wrapper`; the instrumentation of pika keeps it in
    `_original_function`, that of requests in `__wrapped__` beside a mark. What has none of these names, or is of
    anybody else, is returned as it is.
    """
    while True:
        if _is_of_contrib(getattr(method, "_self_wrapper", None)):
            method = method.__wrapped__
        elif _is_of_contrib(method) and hasattr(method, "_original_function"):
            method = method._original_function
        elif hasattr(method, "opentelemetry_instrumentation_requests_applied"):
            method = method.__wrapped__
        else:
            return method


def _is_of_contrib(function: object) -> bool:
    return str(getattr(function, "__module__", "")).startswith(_CONTRIB)


def is_asked_by_server() -> bool:
    """Say whether the caller's caller is a server's instrumentation that asks contrib's utils for a key.

    It is known by its module's name. Where contrib's modules have other names, a server counts as any client does.
    """
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") == _CONTRIB_UTILS:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).startswith(_CONTRIB_SERVERS)


def sdk_of(tracer: object) -> str | None:
    """Return the version of the SDK, such as `1.45`, where a tracer is the SDK's own as it came, and else None.

    A function of the SDK has its module for its globals; what somebody has put in its place has another one, or is no
    function.
    """
    sdk: Any = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None or type(tracer) is not sdk.Tracer or "start_span" in vars(tracer):
        return None
    methods = [vars(sdk.Tracer).get("start_span"), *(vars(sdk.Span).get(name) for name in _METHODS)]
    methods += [getattr(vars(sdk.ReadableSpan).get(name), "fget", None) for name in _PROPERTIES]
    if any(type(method) is not FunctionType or method.__globals__ is not vars(sdk) for method in methods):
        return None
    if sdk._Span.__module__ != sdk.__name__ or sdk._Span.__bases__ != (sdk.Span,):
        return None
    from opentelemetry.sdk.version import __version__

    return ".".join(__version__.split(".")[:2])


class PassingTracer(trace.NoOpTracer):
    """Makes spans that say what their parent says, so that a caller's headers go on where there is no SDK.

    The API's own does that from 1.40 on; before, it makes a span that is invalid.
    """

    def start_span(self, name: str, context: Context | None = None, *_: Any, **__: Any) -> trace.Span:
        """Return a span that records nothing, with the span context of its parent."""
        return trace.NonRecordingSpan(trace.get_current_span(context).get_span_context())


def passing_on(tracer: trace.Tracer) -> trace.Tracer:
    """Return a tracer that lets callers' headers go on where there is no SDK, in place of one of the API.

    The API's stand-in for the tracer of a provider that is to come keeps in `_noop_tracer` what it asks until then.
    Without that name it is what it is.
    """
    if type(tracer) is trace.ProxyTracer:
        tracer._noop_tracer = PassingTracer()
    return PassingTracer() if type(tracer) is trace.NoOpTracer else tracer


def liveness_of(instrument: object) -> Callable[[], object]:
    """Return a function that returns something true where an instrument belongs to a meter provider.

    One that was made before there is a provider stands for one that comes later, which it keeps in `_real_instrument`.
    Without that name every instrument counts as live: measuring then costs, and loses nothing. The function is asked
    for every request, so it is one of C.
    """
    return partial(getattr, instrument, "_real_instrument", True)


def parts_of(propagator: object) -> tuple[object, ...]:
    """Return what a composite propagator keeps in `_propagators`: OpenTelemetry wraps those of OTEL_PROPAGATORS in one.

    Nothing where the name is gone, or is another propagator's for something else: a `MeshPropagator` in a composite is
    then not found.
    """
    parts = getattr(propagator, "_propagators", ())
    return tuple(parts) if isinstance(parts, list | tuple) else ()


def exception_events(span: Any) -> Iterator[dict[str, Any]]:
    """Yield what the exception events of a span that has ended say, to be changed in place.

    The SDK keeps it in `_dict` of the event's attributes, which are immutable otherwise. Without that name, nothing is
    yielded, and texts of exceptions that others have recorded stay as they are.
    """
    for event in span.events:
        said = getattr(event.attributes, "_dict", None)
        if event.name == "exception" and isinstance(said, dict):
            yield said


def add_plain_event(span: Any, name: str, attributes: dict[str, str]) -> None:
    """Add an event to a span that is recorded; a lazy one is spared to look at attributes that it keeps as they are.

    Args:
        span: The span. It stands on `_limits`, `_add_event` and `BoundedAttributes._dict`; any other than a lazy one is
            told in public.
        name: The event's name.
        attributes: What it says: keys and values of this package's, in a dictionary that becomes the event's.
    """
    limits = span._limits if type(span).__module__ == LAZY_SPANS else None
    if limits is None or not _fits(attributes, limits.max_event_attributes, limits.max_attribute_length):
        span.add_event(name, attributes)
        return
    from opentelemetry.sdk.trace import Event

    kept = BoundedAttributes(limits.max_event_attributes, max_value_len=limits.max_attribute_length)
    kept._dict = attributes  # type: ignore[assignment]  # which holds other values too
    span._add_event(Event(name, kept))


def _fits(attributes: dict[str, str], most: int | None, longest: int | None) -> bool:
    if most is not None and len(attributes) > most:
        return False
    return longest is None or max(map(len, attributes.values())) <= longest


def change_status_text(span: Any, change: Callable[[str], str]) -> None:
    """Change the description of an ended span's status, into which the SDK writes what was raised within the span.

    A status keeps it in `_description`. Without that name it stays as it is.
    """
    said = getattr(getattr(span, "status", None), "_description", None)
    if isinstance(said, str):
        span.status._description = change(said)


def make_encodable(span: Any) -> None:
    """Escape the half characters (surrogates) in the names of an ended span and of its events, which no message holds.

    The SDK keeps these in `_name`. Without that name they stay as they are.
    """
    for part in (span, *span.events):
        name = getattr(part, "_name", None)
        if isinstance(name, str) and not name.isascii():
            part._name = encodable(name)


def encodable(text: str) -> str:
    """Return a text with its half characters (surrogates) escaped: JSON and file names hold some."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def has_meter_provider() -> bool:
    """Say whether somebody has set a meter provider.

    OpenTelemetry exports no name for what stands there until then, so the class is known by its name. Where that
    changes, every process seems to have a provider, and meshmw sets up none.
    """
    return type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider"


def exporters_of(provider: object) -> Iterator[object]:
    """Yield the exporter of each span processor of a tracer provider, or the processor where it shows none."""
    for processor in getattr(getattr(provider, "_active_span_processor", None), "_span_processors", ()):
        batch = getattr(processor, "_batch_processor", processor)
        yield getattr(batch, "_exporter", None) or getattr(processor, "span_exporter", None) or processor


def keep_resource_in_forks(provider: Any, known: Resource) -> None:
    """Make a tracer provider keep, in forked processes, the attributes that are known of the service.

    In a forked process the SDK merges a random `service.instance.id` into the resource, with the provider's
    `_update_resource`, over the one that somebody chose. A provider without that name, such as that of SDK 1.40, is
    left as it is.
    """
    update: Callable[[Resource], None] | None = getattr(provider, "_update_resource", None)
    if update is not None:
        provider._update_resource = lambda resource: update(resource.merge(known))


def decisions_by_parent(sampler: object) -> tuple[Any, ...]:
    """Return what a sampler decides by the parent alone, for the SDK's own samplers and ours above one of these.

    Returns:
        Four decisions, None for each that the sampler is to be asked for: below a parent that is local and unsampled,
        local and sampled, remote and unsampled, remote and sampled.
    """
    from opentelemetry.sdk.trace.sampling import ParentBased, StaticSampler

    def static(found: Any) -> Any:
        return found._decision if type(found) is StaticSampler and "should_sample" not in vars(found) else None

    # Not of a subclass or of a stand-in, which may decide otherwise.
    if "where_b3_is_silent" in vars(type(sampler)):
        sampler = sampler.where_b3_is_silent  # type: ignore[attr-defined]
    if type(sampler) is not ParentBased or "should_sample" in vars(sampler):
        return (static(sampler),) * 4
    return (
        static(sampler._local_parent_not_sampled),
        static(sampler._local_parent_sampled),
        static(sampler._remote_parent_not_sampled),
        static(sampler._remote_parent_sampled),
    )


def announce_ending(processor: object, span: object) -> None:
    """Tell a span processor that a span is about to end.

    The specification's OnEnding is in development, and the SDK calls it `_on_ending`. A processor without that name is
    told nothing.
    """
    tell: Callable[[object], None] | None = getattr(processor, "_on_ending", None)
    if tell is not None:
        tell(span)


def overrides(processor: object, base: type, step: str = "_on_ending") -> bool:
    """Say whether a span processor has a step of its own, rather than its base class's, which does nothing.

    Args:
        processor: The processor.
        base: The SDK's class of all processors.
        step: The method's name. The one that announces a span's end is private.
    """
    own = getattr(processor, step, None)
    return own is not None and getattr(own, "__func__", own) is not getattr(base, step, None)


@contextmanager
def suppressed() -> Iterator[None]:
    """Let nobody trace what happens in the block, as the SDK does while it exports."""
    token = opentelemetry.context.attach(opentelemetry.context.set_value(SUPPRESS_ALL_KEY, True))
    try:
        yield
    finally:
        opentelemetry.context.detach(token)


def runtime_context() -> Any:
    """Return what OpenTelemetry's `attach` and `detach` call: `_RUNTIME_CONTEXT`, or None where that name is gone."""
    return getattr(opentelemetry.context, "_RUNTIME_CONTEXT", None)


def set_runtime_context(value: Any) -> None:
    """Have OpenTelemetry's `attach` and `detach` call *value*. Where the name is gone, nobody calls it."""
    opentelemetry.context._RUNTIME_CONTEXT = value
