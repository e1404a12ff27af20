"""`configure()`, the one place that sets OpenTelemetry's globals: propagator, tracer provider, meter provider.

It makes everything first and sets it then, so that settings which cannot be used leave nothing behind. Where somebody
has set a tracer provider, or OTEL_CONFIG_FILE makes one, it adds what it can to that and says which settings have no
effect.
"""

from __future__ import annotations

import atexit
import threading
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from meshmw._lifecycle.http_conventions import know_methods
from meshmw._log_output import leave_log_to_python, once_in_tree, show_log
from meshmw._notices import LOGGER, escaped, plain, quoted
from meshmw._runtime import Runtime, install
from meshmw._telemetry.export import shown_endpoint
from meshmw._telemetry.handle import Telemetry, flush_at_process_end
from meshmw._telemetry.provider import (
    INTERNAL,
    baggage_attributes,
    build_meter_provider,
    build_provider,
    internal_error,
    is_asked_for,
)
from meshmw._telemetry.worker import signals_blocked
from meshmw.asgi import require_contrib
from meshmw.errors import SettingsError
from meshmw.propagator import MeshPropagator
from meshmw.settings import (
    SHARED_VARIABLES,
    Settings,
    as_text,
    each_line_once,
    first_of,
    hidden,
    readable,
    sdk_disabled,
)

_CONFIG_FILE: Final = "OTEL_CONFIG_FILE"
# What OpenTelemetry calls a service without a name, with the program's behind it.
_UNNAMED: Final = "unknown_service"
_KNOWN_METHODS: Final = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"

