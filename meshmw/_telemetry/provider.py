"""The tracer provider and the meter provider that the settings ask for; nobody has set them yet."""

from __future__ import annotations

from typing import Final, get_args

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from meshmw._notices import LOGGER, escaped, quoted
from meshmw._otel import has_meter_provider, keep_resource_in_forks
from meshmw._policy.words import MetricsExporter
from meshmw._telemetry.batching import PromptBatchSpanProcessor, batching_of
from meshmw._telemetry.bounds import hold_back_repeats, limits_of_spans
from meshmw._telemetry.collector import GuardedSpanExporter
from meshmw._telemetry.export import NO_METRICS, build_exporter, importing, otlp_reader, shown_endpoint
from meshmw._telemetry.resource import build_resource, known_attributes
from meshmw._telemetry.span import BaggageAttributes, GuardedSpanProcessors, RemoteParentSampler, RouteRule
from meshmw.errors import IncompatibleError, MeshmwError, SettingsError
from meshmw.settings import (
    EXEMPLAR_VARIABLES,
    LIMIT_VARIABLES,
    METRIC_VARIABLES,
    PROCESSOR_VARIABLES,
    SAMPLER_VARIABLES,
    Settings,
    first_of,
    named_in,
    readable,
)

_METRICS_VARIABLE: Final = "OTEL_METRICS_EXPORTER"
# These are faults of a program's own, and what they quote is a name in it.
INTERNAL: Final = AttributeError, ImportError, NameError, TypeError


def build_provider(settings: Settings) -> tuple[TracerProvider, SpanProcessor | None]:
    """Return a tracer provider, and the processor that feeds its exporter.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: The queue is too small, or OpenTelemetry refuses one of the variables that it reads by itself.
        IncompatibleExporterError: The exporter is installed and cannot be imported.
        IncompatibleError: OpenTelemetry raises, and no variable is at fault.
    """
    try:
        with readable(*PROCESSOR_VARIABLES):
            processor = _export_processor(settings)
        # What the setting says of the sampler decides, and the standard variable is then not even warned of.
        with readable(*LIMIT_VARIABLES, *(SAMPLER_VARIABLES if settings.sampling_ratio is None else ())):
            provider = _tracer_provider(settings)
    except MeshmwError:
        raise
    except Exception as error:
        raise _unusable(error) from error
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


def build_meter_provider(settings: Settings) -> MeterProvider | None:
    """Return a meter provider, or None where the process has one, or none is wanted.

    Every instrument of ours belongs to whichever meter provider there is. With `metrics=prometheus`, what it collects
    stands in prometheus_client's default registry, which its `make_asgi_app()`, `make_wsgi_app()` and
    `start_http_server()` show. With `metrics=otlp` it is the caller's to end.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: OpenTelemetry refuses one of the variables that it reads by itself.
        IncompatibleExporterError: The exporter is installed and cannot be imported.
        IncompatibleError: OpenTelemetry raises, and no variable is at fault.
    """
    if has_meter_provider():
        if settings.metrics != "none" and is_asked_for(settings, "metrics"):
            LOGGER.warning("a meter provider was there before configure(): metrics=%s has no effect", settings.metrics)
        return None
    _warn_of_other_exporters(settings)
    if settings.metrics == "none":
        return None
    with readable(*(METRIC_VARIABLES if settings.metrics == "otlp" else EXEMPLAR_VARIABLES)):
        try:
            # First: a reader collects as soon as it is made, and the SDK warns of one that has no provider yet.
            resource = build_resource(settings)
            reader = otlp_reader(settings) if settings.metrics == "otlp" else _prometheus_reader()
        except MeshmwError:
            raise
        except Exception as error:
            raise _unusable(error) from error
        return _meter_provider(reader, resource, settings)


def baggage_attributes(settings: Settings) -> SpanProcessor | None:
    """Return what copies baggage to spans, where keys are given."""
    return BaggageAttributes(settings.baggage_attributes) if settings.baggage_attributes else None


def internal_error(error: Exception) -> IncompatibleError:
    """Return what to raise where OpenTelemetry raises and no setting is at fault."""
    return IncompatibleError(escaped(f"{type(error).__name__}: {error}", 200))


