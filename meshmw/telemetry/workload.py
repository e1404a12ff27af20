"""What a pod belongs to, and the service's attributes that follow from it.

Knows how Kubernetes' controllers name and label their pods, and OpenTelemetry's rules for service attributes:
https://opentelemetry.io/docs/specs/semconv/non-normative/k8s-attributes/. Must not know where a name came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ANNOTATION: Final = "resource.opentelemetry.io/"
# The alphabet of generated names has no vowels, and no 0, 1 and 3 (k8s.io/apimachinery/pkg/util/rand).
_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"
_OF_DEPLOYMENT: Final = re.compile(rf"(.+)-(?=[0-9]*[a-z])({_SAFE}{{6,10}})-{_SAFE}{{5}}")
_OF_CRON_JOB: Final = re.compile(r"(.+)-[0-9]{8,10}")

# The order in which a name of what is around the process becomes the service's name.
_NAMING: Final = ("deployment", "replicaset", "statefulset", "daemonset", "cronjob", "job", "pod", "container")


def owners(pod: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the `k8s.*.name` attributes of the workloads that a pod belongs to, as far as its name and labels tell.

    Labels that controllers set are exact. Without them, only the name of a Deployment's pod tells enough.
    """
    if template := labels.get("pod-template-hash"):
        replica_set = pod.rpartition("-")[0]
        deployment = replica_set.removesuffix(f"-{template}")
        return _named(replicaset=replica_set, deployment=deployment) if deployment != replica_set else {}
    job = labels.get("batch.kubernetes.io/job-name") or labels.get("job-name")
    if job:
        cron = _OF_CRON_JOB.fullmatch(job)
        return _named(job=job, cronjob=cron.group(1) if cron else "")
    if "statefulset.kubernetes.io/pod-name" in labels:
        return _named(statefulset=pod.rpartition("-")[0])
    if "controller-revision-hash" in labels:
        return _named(daemonset=pod.rpartition("-")[0])
    found = _OF_DEPLOYMENT.fullmatch(pod)
    return _named(deployment=found.group(1), replicaset=f"{found.group(1)}-{found.group(2)}") if found else {}


def _named(**names: str) -> dict[str, str]:
    return {f"k8s.{kind}.name": name for kind, name in names.items() if name}


def service_attributes(
    kubernetes: Mapping[str, str], labels: Mapping[str, str], annotations: Mapping[str, str]
) -> dict[str, str]:
    """Return `service.*`, and whatever else annotations ask for; an annotation wins over all that is derived.

    Args:
        kubernetes: The `k8s.*` attributes.
        labels: The labels that may name the service; none where the user did not ask for that.
        annotations: The pod's annotations, of which those below `resource.opentelemetry.io/` are attributes.
    """
    names = (kubernetes.get(f"k8s.{kind}.name", "") for kind in _NAMING)
    app = "app.kubernetes.io/"
    instance = [kubernetes.get(f"k8s.{kind}.name", "") for kind in ("namespace", "pod", "container")]
    found = {
        "service.name": next(filter(None, (labels.get(f"{app}instance"), labels.get(f"{app}name"), *names)), ""),
        "service.namespace": instance[0],
        "service.version": labels.get(f"{app}version", ""),
        "service.instance.id": ".".join(instance) if all(instance) else "",
    }
    asked = {key.removeprefix(_ANNOTATION): text for key, text in annotations.items() if key.startswith(_ANNOTATION)}
    return {key: text for key, text in (found | asked).items() if key and text}
