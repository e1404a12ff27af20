"""The resource: which service the spans come from."""

from __future__ import annotations

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource

from meshmw.settings import Settings, resource_attributes
from meshmw.telemetry.kubernetes import KubernetesResourceDetector


def build_resource(settings: Settings) -> Resource:
    """Return the settings' service, over OTEL_RESOURCE_ATTRIBUTES, over Kubernetes, over the SDK's own detectors."""
    service = {SERVICE_NAME: settings.service_name, SERVICE_VERSION: settings.service_version}
    return Resource.create(
        {
            **KubernetesResourceDetector(labels=settings.kubernetes_labels).detect().attributes,
            **resource_attributes(),
            **{name: value for name, value in service.items() if value is not None},
        }
    )
