"""The tracer provider, from the resource to the processor."""

from __future__ import annotations

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased

from meshmw.errors import MeshmwError, SettingsError
from meshmw.settings import Settings, hidden
from meshmw.settings.faults import escaped
from meshmw.telemetry.collector import CollectorExporter
from meshmw.telemetry.exporters import build_exporter, shown_endpoint
from meshmw.telemetry.processor import PromptBatchSpanProcessor
from meshmw.telemetry.resource import build_resource
from meshmw.telemetry.sampling import RemoteParentSampler


def build_provider(settings: Settings) -> tuple[TracerProvider, SpanProcessor | None]:
    """Return a provider that is not yet global, and the processor that feeds the exporter.

    Raises:
        MissingExtraError: The exporter is not installed.
        SettingsError: OpenTelemetry refuses one of the variables that it reads by itself.
    """
    try:
        processor = _processor(settings)
        # The settings have decided whether the SDK is disabled; the provider would decide by the variable alone.
        with hidden("OTEL_SDK_DISABLED"):
            provider = TracerProvider(_sampler(settings), build_resource(settings), shutdown_on_exit=False)
    except MeshmwError:
        raise
    except Exception as error:
        # OTEL_EXPORTER_OTLP_TIMEOUT, _COMPRESSION, OTEL_BSP_* and the like: the SDK raises what it likes.
        fault = f"an OTEL_* variable, of which OpenTelemetry says {escaped(str(error), 200)}"
        raise SettingsError([fault]) from error
    # A remote parent's flag may be a proxy's doing: where this service decides, it counts as little as that of a root.
    owns = settings.sampling_owner == "service"
    provider.sampler = RemoteParentSampler(provider.sampler, service_owns=owns)
    if processor is not None:
        provider.add_span_processor(processor)
    return provider, processor


def _sampler(settings: Settings) -> Sampler | None:
    """Return the sampler that the settings ask for; None lets the SDK read OTEL_TRACES_SAMPLER."""
    ratio = settings.sampling_ratio
    return None if ratio is None else ParentBased(TraceIdRatioBased(ratio))


def _processor(settings: Settings) -> SpanProcessor | None:
    exporter = build_exporter(settings)
    if exporter is None:
        return None
    endpoint = shown_endpoint(settings)
    calm = CollectorExporter(exporter, endpoint or "standard output", settings.warn_window)
    # Standard output is for a developer's eyes, who wants each span at once.
    return PromptBatchSpanProcessor(calm, settings.warn_window) if endpoint else SimpleSpanProcessor(calm)
