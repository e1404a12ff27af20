"""What a user may choose, read once from arguments and the environment.

This package alone reads the environment. It knows nothing of frameworks, and of OpenTelemetry only the names of its
variables.
"""

from __future__ import annotations

from meshmw.settings._model import SettingDoc, Settings, as_text
from meshmw.settings._standard import (
    count_in,
    first_of,
    hidden,
    is_set,
    is_true,
    metrics_endpoint,
    metrics_over_http,
    resource_attributes,
)

__all__ = (
    "SettingDoc",
    "Settings",
    "as_text",
    "count_in",
    "first_of",
    "hidden",
    "is_set",
    "is_true",
    "metrics_endpoint",
    "metrics_over_http",
    "resource_attributes",
)
