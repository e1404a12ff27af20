"""What a user may choose, read once from arguments and the environment.

This package alone reads the environment. It knows nothing of frameworks, and of OpenTelemetry only the names of its
variables.
"""

from __future__ import annotations

from meshmw.settings.documentation import SettingDoc, as_text
from meshmw.settings.environment import count_in, first_of, hidden, is_set, is_true, resource_attributes
from meshmw.settings.metrics import metrics_endpoint, metrics_over_http
from meshmw.settings.model import Settings

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
