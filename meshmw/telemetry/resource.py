"""The resource: which service the spans come from."""

from __future__ import annotations

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.util.types import AttributeValue

from meshmw.settings import Settings, resource_attributes
from meshmw.telemetry.kubernetes import KubernetesResourceDetector


def known_attributes(settings: Settings) -> dict[str, AttributeValue]:
    """Return the settings' service, over OTEL_RESOURCE_ATTRIBUTES, over Kubernetes."""
    service = {SERVICE_NAME: settings.service_name, SERVICE_VERSION: settings.service_version}
    return {
        **KubernetesResourceDetector(labels=settings.kubernetes_labels).detect().attributes,
        **resource_attributes(),
        **{name: value for name, value in service.items() if value is not None},
    }


def build_resource(settings: Settings) -> Resource:
    """Return what is known of the service, over what the SDK's own detectors find."""
    return Resource.create(known_attributes(settings))
