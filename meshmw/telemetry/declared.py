"""The configuration file of OTEL_CONFIG_FILE, which OpenTelemetry's own package reads and applies."""

from __future__ import annotations

from opentelemetry import trace

from meshmw.errors import SettingsError
from meshmw.settings import first_of
from meshmw.settings.faults import escaped

_VARIABLE = "OTEL_CONFIG_FILE"


def apply_config_file() -> bool:
    """Set the providers that the file declares, and say whether there is such a file to follow.

    A program that `opentelemetry-instrument` started has followed it already.

    Raises:
        SettingsError: The file cannot be used, or the package that reads it is not installed.
    """
    path = first_of(_VARIABLE)
    if not path or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    try:
        from opentelemetry.configuration import configure_sdk, load_config_file
    except ImportError as error:
        fault = f"{_VARIABLE} is set and nothing reads it: run  pip install opentelemetry-configuration"
        raise SettingsError([fault]) from error
    try:
        configure_sdk(load_config_file(path))
    except Exception as error:
        fault = f"{_VARIABLE} holds '{escaped(path)}', of which OpenTelemetry says {escaped(str(error), 200)}"
        raise SettingsError([fault]) from error
    return True