# What cannot be changed any more once there is a provider.
_FIXED: Final = (
    "service_name",
    "kubernetes_labels",
    "exporter",
    "endpoint",
    "sampling_owner",
    "sampling_ratio",
    "sampling_rules",
    "random_flag",
    "batching",
)
_WHY: Final = {
    "existing": "a tracer provider was there before configure()",
    "file": f"{_CONFIG_FILE} makes the tracer provider",
}
_REMEDY: Final = {
    "existing": "call configure() first, or set the same on that provider",
    "file": "set the same in that file",
}

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
        IncompatibleExporterError: The exporter is installed and cannot be imported. Nothing has been set then.
        IncompatibleError: OpenTelemetry's SDK raises, and no setting is at fault. Nothing has been set then.
    """
    global _configured
    with _lock:
        if _configured is None:
            _configured = _configure(Settings() if settings is None else settings)
        elif _configured.ended:
            LOGGER.warning(
                "meshmw was shut down; OpenTelemetry sets a provider once in a process, so nothing is recorded"
            )
        elif settings is not None and settings != _configured.settings:
            LOGGER.warning("meshmw is configured already; the settings of the first call stay in force")
        return _configured


def propagator_from_environment() -> MeshPropagator:
    """Return the propagator that the environment asks for; OTEL_PROPAGATORS=meshmw calls this.

    Raises:
        SettingsError: Some settings cannot be used.
    """
    return MeshPropagator.from_settings(Settings())


def configured() -> Telemetry | None:
    """Return what the first `configure()` of this process returned, or None before it."""
    return _configured


def _configure(settings: Settings) -> Telemetry:
    if settings.show_log:
        show_log()
    else:
        leave_log_to_python()
    _import_propagate()
    from opentelemetry import propagate

    propagator = MeshPropagator.from_settings(settings)
    if settings.server_spans == "contrib":
        require_contrib()
    runtime = Runtime.from_settings(settings, propagator)
    # In it start gRPC's threads, and those of OpenTelemetry's metrics.
    with signals_blocked():
        telemetry = _set_providers(settings, propagator)
    propagate.set_global_textmap(propagator)
    know_methods(first_of(_KNOWN_METHODS))
    runtime.flush = telemetry.flush_before_end
    install(runtime)
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


def _set_providers(settings: Settings, propagator: MeshPropagator) -> Telemetry:
    found = trace.get_tracer_provider()
    whose = "own" if isinstance(found, trace.ProxyTracerProvider) else "existing"
    is_disabled = sdk_disabled()
    if not is_disabled and _apply_config_file():
        whose = "file"
    if is_disabled and whose == "own":
        whose = "disabled"
    # What is ignored in them is said once.
    with each_line_once(), readable(*(SHARED_VARIABLES if whose == "own" else ())):
        meter_provider = None if is_disabled else build_meter_provider(settings)
        provider, processor = _build_provider(settings, meter_provider) if whose == "own" else (None, None)
    if provider is not None:
        trace.set_tracer_provider(provider)
    elif whose != "disabled":
        _join(settings, trace.get_tracer_provider(), whose)
    if meter_provider is not None:
        metrics.set_meter_provider(meter_provider)
    found = trace.get_tracer_provider()
    _log_ready(settings, found, whose)
    # What a scrape shows can be scraped to the end.
    ours = meter_provider if settings.metrics == "otlp" else None
    return Telemetry(settings, propagator, found, owned=whose == "own", processor=processor, meter_provider=ours)


def _build_provider(
    settings: Settings, meter_provider: MeterProvider | None
) -> tuple[TracerProvider, SpanProcessor | None]:
    try:
        return build_provider(settings)
    except Exception:
        if meter_provider is not None:
            meter_provider.shutdown()
        raise


def _apply_config_file() -> bool:
    """Set the providers that OTEL_CONFIG_FILE declares, and say whether there is such a file to follow.

    OpenTelemetry's own package reads and applies it. A program that `opentelemetry-instrument` started has followed it
    already.

    Raises:
        SettingsError: The file cannot be used, or the package that reads it is not installed.
        IncompatibleError: That package is installed, and raises what no file is to blame for.
    """
    path = first_of(_CONFIG_FILE)
    if not path or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    try:
        from opentelemetry.configuration import configure_sdk, load_config_file
    except ImportError as error:
        if error.name != "opentelemetry.configuration" or not isinstance(error, ModuleNotFoundError):
            raise internal_error(error) from error
        fault = f"{_CONFIG_FILE} is set and nothing reads it: run  pip install opentelemetry-configuration"
        raise SettingsError([fault]) from error
    try:
        configure_sdk(load_config_file(path))
    except INTERNAL as error:
        raise internal_error(error) from error
    except Exception as error:
        fault = f"{_CONFIG_FILE} holds {quoted(path)}, of which OpenTelemetry says {escaped(str(error), 200)}"
        raise SettingsError([fault]) from error
    return True


def _join(settings: Settings, provider: trace.TracerProvider, whose: str) -> None:
    """Add to another's provider what can be added, and say in one line which settings have no effect on it."""
    lost = [] if _copies_baggage(settings, provider) else ["baggage_attributes"]
    lost += [name for name in _FIXED if is_asked_for(settings, name)]
    if lost:
        LOGGER.warning("%s, so these settings have no effect: %s; %s", _WHY[whose], ", ".join(lost), _REMEDY[whose])


def _copies_baggage(settings: Settings, provider: trace.TracerProvider) -> bool:
    processor = baggage_attributes(settings)
    add = getattr(provider, "add_span_processor", None)
    if processor is not None and add is not None:
        add(processor)
    return processor is None or add is not None


def _log_ready(settings: Settings, provider: trace.TracerProvider, whose: str) -> None:
    resource = getattr(provider, "resource", None)
    service = str((resource.attributes.get("service.name") if resource else settings.service_name) or _UNNAMED)
    own = whose == "own"
    LOGGER.info(
        "meshmw ready: propagator=MeshPropagator formats=%s service=%s exporter=%s endpoint=%s provider=%s",
        as_text(settings.propagators) or "none",
        plain(service, 255),
        settings.exporter if own else "-",
        (own and shown_endpoint(settings)) or "-",
        whose,
        extra=once_in_tree(f"ready {service}"),
    )
    if own and service.startswith(_UNNAMED) and settings.exporter != "none":
        LOGGER.warning(
            "this service has no name, and its spans say %s: set MESHMW_SERVICE_NAME=my-service",
            plain(service),
            extra=once_in_tree("unnamed"),
        )
