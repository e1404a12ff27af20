"""What the kernel tells of the container around this process: its ids, its name, and the memory that is left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_UID = "[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
# /kubepods/burstable/pod<uid>/<id>, /kubepods-burstable-pod<uid, _ for ->.slice/<runtime>-<id>.scope, and from another
# cgroup namespace /../../pod<uid>/<id>.
_CGROUP_POD: Final = re.compile(rf"[/-]pod({_UID})(?=[./]|$)")
# One directory of a cgroup's path that bears a container's name:
#   <id>, docker-<id>.scope, cri-containerd-<id>.scope, crio-<id>.scope, libpod-<id>.scope, or another runtime's
#   <slice>:cri-containerd:<id>: containerd that was not told of systemd's driver
#   <task>-<number>: Fargate, 1.4.0 and later
# Not conmon, which watches over a container of CRI-O's or podman's, nor another unit of systemd's than a scope.
_CGROUP_CONTAINER: Final = re.compile(
    r"(?!.*conmon-)(?:.*[-:])?([0-9a-f]{64})(?:\.(?!(?:mount|service|slice)$)[a-z]+)?|([0-9a-f]{32}-[0-9]{1,20})"
)
# Cloud Foundry's are shorter, so the directory above has to say whose it is.
_GARDEN_CONTAINER: Final = re.compile(r"/garden/([0-9a-f]{8}(?:-[0-9a-f]{4}){4})(?=/|$)")
# The kubelet mounts /etc/hosts and the termination log out of the pod's own directory, whatever the cgroups show.
_MOUNTED_POD: Final = re.compile(rf"/pods/({_UID})/")
_MOUNTED_NAME: Final = re.compile(rf"/pods/{_UID}/containers/([a-z0-9][a-z0-9-]{{0,62}})/[0-9a-f]+$")
# Where Docker, nerdctl and podman keep the files that they mount into each container, and CRI-O what it mounts there.
_MOUNTED_CONTAINER: Final = re.compile(r"/(?:overlay-)?containers/(?:[^/]+/)?([0-9a-f]{64})/")
# These are the container's own. The others may be those of a container whose network it shares.
_OWN_MOUNTS: Final = ("/run/secrets", "/etc/passwd", "/etc/group")
_MOUNTS: Final = (*_OWN_MOUNTS, "/run/.containerenv", "/etc/hostname", "/etc/resolv.conf", "/etc/hosts")
# A pod that the kubelet has from a file is called by a hash without dashes.
_KUBELET: Final = re.compile(r"/pods/[0-9a-f-]{32,36}/")

# cgroup v1 says "no limit" with the largest number of pages, and v2 with the word max.
_UNLIMITED: Final = 1 << 60
# Annotations end at 256 KiB; a mountinfo of a node with many volumes is longer than that.
_LONGEST: Final = 1_048_576
# No path of the kernel's is longer, no process is in more hierarchies, and no number has more digits.
_LONGEST_LINE: Final = 4_096
_MOST_GROUPS: Final = 64
_MOST_DIGITS: Final = 20


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
    pod = _first(_CGROUP_POD, cgroups) or _first(_MOUNTED_POD, sources)
    # Before cgroup v2 each hierarchy is mounted from the container's own directory.
    hierarchies = [source for source, point in mounts if point.startswith("/sys/fs/cgroup")]
    found = _id_of(line.split(":", 2)[-1] for line in cgroups) or _id_of(hierarchies) or _mounted_id(mounts)
    return Container(pod.replace("_", "-"), found, _first(_MOUNTED_NAME, sources))


def _id_of(paths: Iterable[str]) -> str:
    """Return the id in the longest of these paths that has one: a container may run within another."""
    found = {path: name for path in paths if (name := _id_in(path))}
    return found[max(found, key=len)] if found else ""


def _id_in(path: str) -> str:
    # From the end, where the innermost container is. A process may be in a group below its container's.
    for directory in reversed(path.split("/")):
        if match := _CGROUP_CONTAINER.fullmatch(directory):
            return match[1] or match[2]
    return _first(_GARDEN_CONTAINER, [path])


def _mounted_id(mounts: list[tuple[str, str]]) -> str:
    found = {point: match[1] for source, point in mounts if (match := _MOUNTED_CONTAINER.search(source))}
    # In a pod the others are those of the sandbox, which has an id of its own.
    in_pod = any(_KUBELET.search(source) for source, _ in mounts)
    return next((found[each] for each in (_OWN_MOUNTS if in_pod else _MOUNTS) if each in found), "")


def _mounts(root: Path) -> list[tuple[str, str]]:
    """Return, of each mount, its root within its filesystem and where it is mounted (man 5 proc, fields 4 and 5)."""
    lines = map(str.split, read_text(root / "proc/self/mountinfo").splitlines())
    return [(fields[3], fields[4]) for fields in lines if fields[4:] and len(fields[3]) <= _LONGEST_LINE]


def _cgroups(root: Path) -> list[str]:
    lines = read_text(root / "proc/self/cgroup").splitlines()[:_MOST_GROUPS]
    return [line.strip().removesuffix(" (deleted)") for line in lines if len(line) <= _LONGEST_LINE]


def _first(pattern: re.Pattern[str], texts: list[str]) -> str:
    return next((found.group(1) for text in texts if (found := pattern.search(text))), "")


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
