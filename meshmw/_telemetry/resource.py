"""The resource: which service the spans come from, and where in Kubernetes it runs, without a call to the API server.

The settings' service wins over OTEL_RESOURCE_ATTRIBUTES, and that over what Kubernetes shows: variables, the files of a
downward API volume, and what the kernel tells of the container around this process: its ids, its name, and the memory
that is left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from opentelemetry.sdk.resources import SERVICE_NAME, Resource, ResourceDetector
from opentelemetry.util.types import AttributeValue

from meshmw._regex import compiled_late
from meshmw.settings import (
    RESOURCE_VARIABLES,
    Settings,
    first_of,
    hidden,
    is_true,
    readable,
    resource_attributes,
)

# Under these names people hand in what the downward API knows; the last ones are those of OpenTelemetry's operator.
_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "k8s.cluster.name": ("K8S_CLUSTER_NAME",),
    "k8s.namespace.name": ("K8S_NAMESPACE", "K8S_NAMESPACE_NAME", "K8S_POD_NAMESPACE", "POD_NAMESPACE"),
    "k8s.node.name": ("K8S_NODE_NAME", "NODE_NAME", "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME"),
    "k8s.pod.name": ("K8S_POD_NAME", "POD_NAME", "OTEL_RESOURCE_ATTRIBUTES_POD_NAME"),
    "k8s.pod.uid": ("K8S_POD_UID", "POD_UID", "OTEL_RESOURCE_ATTRIBUTES_POD_UID"),
    "k8s.pod.ip": ("K8S_POD_IP", "POD_IP"),
    "k8s.container.name": ("K8S_CONTAINER_NAME",),
    "k8s.deployment.name": ("K8S_DEPLOYMENT_NAME",),
}
# Nobody sets one of these outside Kubernetes, as they do `POD_NAME` or `NODE_NAME`.
_CERTAIN_VARIABLES: Final = ("KUBERNETES_SERVICE_HOST", *(names[0] for names in _VARIABLES.values()))
# Any of these is in a container because a kubelet put it there.
_TOKEN: Final = "var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  # a directory
_PODINFO: Final = "etc/podinfo"
_HOSTS: Final = "etc/hosts"
# The kubelet's first line in a pod that has its own network; with the node's network the hostname is the node's.
_MANAGED_HOSTS: Final = "# Kubernetes-managed hosts file."

_ANNOTATION: Final = "resource.opentelemetry.io/"
_APP_LABEL: Final = "app.kubernetes.io/"
# The alphabet of generated names has no vowels, and no 0, 1 and 3 (k8s.io/apimachinery/pkg/util/rand).
_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"
_DEPLOYMENT_POD: Final = compiled_late(rf"(.+)-(?=[0-9]*[a-z])({_SAFE}{{6,10}})-{_SAFE}{{5}}")
_CRON_JOB_RUN: Final = compiled_late(r"(.+)-[0-9]{8,10}")
# The order in which a name of what is around the process becomes the service's name.
_NAMING: Final = ("deployment", "replicaset", "statefulset", "daemonset", "cronjob", "job", "pod", "container")

# The kubelet writes Go's `%v=%q`: an interpreted string literal, of printable characters and these escapes.
_LINE: Final = compiled_late(r'^([^=\n]+)="((?:[^"\\\n]|\\.)*)"$', re.MULTILINE)
_ESCAPE: Final = compiled_late(r"((?:\\x[0-9a-f]{2})+)|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|\\(.)")
_SIMPLE_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
# A DNS subdomain, which every name in Kubernetes is.
_LONGEST_NAME: Final = 253
# The kubelet cuts a longer pod name off here.
_LONGEST_HOSTNAME: Final = 63

_UID = "[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
# /kubepods/burstable/pod<uid>/<id>, /kubepods-burstable-pod<uid, _ for ->.slice/<runtime>-<id>.scope, and from another
# cgroup namespace /../../pod<uid>/<id>.
_CGROUP_POD: Final = compiled_late(rf"[/-]pod({_UID})(?=[./]|$)")
# One directory of a cgroup's path that bears a container's name:
#   <id>, docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope, or another runtime's
#   <slice>:cri-containerd:<id>: containerd that was not told of systemd's driver
#   <task>-<number>: Fargate, 1.4.0 and later
# Not conmon, which watches over a container of CRI-O's or podman's, nor another unit of systemd's than a scope.
_CGROUP_CONTAINER: Final = compiled_late(
    r"(?!.*conmon-)(?:.*[-:])?([0-9a-f]{64})(?:\.(?!(?:mount|service|slice)$)[a-z]+)?|([0-9a-f]{32}-[0-9]{1,20})"
)
_SHORTEST_ID: Final = 34
# Cloud Foundry's are shorter, so the directory above has to say whose it is.
_GARDEN_CONTAINER: Final = compiled_late(r"/garden/([0-9a-f]{8}(?:-[0-9a-f]{4}){4})(?=/|$)")
_PODS: Final = "/pods/"
# The kubelet mounts /etc/hosts and the termination log out of the pod's own directory, whatever the cgroups show.
_MOUNTED_POD: Final = compiled_late(rf"/pods/({_UID})/")
_MOUNTED_NAME: Final = compiled_late(rf"/pods/{_UID}/containers/([a-z0-9][a-z0-9-]{{0,62}})/[0-9a-f]+$")
# Where Docker, nerdctl and podman keep the files that they mount into each container, and CRI-O what it mounts there.
_MOUNTED_CONTAINER: Final = compiled_late(r"/(?:overlay-)?containers/(?:[^/]+/)?([0-9a-f]{64})/")
# These are the container's own. The others may be those of a container whose network it shares.
_OWN_MOUNTS: Final = ("/run/secrets", "/etc/passwd", "/etc/group")
_MOUNTS: Final = (*_OWN_MOUNTS, "/run/.containerenv", "/etc/hostname", "/etc/resolv.conf", "/etc/hosts")
# A pod that the kubelet has from a file is called by a hash without dashes.
_KUBELET: Final = compiled_late(r"/pods/[0-9a-f-]{32,36}/")

# cgroup v1 says "no limit" with the largest number of pages, and v2 with the word max.
_UNLIMITED: Final = 1 << 60
# Annotations end at 256 KiB; a mountinfo of a node with many volumes is longer than that.
_LONGEST: Final = 1_048_576
# No path of the kernel's is longer, no process is in more hierarchies, and no number has more digits.
_LONGEST_LINE: Final = 4_096
_MOST_GROUPS: Final = 64
_MOST_DIGITS: Final = 20


def build_resource(settings: Settings) -> Resource:
    """Return what is known of the service, over what the SDK's own detectors find."""
    with readable(*RESOURCE_VARIABLES):
        known = known_attributes(settings)
        # The SDK would read these again in its own way: it decodes no key, and keeps what the settings have refused.
        with hidden("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"):
            return Resource.create(known)


