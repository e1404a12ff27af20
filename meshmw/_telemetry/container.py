"""What the kernel tells of the container around this process: its ids, its name, and the memory that is left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_UID = "[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
# cgroupfs: /kubepods/burstable/pod<uid>/<id>; systemd: /kubepods-burstable-pod<uid, _ for ->.slice/<runtime>-<id>.scope
_CGROUP_POD: Final = re.compile(rf"kubepods.*pod({_UID})")
_CGROUP_CONTAINER: Final = re.compile(r"kubepods.*/(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?(?:/|$)")
# The kubelet mounts /etc/hosts and the termination log out of the pod's own directory, whatever the cgroups show.
_MOUNTED_POD: Final = re.compile(rf"/pods/({_UID})/")
_MOUNTED_CONTAINER: Final = re.compile(rf"/pods/{_UID}/containers/([a-z0-9][a-z0-9-]{{0,62}})/[0-9a-f]+$")

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
        id: Its own id, 64 hexadecimal digits.
        name: Its name in the pod's specification.
    """

    pod_uid: str
    id: str
    name: str


def read_container(root: Path) -> Container:
    """Return what `/proc/self/cgroup` and `/proc/self/mountinfo` below *root* tell.

    Under cgroup v2 a container sees its own cgroup as `/`; then the mounts still name pod and container, and no file
    tells the container's id.
    """
    cgroups = _cgroups(root)
    # man 5 proc: mount id, parent id, device, root of the mount within its filesystem, mount point, ...
    mounts = map(str.split, read_text(root / "proc/self/mountinfo").splitlines())
    mounted = [fields[3] for fields in mounts if fields[4:]]
    pod = _first(_CGROUP_POD, cgroups) or _first(_MOUNTED_POD, mounted)
    return Container(pod.replace("_", "-"), _first(_CGROUP_CONTAINER, cgroups), _first(_MOUNTED_CONTAINER, mounted))


def _cgroups(root: Path) -> list[str]:
    lines = read_text(root / "proc/self/cgroup").splitlines()
    return [line for line in lines[:_MOST_GROUPS] if len(line) <= _LONGEST_LINE]


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
