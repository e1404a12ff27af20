"""The tracer provider, from the resource to the processor."""

from __future__ import annotations

import logging
from typing import Final, get_args

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from meshmw._notices import escaped, quoted
from meshmw._policy.words import MetricsExporter
from meshmw._telemetry.batching import batching_of
from meshmw._telemetry.collector import CollectorExporter
from meshmw._telemetry.export import build_exporter, otlp_reader, shown_endpoint
from meshmw._telemetry.processors import BaggageAttributes, GuardedSpanProcessors, PromptBatchSpanProcessor
from meshmw._telemetry.resource import build_resource, known_attributes
from meshmw._telemetry.sampling import RemoteParentSampler, RouteRule
from meshmw.errors import MeshmwError, MissingExtraError, SettingsError
from meshmw.settings import Settings, first_of

# Ids for traces that begin here.


class UnflaggedIds(RandomIdGenerator):
    """Makes random ids and does not say so in the trace flags.

    `random` (0x02) is of W3C Trace Context Level 2, section 3.2.2.5.2; a Level 1 peer may refuse what it does not know.
    """

    def is_trace_id_random(self) -> bool:
        """Leave the flag out, which Level 2 allows: it then means that nothing is known of the id."""
        return False


def build_provider(settings: Settings) -> tuple[TracerProvider, SpanProcessor | None]:
    """Return a provider that is not yet global, and the processor that feeds the exporter.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: The queue is too small, or OpenTelemetry refuses one of the variables that it reads by itself.
    """
    try:
        processor = _processor(settings)
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


# A meter provider, whose metrics a Prometheus scrape finds or a collector gets.
#
# Only for processes that have none: every instrument of ours belongs to whichever meter provider there is.


_VARIABLE: Final = "OTEL_METRICS_EXPORTER"

log = logging.getLogger("meshmw")


def meter_provider_of(settings: Settings) -> MeterProvider | None:
    """Return the meter provider that the settings ask for, or None where there is one, or none is wanted.

    With `metrics=prometheus`, what it collects stands in prometheus_client's default registry, which its
    `make_asgi_app()`, `make_wsgi_app()` and `start_http_server()` show. With `metrics=otlp` it is the caller's to end.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: OpenTelemetry refuses one of the variables that it reads by itself.
    """
    # OpenTelemetry exports no name for what stands there until somebody sets a provider.
    if type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider":
        if settings.metrics != "none" and is_asked_for(settings, "metrics"):
            log.warning("a meter provider was there before configure(): metrics=%s has no effect", settings.metrics)
        return None
    _warn_of_other_exporters(settings)
    if settings.metrics == "none":
        return None
    try:
        reader = otlp_reader(settings) if settings.metrics == "otlp" else _prometheus_reader()
    except MeshmwError:
        raise
    except Exception as error:
        raise _refused(error) from error
    return _meter_provider(reader, settings)


def _warn_of_other_exporters(settings: Settings) -> None:
    """Name what OTEL_METRICS_EXPORTER holds and nobody will export to, unless another setting has decided."""
    asked = [name for name in (each.strip().lower() for each in first_of(_VARIABLE).split(",")) if name]
    known = [name for name in asked if name in get_args(MetricsExporter)][:1]
    is_decided_elsewhere = settings.metrics != known[0] if known else "metrics" in settings.model_fields_set
    left_out = [name for name in asked if name not in known]
    if left_out and not is_decided_elsewhere:
        log.warning(
            "%s holds %s, which is ignored; meshmw sets up one of %s, and for any other exporter set a meter provider "
            "before configure()",
            _VARIABLE,
            quoted(",".join(left_out)),
            ", ".join(get_args(MetricsExporter)),
        )


def _prometheus_reader() -> MetricReader:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
    except ImportError as error:
        raise MissingExtraError("the exporter for Prometheus", "prometheus") from error
    return PrometheusMetricReader()


def _meter_provider(reader: MetricReader, settings: Settings) -> MeterProvider:
    try:
        # At the end of the process a collector has as long as for spans, and not the SDK's 30 seconds.
        return MeterProvider([reader], build_resource(settings), shutdown_on_exit=settings.metrics != "otlp")
    except Exception as error:
        reader.shutdown()  # takes it out of the registry, and ends its thread
        raise _refused(error) from error


def _refused(error: Exception) -> SettingsError:
    return SettingsError([f"an OTEL_* variable, of which OpenTelemetry says {escaped(str(error), 200)}"])


def is_asked_for(settings: Settings, name: str) -> bool:
    """Say whether somebody chose this setting for meshmw, and not for all telemetry by a standard variable."""
    # What a standard variable says, the other provider has read too.
    by_standard = settings.origins().get(name, "").startswith("OTEL_")
    default = type(settings).model_fields[name].default
    return name in settings.model_fields_set and not by_standard and getattr(settings, name) != default