def known_attributes(settings: Settings) -> dict[str, AttributeValue]:
    """Return the settings' service, over OTEL_RESOURCE_ATTRIBUTES, over Kubernetes, over the container's id."""
    in_kubernetes = KubernetesResourceDetector(labels=settings.kubernetes_labels).detect().attributes
    detected = {**_container_id(), **in_kubernetes}
    # An empty attribute may be asked for, and does not hide what is known.
    given = {key: value for key, value in resource_attributes().items() if value or key not in detected}
    return {**detected, **given, **({} if settings.service_name is None else {SERVICE_NAME: settings.service_name})}


def _container_id(root: Path = Path("/")) -> dict[str, str]:
    # Docker, podman and ECS have containers too.
    found = read_container(root).id
    return {"container.id": found} if found else {}


class KubernetesResourceDetector(ResourceDetector):
    """Detects `k8s.*`, `container.id` and `service.*` from the downward API, mounts, cgroups and the hostname.

    Also registered as `meshmw_k8s` for OTEL_EXPERIMENTAL_RESOURCE_DETECTORS. A value that nothing tells is left out.
    Outside Kubernetes it looks at a few variables and for three files, and finds nothing.

    Args:
        raise_on_error: As OpenTelemetry's detectors take it.
        root: The directory below which `/etc`, `/proc` and `/var` are looked for.
        labels: Whether the labels `app.kubernetes.io/instance`, `name` and `version` name the service; None leaves it
            to `MESHMW_KUBERNETES_LABELS`.
    """

    def __init__(self, raise_on_error: bool = False, *, root: Path = Path("/"), labels: bool | None = None) -> None:
        super().__init__(raise_on_error)
        self._root = root
        self._labels = is_true("MESHMW_KUBERNETES_LABELS") if labels is None else labels

    def detect(self) -> Resource:
        """Return what is known of this pod; nothing outside Kubernetes."""
        return Resource(self._detected() if self._in_kubernetes() else {})

    def _in_kubernetes(self) -> bool:
        if first_of(*_CERTAIN_VARIABLES):
            return True
        return (self._root / _PODINFO).is_dir() or (self._root / _TOKEN).is_dir() or self._hosts().startswith("# Kube")

    def _detected(self) -> dict[str, str]:
        values = {name: first_of(*variables) for name, variables in _VARIABLES.items()}
        # Bytes that are no text would keep the attribute from the collector, and be complained of at every export.
        given = {name: text.encode("utf-8", "replace").decode() for name, text in values.items() if text}
        podinfo, container = read_podinfo(self._root / _PODINFO), read_container(self._root)
        found = {key: text for key, text in self._in_files(podinfo, container).items() if text} | given
        found = workload_attributes(found.get("k8s.pod.name", ""), podinfo.labels) | found
        return found | service_attributes(found, podinfo.labels if self._labels else {}, podinfo.annotations)

    def _in_files(self, podinfo: PodInfo, container: Container) -> dict[str, str]:
        # A downward API volume, made for the purpose, before what the kernel lets be seen.
        return {
            "k8s.namespace.name": podinfo.namespace or read_text(self._root / _TOKEN / "namespace").strip(),
            "k8s.pod.name": podinfo.name or self._hostname(),
            "k8s.pod.uid": podinfo.uid or container.pod_uid,
            "k8s.container.name": container.name,
            "container.id": container.id,
        }

    def _hostname(self) -> str:
        # The pod's name, where it is not the node's and not cut off.
        name = read_text(self._root / "proc/sys/kernel/hostname").strip()
        managed = self._hosts().splitlines()[:1] == [_MANAGED_HOSTS]
        return name if managed and len(name) < _LONGEST_HOSTNAME else ""

    def _hosts(self) -> str:
        return read_text(self._root / _HOSTS)


