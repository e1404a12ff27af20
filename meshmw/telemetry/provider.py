"""The tracer provider, from the resource to the processor."""

from __future__ import annotations

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from meshmw.errors import MeshmwError, SettingsError
from meshmw.settings import Settings, hidden
from meshmw.settings.faults import escaped
from meshmw.telemetry.baggage_attributes import BaggageAttributes
from meshmw.telemetry.batching import batching_of
from meshmw.telemetry.collector import CollectorExporter
from meshmw.telemetry.exporters import build_exporter, shown_endpoint
from meshmw.telemetry.guarding import GuardedSpanProcessors
from meshmw.telemetry.ids import UnflaggedIds
from meshmw.telemetry.processor import PromptBatchSpanProcessor
from meshmw.telemetry.resource import known_attributes
from meshmw.telemetry.sampling import RemoteParentSampler, RouteRule


def build_provider(settings: Settings) -> tuple[TracerProvider, SpanProcessor | None]:
    """Return a provider that is not yet global, and the processor that feeds the exporter.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: The queue is too small, or OpenTelemetry refuses one of the variables that it reads by itself.
    """
    try:
        processor = _processor(settings)
        # The settings have decided whether the SDK is disabled; the provider would decide by the variable alone.
        with hidden("OTEL_SDK_DISABLED"):
            provider = _Provider(settings)
    except MeshmwError:
        raise
    except Exception as error:
        # OTEL_EXPORTER_OTLP_TIMEOUT, _COMPRESSION and the like: the SDK raises what it likes.
        fault = f"an OTEL_* variable, of which OpenTelemetry says {escaped(str(error), 200)}"
        raise SettingsError([fault]) from error
    provider.sampler = RemoteParentSampler(
        provider.sampler,
        # A remote parent's flag may be a proxy's doing: where this service decides, it counts as little as a root's.
        service_owns=settings.sampling_owner == "service",
        rules=[RouteRule.parse(each) for each in settings.sampling_rules],
    )
    for each in (baggage_attributes(settings), processor):
        if each is not None:
            provider.add_span_processor(each)
    return provider, processor


class _Provider(TracerProvider):
    """Guards requests against span processors, and keeps in forked processes what is known of the service."""

    def __init__(self, settings: Settings) -> None:
        known = known_attributes(settings)
        self._known = Resource(known)
        super().__init__(
            _sampler(settings),
            Resource.create(known),
            shutdown_on_exit=False,
            active_span_processor=GuardedSpanProcessors(settings.warn_window),
            id_generator=None if settings.random_flag else UnflaggedIds(),
        )

    def _update_resource(self, resource: Resource) -> None:
        # In a forked process the SDK would put a random `service.instance.id` over the one that somebody chose.
        super()._update_resource(resource.merge(self._known))


def baggage_attributes(settings: Settings) -> SpanProcessor | None:
    """Return what copies baggage to spans, where keys are given."""
    return BaggageAttributes(settings.baggage_attributes) if settings.baggage_attributes else None


def _sampler(settings: Settings) -> Sampler | None:
    """Return the sampler that the settings ask for; None lets the SDK read OTEL_TRACES_SAMPLER."""
    ratio = settings.sampling_ratio
    return None if ratio is None else ParentBased(TraceIdRatioBased(ratio))


def _processor(settings: Settings) -> SpanProcessor | None:
    endpoint = shown_endpoint(settings)
    # Before the exporter, whose threads would outlive a fault.
    batching = batching_of(settings) if endpoint else None
    exporter = build_exporter(settings)
    if exporter is None:
        return None
    calm = CollectorExporter(exporter, endpoint or "standard output", settings.warn_window)
    # Standard output is for a developer's eyes, who wants each span at once.
    return PromptBatchSpanProcessor(calm, settings.warn_window, batching) if endpoint else SimpleSpanProcessor(calm)
