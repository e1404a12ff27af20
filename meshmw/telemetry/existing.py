"""A tracer provider that somebody else made: what can be added to it, and what settings have no effect on it."""

from __future__ import annotations

import logging
from typing import Final

from opentelemetry import trace

from meshmw.settings import Settings
from meshmw.telemetry.provider import baggage_attributes

log = logging.getLogger("meshmw")

# What a provider has settled once it is there.
_SETTLED: Final = (
    "service_name",
    "service_version",
    "kubernetes_labels",
    "exporter",
    "endpoint",
    "sampling_owner",
    "sampling_ratio",
    "sampling_rules",
    "random_flag",
    "batch_profile",
    "queue_size",
    "sdk_disabled",
)
_WHY: Final = {
    "existing": "a tracer provider was there before configure()",
    "file": "OTEL_CONFIG_FILE makes the tracer provider",
}
_REMEDY: Final = {
    "existing": "call configure() first, or set the same on that provider",
    "file": "set the same in that file",
}


def join(settings: Settings, provider: trace.TracerProvider, whose: str) -> None:
    """Add to another's provider what can be added, and say in one line which settings have no effect on it.

    Args:
        settings: The settings.
        provider: The provider.
        whose: `existing`, or `file` where OTEL_CONFIG_FILE made it.
    """
    lost = [] if _copies_baggage(settings, provider) else ["baggage_attributes"]
    lost += [name for name in _SETTLED if is_asked_for(settings, name)]
    if lost:
        log.warning("%s, so these settings have no effect: %s; %s", _WHY[whose], ", ".join(lost), _REMEDY[whose])


def _copies_baggage(settings: Settings, provider: trace.TracerProvider) -> bool:
    processor = baggage_attributes(settings)
    add = getattr(provider, "add_span_processor", None)
    if processor is not None and add is not None:
        add(processor)
    return processor is None or add is not None


def is_asked_for(settings: Settings, name: str) -> bool:
    """Say whether somebody chose this setting for meshmw, and not for all telemetry by a standard variable."""
    # What a standard variable says, the other provider has read too.
    by_standard = settings.origins().get(name, "").startswith("OTEL_")
    default = type(settings).model_fields[name].default
    return name in settings.model_fields_set and not by_standard and getattr(settings, name) != default