def workload_attributes(pod: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the `k8s.*.name` attributes of the workloads that a pod belongs to, as far as its name and labels tell.

    Labels that controllers set are exact. Without them, only the name of a Deployment's pod tells enough.
    """
    if template := labels.get("pod-template-hash"):
        replica_set = pod.rpartition("-")[0]
        deployment = replica_set.removesuffix(f"-{template}")
        return _named(replicaset=replica_set, deployment=deployment) if deployment != replica_set else {}
    job = labels.get("batch.kubernetes.io/job-name") or labels.get("job-name")
    if job:
        cron = _CRON_JOB_RUN().fullmatch(job)
        return _named(job=job, cronjob=cron.group(1) if cron else "")
    if "statefulset.kubernetes.io/pod-name" in labels:
        return _named(statefulset=pod.rpartition("-")[0])
    if "controller-revision-hash" in labels:
        return _named(daemonset=pod.rpartition("-")[0])
    found = _DEPLOYMENT_POD().fullmatch(pod)
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
    app = {name: labels.get(f"{_APP_LABEL}{name}", "") for name in ("instance", "name", "version")}
    workloads = (kubernetes.get(f"k8s.{kind}.name", "") for kind in _NAMING)
    instance = [kubernetes.get(f"k8s.{kind}.name", "") for kind in ("namespace", "pod", "container")]
    found = {
        "service.name": next(filter(None, (app["instance"], app["name"], *workloads)), ""),
        "service.namespace": instance[0],
        "service.version": app["version"],
        "service.instance.id": ".".join(instance) if all(instance) else "",
    }
    asked = {key.removeprefix(_ANNOTATION): text for key, text in annotations.items() if key.startswith(_ANNOTATION)}
    return {key: text for key, text in (found | asked).items() if key and text}


class PodInfo(NamedTuple):
    """Holds what a downward API volume says; what it does not say is empty.

    Attributes:
        name: The pod's name (`metadata.name`).
        namespace: Its namespace.
        uid: Its UID.
        labels: Its labels.
        annotations: Its annotations.
    """

    name: str
    namespace: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]


def read_podinfo(directory: Path) -> PodInfo:
    """Return what stands in the files `name`, `namespace`, `uid`, `labels` and `annotations` of a directory."""
    name, namespace, uid = (_name(read_text(directory / file).strip()) for file in ("name", "namespace", "uid"))
    labels, annotations = (parse_map(read_text(directory / file)) for file in ("labels", "annotations"))
    return PodInfo(name, namespace, uid, labels, annotations)


def _name(text: str) -> str:
    return text if text.isprintable() and len(text) <= _LONGEST_NAME else ""


def parse_map(text: str) -> dict[str, str]:
    """Return the keys and values of `key="value"` lines; a line that is none is left out."""
    return {key: _unquoted(value) for key, value in _LINE().findall(text)}


def _unquoted(text: str) -> str:
    return _ESCAPE().sub(_character, text) if "\\" in text else text


def _character(escape: re.Match[str]) -> str:
    raw, short, long, simple = escape.groups()
    if raw:
        return bytes.fromhex(raw.replace("\\x", "")).decode("utf-8", "replace")
    if simple:
        return _SIMPLE_ESCAPES.get(simple, simple)
    code = int(short or long, 16)
    return chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else "\ufffd"


class Container(NamedTuple):
    """Holds what the kernel tells of this container; what it does not tell is empty.

    Attributes:
        pod_uid: The UID of its pod.
        id: Its own id, as its runtime spells it: with most of them 64 hexadecimal digits.
        name: Its name in the pod's specification.
    """

    pod_uid: str
    id: str
    name: str


def read_container(root: Path) -> Container:
    """Return what `/proc/self/cgroup` and `/proc/self/mountinfo` below *root* tell.

    Under cgroup v2 a container sees its own cgroup as `/`. Then the mounts still name the pod, and with most runtimes
    the container; with containerd in Kubernetes no file tells the container's id.
    """
    cgroups = _cgroups(root)
    mounts = _mounts(root)
    sources = [source for source, _ in mounts]
    pod = _first(_CGROUP_POD, cgroups, "pod") or _first(_MOUNTED_POD, sources, _PODS)
    # Before cgroup v2 each hierarchy is mounted from the container's own directory.
    hierarchies = [source for source, point in mounts if point.startswith("/sys/fs/cgroup")]
    found = _id_of(line.split(":", 2)[-1] for line in cgroups) or _id_of(hierarchies) or _mounted_id(mounts)
    return Container(pod.replace("_", "-"), found, _first(_MOUNTED_NAME, sources, _PODS))


def _id_of(paths: Iterable[str]) -> str:
    """Return the id in the longest of these paths that has one: a container may run within another."""
    found = {path: name for path in paths if (name := _id_in(path))}
    return found[max(found, key=len)] if found else ""


def _id_in(path: str) -> str:
    # From the end, where the innermost container is. A process may be in a group below its container's.
    for directory in reversed(path.split("/")):
        if len(directory) >= _SHORTEST_ID and (match := _CGROUP_CONTAINER().fullmatch(directory)):
            return match[1] or match[2]
    return _first(_GARDEN_CONTAINER, [path], "/garden/")


def _mounted_id(mounts: list[tuple[str, str]]) -> str:
    found = {point: match[1] for source, point in mounts if (match := _MOUNTED_CONTAINER().search(source))}
    # In a pod the others are those of the sandbox, which has an id of its own.
    in_pod = any(_PODS in source and _KUBELET().search(source) for source, _ in mounts)
    return next((found[each] for each in (_OWN_MOUNTS if in_pod else _MOUNTS) if each in found), "")


def _mounts(root: Path) -> list[tuple[str, str]]:
    """Return, of each mount, its root within its filesystem and where it is mounted (man 5 proc, fields 4 and 5)."""
    lines = map(str.split, read_text(root / "proc/self/mountinfo").splitlines())
    return [(fields[3], fields[4]) for fields in lines if fields[4:] and len(fields[3]) <= _LONGEST_LINE]


def _cgroups(root: Path) -> list[str]:
    lines = read_text(root / "proc/self/cgroup").splitlines()[:_MOST_GROUPS]
    return [line.strip().removesuffix(" (deleted)") for line in lines if len(line) <= _LONGEST_LINE]


def _first(pattern: Callable[[], re.Pattern[str]], texts: list[str], word: str) -> str:
    # To look for the word first spares compiling a pattern that matches nothing here.
    return next((found.group(1) for text in texts if word in text and (found := pattern().search(text))), "")


def memory_headroom(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process's cgroups still let it take, or None where none of them has a limit.

    What the kernel would give back, the inactive page cache, counts as free, as it does for the kubelet.
    """
    found = [free for group in _memory_groups(root) if (free := _headroom(group)) is not None]
    return max(0, min(found)) if found else None


def _memory_groups(root: Path) -> Iterator[Path]:
    """Yield the directories of this process's memory cgroup and of all above it, those of v1 first."""
    for line in _cgroups(root):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        below = PurePosixPath(path.lstrip("/"))
        yield from (mounted / each for each in (below, *below.parents))


def _headroom(group: Path) -> int | None:
    for limit_file, usage_file, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(read_text(group / limit_file))
        if limit is not None and limit < _UNLIMITED:
            return limit - (_number(read_text(group / usage_file)) or 0) + _reclaimable(group, cache)
    return None


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def _reclaimable(group: Path, name: str) -> int:
    fields = (line.split() for line in read_text(group / "memory.stat").splitlines())
    return next((_number(each[1]) or 0 for each in fields if each[:1] == [name] and each[1:]), 0)


def read_text(path: Path) -> str:
    """Return a file's text, at most 1 MiB of it, or an empty text where it cannot be read."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:  # a Path's own takes no opener
            return (file.read(_LONGEST) or b"").decode("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""


def _open_at_once(path: str, flags: int) -> int:
    # A pipe in a file's place would be waited for, for ever; Windows has none.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
