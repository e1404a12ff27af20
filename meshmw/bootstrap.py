"""`configure()`: the one place that sets OpenTelemetry's globals."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import threading

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from meshmw.contrib import require_contrib
from meshmw.propagator import MeshPropagator
from meshmw.runtime import Runtime, install
from meshmw.settings import Settings, as_text, hidden
from meshmw.settings.faults import escaped
from meshmw.telemetry.declared import apply_config_file
from meshmw.telemetry.existing import join
from meshmw.telemetry.exporters import shown_endpoint
from meshmw.telemetry.handle import Telemetry
from meshmw.telemetry.metrics import meter_provider_of
from meshmw.telemetry.process_end import flush_at_process_end
from meshmw.telemetry.provider import build_provider

log = logging.getLogger("meshmw")

_lock = threading.Lock()
_configured: Telemetry | None = None


def configure(settings: Settings | None = None) -> Telemetry:
    """Set the global propagator and, unless there is one already, a tracer provider that exports; call it first.

    A second call changes nothing and returns the same handle, with a warning where it brings other settings.

    Args:
        settings: The settings, or None to read them from the environment.

    Returns:
        The handle with which to flush and to shut down. The end of the process does both by itself.

    Raises:
        SettingsError: Some settings cannot be used. Nothing has been set then.
        MissingExtraError: The exporter is not installed. Nothing has been set then.
    """
    global _configured
    with _lock:
        if _configured is None:
            _configured = _configure(Settings() if settings is None else settings)
        elif _configured.ended:
            log.warning("meshmw was shut down; OpenTelemetry sets a provider once in a process, so nothing is recorded")
        elif settings is not None and settings != _configured.settings:
            log.warning("meshmw is configured already; the settings of the first call stay in force")
        return _configured


def _configure(settings: Settings) -> Telemetry:
    _import_propagate()
    from opentelemetry import propagate

    propagator = MeshPropagator.from_settings(settings)
    if settings.server_spans == "contrib":
        require_contrib()
    runtime = Runtime.from_settings(settings, propagator)
    telemetry = _telemetry(settings, propagator)
    propagate.set_global_textmap(propagator)
    install(dataclasses.replace(runtime, flush=telemetry.flush_before_end))
    atexit.register(telemetry.shutdown)
    if telemetry.exports:
        flush_at_process_end(telemetry.flush_before_end)
    return telemetry


def _import_propagate() -> None:
    """Import OpenTelemetry's propagation module, which refuses formats whose own packages are not installed.

    OTEL_PROPAGATORS=b3 needs no such package here, and an unknown name is to be ignored with a warning.
    """
    try:
        import opentelemetry.propagate
    except Exception:
        with hidden("OTEL_PROPAGATORS"):
            import opentelemetry.propagate  # noqa: F401


def _telemetry(settings: Settings, propagator: MeshPropagator) -> Telemetry:
    found = trace.get_tracer_provider()
    whose = "own" if isinstance(found, trace.ProxyTracerProvider) else "existing"
    meter_provider = None
    if not settings.sdk_disabled:
        whose = "file" if apply_config_file() else whose
        meter_provider = meter_provider_of(settings)
    elif whose == "own":
        whose = "disabled"
    processor = None
    if whose == "own":
        provider, processor = _provider(settings, meter_provider)
        trace.set_tracer_provider(provider)
    elif whose != "disabled":
        join(settings, trace.get_tracer_provider(), whose)
    if meter_provider is not None:
        metrics.set_meter_provider(meter_provider)
    found = trace.get_tracer_provider()
    _say_ready(settings, found, whose)
    # What a scrape shows can be scraped to the end.
    ours = meter_provider if settings.metrics == "otlp" else None
    return Telemetry(settings, propagator, found, owned=whose == "own", processor=processor, meter_provider=ours)


def _provider(settings: Settings, meter_provider: MeterProvider | None) -> tuple[TracerProvider, SpanProcessor | None]:
    try:
        return build_provider(settings)
    except Exception:
        if meter_provider is not None:
            meter_provider.shutdown()
        raise


def _say_ready(settings: Settings, provider: trace.TracerProvider, whose: str) -> None:
    resource = getattr(provider, "resource", None)
    service = resource.attributes.get("service.name") if resource else settings.service_name
    own = whose == "own"
    log.info(
        "meshmw ready: propagator=MeshPropagator formats=%s service=%s exporter=%s endpoint=%s provider=%s",
        as_text(settings.propagators) or "none",
        escaped(str(service or "unknown_service"), 255),
        settings.exporter if own else "-",
        (own and shown_endpoint(settings)) or "-",
        whose,
    )


def propagator_from_environment() -> MeshPropagator:
    """Return the propagator that the environment asks for; OTEL_PROPAGATORS=meshmw calls this.

    Raises:
        SettingsError: Some settings cannot be used.
    """
    return MeshPropagator.from_settings(Settings())
