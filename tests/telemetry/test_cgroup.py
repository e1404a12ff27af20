"""The memory that a process's cgroups leave it, in both versions, as the kernel shows it to a container."""

from __future__ import annotations

import os

import pytest

from meshmw._telemetry.resource import memory_headroom, read_container, read_text

MB = 1_000_000


@pytest.fixture
def kernel(tmp_path):
    def write(cgroup, **files):
        for path, text in {"proc/self/cgroup": cgroup, **files}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return tmp_path

    return write


def group(directory, version, limit, usage, cache=0):
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = f"anon 5\n{'' if version == 2 else 'total_'}inactive_file {cache}\n"
    files = {names[0]: limit, names[1]: usage, "memory.stat": stat}
    return {f"sys/fs/cgroup/{directory}{name}": text for name, text in files.items()}


def test_version_2_in_a_namespace_of_its_own(kernel):
    assert memory_headroom(kernel("0::/", **group("", 2, 256 * MB, 100 * MB, 20 * MB))) == 176 * MB


def test_version_1_where_the_path_is_the_hosts_and_the_mount_the_containers(kernel):
    files = group("memory/", 1, 100 * MB, 40 * MB, 10 * MB)
    assert memory_headroom(kernel("4:cpu,cpuacct:/x\n9:memory:/kubepods/podx/y\n0::/", **files)) == 70 * MB


def test_the_tightest_of_all_above_decides(kernel):
    files = group("", 2, "max", 0) | group("a/", 2, 80 * MB, 70 * MB) | group("a/b/", 2, 64 * MB, 10 * MB)
    assert memory_headroom(kernel("0::/a/b", **files)) == 10 * MB


@pytest.mark.parametrize(
    "files",
    [{}, group("", 2, "max", 5), group("memory/", 1, 9223372036854771712, 5), group("", 2, "nonsense", "nonsense")],
)
@pytest.mark.parametrize("cgroup", ["0::/", "9:memory:/x", "", "nonsense"])
def test_without_a_limit_there_is_none(cgroup, files, kernel):
    assert memory_headroom(kernel(cgroup, **files)) is None


def test_a_cgroup_beyond_its_limit_has_no_room_and_files_that_tell_nothing_count_as_zero(kernel):
    assert memory_headroom(kernel("0::/", **group("", 2, 10, 50))) == 0
    root = kernel("0::/", **{"sys/fs/cgroup/memory.max": 64 * MB, "sys/fs/cgroup/memory.stat": "inactive_file\n"})
    (root / "sys/fs/cgroup/memory.current").unlink()
    assert memory_headroom(root) == 64 * MB


@pytest.mark.parametrize(
    "line",
    [
        "0::/" + "a/" * 300_000,
        "0::/" + "kubepods" * 100_000,
        "0::/a\0b",
        "0::/../../..",
        "0::/" + "a" * 300,
        "0::/\n" * 99_999,
    ],
)
def test_a_cgroup_that_no_kernel_shows_costs_little_and_tells_nothing(line, kernel, monkeypatch):
    opened = []
    monkeypatch.setattr("meshmw._telemetry.resource.read_text", lambda path: opened.append(path) or read_text(path))
    root = kernel(line)
    assert memory_headroom(root) is None
    assert tuple(read_container(root)) == ("", "", "")
    assert len(opened) < 5_000


@pytest.mark.parametrize("digits", ["9" * 5_000, "\N{SUPERSCRIPT TWO}"])
def test_a_number_that_no_kernel_writes_is_none(digits, kernel):
    assert memory_headroom(kernel("0::/", **group("", 2, digits, digits, digits))) is None
    assert memory_headroom(kernel("0::/", **group("", 2, 64 * MB, digits, digits))) == 64 * MB


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "pipe") == ""
    with open(os.open(tmp_path / "pipe", os.O_RDWR), "wb"):
        assert read_text(tmp_path / "pipe") == ""