def is_asked_for(settings: Settings, name: str) -> bool:
    """Say whether somebody chose this setting for meshmw, and not for all telemetry by a standard variable."""
    # What a standard variable says, the other provider has read too.
    by_standard = settings.origins().get(name, "").startswith("OTEL_")
    return name in settings.given and not by_standard and getattr(settings, name) != getattr(Settings, name)


class UnflaggedIds(RandomIdGenerator):
    """Makes random ids and does not say so in the trace flags.

    `random` (0x02) is of W3C Trace Context Level 2, section 3.2.2.5.2; a Level 1 peer may refuse what it does not know.
    """

    def is_trace_id_random(self) -> bool:
        """Leave the flag out, which Level 2 allows: it then means that nothing is known of the id."""
        return False


def _tracer_provider(settings: Settings) -> TracerProvider:
    limits, bounds = limits_of_spans()
    hold_back_repeats(settings.warn_window)
    provider = TracerProvider(
        _sampler(settings),
        build_resource(settings),
        shutdown_on_exit=False,
        active_span_processor=GuardedSpanProcessors(settings.warn_window, bounds=bounds),
        span_limits=limits,
        id_generator=None if settings.random_flag else UnflaggedIds(),
    )
    keep_resource_in_forks(provider, Resource(known_attributes(settings)))
    return provider


def _sampler(settings: Settings) -> Sampler | None:
    """Return the sampler that the settings ask for; None lets the SDK read OTEL_TRACES_SAMPLER."""
    ratio = settings.sampling_ratio
    return None if ratio is None else ParentBased(TraceIdRatioBased(ratio))


def _export_processor(settings: Settings) -> SpanProcessor | None:
    endpoint = shown_endpoint(settings)
    # Before the exporter, whose threads would outlive a fault.
    batching = batching_of(settings) if endpoint else None
    exporter = build_exporter(settings)
    if exporter is None:
        return None
    guarded = GuardedSpanExporter(exporter, endpoint or "standard output", settings.warn_window)
    if batching is None:
        # Standard output is for a developer's eyes, who wants each span at once.
        return SimpleSpanProcessor(guarded)
    return PromptBatchSpanProcessor(guarded, settings.warn_window, batching)


def _warn_of_other_exporters(settings: Settings) -> None:
    """Name what OTEL_METRICS_EXPORTER holds and nobody will export to, unless another setting has decided."""
    asked = [name for name in (each.strip().lower() for each in first_of(_METRICS_VARIABLE).split(",")) if name]
    known = [name for name in asked if name in get_args(MetricsExporter)][:1]
    is_decided_elsewhere = settings.metrics != known[0] if known else "metrics" in settings.given
    left_out = [name for name in asked if name not in known]
    if left_out and not is_decided_elsewhere:
        LOGGER.warning(
            "%s holds %s, which is ignored; meshmw sets up one of %s, and for any other exporter set a meter provider "
            "before configure()",
            _METRICS_VARIABLE,
            quoted(",".join(left_out)),
            ", ".join(get_args(MetricsExporter)),
        )


def _prometheus_reader() -> MetricReader:
    with importing("opentelemetry.exporter.prometheus", "the exporter for Prometheus", "prometheus", NO_METRICS):
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
    return PrometheusMetricReader()


def _meter_provider(reader: MetricReader, resource: Resource, settings: Settings) -> MeterProvider:
    try:
        # At the end of the process a collector has as long as for spans, and not the SDK's 30 seconds.
        return MeterProvider([reader], resource, shutdown_on_exit=settings.metrics != "otlp")
    except Exception as error:
        reader.shutdown()  # takes it out of the registry, and ends its thread
        raise _unusable(error) from error


def _unusable(error: Exception) -> MeshmwError:
    """Return what to raise where OpenTelemetry raises: it names the variable at fault, or blames none."""
    variable = None if isinstance(error, INTERNAL) else named_in(str(error))
    if variable is None:
        return internal_error(error)
    return SettingsError([f"{variable} holds what OpenTelemetry refuses: {escaped(str(error), 200)}"])
