"""The resource: which service the spans come from."""

from __future__ import annotations

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource

from meshmw.settings import Settings


def build_resource(settings: Settings) -> Resource:
    """Return the settings' service on top of OTEL_RESOURCE_ATTRIBUTES and the SDK's detectors."""
    service = {SERVICE_NAME: settings.service_name, SERVICE_VERSION: settings.service_version}
    return Resource.create({name: value for name, value in service.items() if value is not None})
