"""A container's id in every runtime's spelling, as `/proc/self/cgroup` and `/proc/self/mountinfo` show it.

The lines are those of other detectors' tests and of public reports: OpenTelemetry's for Java, .NET and Go, Datadog's,
SPIRE's, Falco's, Elastic's, and the issues of opentelemetry-js-contrib, podman, kind, amazon-ecs-agent.
"""

from __future__ import annotations

import time

import pytest

from meshmw._telemetry import resource
from meshmw._telemetry.resource import build_resource, read_container
from meshmw.settings import Settings

ID, OUTER = "f2a44bc8e090f93a2b4d7f510bdaff0615ad52906e3287ee956dcf5aa5012a91", "93" * 32
UID = "0c4fe2c4-8d1e-4f9a-9d3b-6a1f2b3c4d5e"
UID_OF_SYSTEMD = UID.replace("-", "_")
FARGATE = "34dc0b5e626f2c5c4c5170e34b10e765-1234567890"
GARDEN = "6f265890-5165-7fab-6b52-18d1"


@pytest.fixture
def read(tmp_path):
    """Return a function that reads what the kernel shows in these two files."""

    def look(cgroup="", mountinfo=""):
        directory = tmp_path / "proc" / "self"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup").write_text(cgroup)
        (directory / "mountinfo").write_text(mountinfo)
        return read_container(tmp_path)

    return look


BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_OF_SYSTEMD}.slice"
IN_A_POD = {
    "cgroupfs": f"/kubepods/burstable/pod{UID}/{ID}",
    "guaranteed": f"/kubepods/pod{UID}/{ID}",
    "Docker Desktop": f"/kubepods/kubepods/besteffort/pod{UID}/{ID}",
    "containerd, systemd": f"{BURSTABLE}/cri-containerd-{ID}.scope",
    "containerd with cgroupfs below a slice": f"/kubepods-burstable-pod{UID_OF_SYSTEMD}.slice:cri-containerd:{ID}",
    "the same, in the service's own group": (
        f"/system.slice/containerd.service/kubepods-pod{UID_OF_SYSTEMD}.slice:cri-containerd:{ID}"
    ),
    "containerd, a directory more": f"/kubepods/burstable/pod{UID}.slice/cri-containerd/{ID}",
    "CRI-O, systemd": f"{BURSTABLE}/crio-{ID}.scope",
    "CRI-O, cgroupfs": f"/kubepods/besteffort/pod{UID}/crio-{ID}",
    "CRI-O with crun": f"{BURSTABLE}/crio-{ID}.scope/container",
    "Docker by cri-dockerd": f"{BURSTABLE}/docker-{ID}.scope",
    "kind": f"/docker/{OUTER}/kubepods/besteffort/pod{UID}/{ID}",
    "kind, systemd": (
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
        f"kubelet-kubepods-burstable-pod{UID_OF_SYSTEMD}.slice/cri-containerd-{ID}.scope"
    ),
    "k3s in Docker": f"/docker/{OUTER}/kubepods/burstable/pod{UID}/{ID}",
    "minikube with Docker and CRI-O": f"/docker/{OUTER}{BURSTABLE}/crio-{ID}.scope",
    "systemd in the container": f"{BURSTABLE}/cri-containerd-{ID}.scope/init.scope",
    "a runtime in the container": f"{BURSTABLE}/cri-containerd-{ID}.scope/system.slice/containerd.service",
    "seen from another cgroup namespace": f"/../../../burstable/pod{UID}/{ID}",
    "EKS Fargate": f"/ecs/{OUTER[:32]}/{OUTER[:32]}-1/kubepods/burstable/pod{UID}/{ID}",
}
ALONE = {
    "Docker": f"/docker/{ID}",
    "Docker, systemd": f"/system.slice/docker-{ID}.scope",
    "Docker, rootless": f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
    "Docker CE": f"/docker-ce/docker/{ID}",
    "Docker of old": f"/{ID}",
    "Docker in Docker": f"/docker/{OUTER}/docker/{ID}",
    "an odd suffix": f"/podruntime/docker/kubepods/crio-{ID}.stuff",
    "podman": f"/machine.slice/libpod-{ID}.scope",
    "podman with crun": f"/machine.slice/libpod-{ID}.scope/container",
    "podman, cgroupfs": f"/libpod_parent/libpod-{ID}",
    "podman, cgroupfs with crun": f"/libpod_parent/libpod-{ID}/ctr",
    "podman, rootless": f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
    "podman, in a pod": f"/machine.slice/machine-libpod_pod_{OUTER}.slice/libpod-{ID}.scope",
    "podman of old": f"/libpod_parent/libpod-conmon-{ID}/{ID}",
    "CRI-O seen from elsewhere": f"/../crio-{ID}.scope",
    "nerdctl": f"/system.slice/nerdctl-{ID}.scope",
    "containerd": f"/default/{ID}",
    "ECS": f"/ecs/test-ecs-classic/5a0d5ceddf6c44c1928d367a815d890f/{ID}",
    "ECS with cgroup v2": f"/ecstasks.slice/ecstasks-5a0d5ceddf6c44c1928d367a815d890f.slice/docker-{ID}.scope",
    "Fargate before 1.4": f"/ecs/55091c13-b8cf-4801-b527-f4601742204d/{ID}",
    "AWS Batch": f"/AWSBatch/5a0d5ceddf6c44c1928d367a815d890f/{ID}",
    "gone meanwhile": f"/docker/{ID} (deleted)",
}


@pytest.mark.parametrize("path", IN_A_POD.values(), ids=IN_A_POD)
@pytest.mark.parametrize("version", ["1:name=systemd:", "9:cpu,cpuacct:", "0::"])
def test_a_cgroup_names_the_container_and_its_pod(version, path, read):
    assert read(f"{version}{path}\n")[:2] == (UID, ID)


@pytest.mark.parametrize("path", ALONE.values(), ids=ALONE)
@pytest.mark.parametrize("version", ["1:name=systemd:", "9:cpu,cpuacct:", "0::"])
def test_a_cgroup_names_a_container_that_is_in_no_pod(version, path, read):
    assert read(f"{version}{path}\n")[:2] == ("", ID)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/ecs/55091c13-b8cf-4801-b527-f4601742204d/{FARGATE}", FARGATE),
        (f"/ecs/{FARGATE}", FARGATE),
        (f"/garden/{GARDEN}", GARDEN),
        (f"/system.slice/garden.service/garden/{GARDEN}", GARDEN),
    ],
)
def test_ids_of_another_form(path, expected, read):
    assert read(f"9:memory:{path}\n").id == expected


@pytest.mark.parametrize(
    "line",
    [
        f"13:name=systemd:/docker/{ID[:-1]}",
        f"13:name=systemd:/docker/{ID}0",
        f"13:name=systemd:/docker/{ID[:-1]}z",
        f"13:name=systemd:/docker/{ID.upper()}",
        f"0::/system.slice/var-lib-docker-containers-{ID}-shm.mount",
        f"0::/system.slice/run-{ID}.mount",
        f"0::/system.slice/container-{ID}.service",
        f"0::/machine.slice/pod-{ID}.slice",
        f"0::/kubepods.slice/crio-conmon-{ID}.scope",
        f"0::/user.slice/libpod-conmon-{ID}.scope",
        f"0::/user.slice/user-1000.slice/vte-spawn-{UID}.scope",
        f"0::/kubepods/pod{UID}",
        "0::/kubepods/pod2732ca68f6358eba7703fb6f82a25c94",
        "1:name=systemd:/user.slice/user-0.slice/session-83.scope",
        f"9:memory:/process_api/{OUTER[:32]}",
        "0::/system.slice/containerd.service",
        "0::/",
        "nonsense",
        "",
    ],
)
def test_what_names_no_container(line, read):
    assert read(f"{line}\n").id == ""


def test_every_line_is_looked_at_and_the_innermost_container_counts(read):
    """On a node of kind with cgroup v1 the kubelet does not use each hierarchy."""
    lines = [
        "13:misc:/",
        f"12:rdma:/docker/{OUTER}",
        f"11:memory:/docker/{OUTER}/kubepods/pod{UID}/{ID}",
        f"10:pids:/docker/{OUTER}",
        "0::/system.slice/containerd.service",
    ]
    for order in (lines, lines[::-1]):
        assert read("\n".join(order)) == (UID, ID, "")
    assert read(f"\r\n   13:name=systemd:/docker/{ID}   \r\n").id == ID


KUBELET = f"""\
2021 2002 253:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw,relatime - xfs /dev/mapper/root rw
2022 2004 253:1 /var/lib/kubelet/pods/{UID}/containers/shop/82b03b66 /dev/termination-log rw - xfs /dev/mapper/root rw
"""
OVERLAY = f"1 0 0:8 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/X,upperdir=/x/{OUTER}/diff\n"


def mounted(*pairs):
    return "".join(f"10 9 0:25 {source} {point} rw - tmpfs tmpfs rw\n" for source, point in pairs)


class TestMounts:
    """Under cgroup v2, in a namespace of its own, the cgroup is `/`."""

    @pytest.mark.parametrize(
        "home",
        [
            f"/docker/containers/{ID}",
            f"/var/lib/docker/containers/{ID}",
            f"/home/me/.local/share/docker/containers/{ID}",
            f"/containers/{ID}",
            f"/var/lib/nerdctl/1935db59/containers/default/{ID}",
            f"/containers/overlay-containers/{ID}/userdata",
            f"/var/lib/containers/storage/overlay-containers/{ID}/userdata",
        ],
    )
    @pytest.mark.parametrize("file", ["hostname", "hosts", "resolv.conf"])
    def test_the_files_that_a_runtime_mounts_name_the_container(self, file, home, read):
        assert read("0::/\n", OVERLAY + mounted((f"{home}/{file}", f"/etc/{file}"))).id == ID

    def test_podmans_own_file_counts_before_those_of_the_network(self, read):
        def at(name, file):
            return f"/containers/overlay-containers/{name}/userdata/{file}"

        mounts = mounted(
            (at(OUTER, "hosts"), "/etc/hosts"),
            (at(OUTER, "hostname"), "/etc/hostname"),
            (at(ID, ".containerenv"), "/run/.containerenv"),
        )
        assert read("0::/\n", mounts).id == ID

    @pytest.mark.parametrize(
        "path",
        [
            f"/docker/{ID}",
            f"/system.slice/containerd.service/kubepods-pod{UID_OF_SYSTEMD}.slice:cri-containerd:{ID}",
            f"{BURSTABLE}/crio-{ID}.scope",
        ],
    )
    def test_a_hierarchy_of_version_1_is_mounted_from_the_containers_group(self, path, read):
        mounts = mounted(("/", "/sys/fs/cgroup"), (path, "/sys/fs/cgroup/memory"))
        sandbox = mounted((f"/containers/storage/overlay-containers/{OUTER}/userdata/hostname", "/etc/hostname"))
        assert read("0::/\n", mounts + sandbox + KUBELET).id == ID

    @pytest.mark.parametrize("file", ["hostname", "resolv.conf", ".containerenv"])
    @pytest.mark.parametrize(
        "home",
        [
            f"/docker/containers/{OUTER}",
            f"/docker/volumes/minikube/_data/lib/docker/containers/{OUTER}",
            f"/containers/storage/overlay-containers/{OUTER}/userdata",
            f"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{OUTER}",
        ],
    )
    @pytest.mark.parametrize("pod", [UID, "2732ca68f6358eba7703fb6f82a25c94"])
    def test_in_a_pod_these_files_are_the_sandboxs(self, pod, home, file, read):
        """A wrong id is worse than none: open-telemetry/opentelemetry-java-instrumentation#8462."""
        point = "/run/.containerenv" if file == ".containerenv" else f"/etc/{file}"
        assert read("0::/\n", mounted((f"{home}/{file}", point)) + KUBELET.replace(UID, pod)).id == ""

    @pytest.mark.parametrize("file", ["run/secrets", "passwd", "group"])
    def test_in_a_pod_cri_o_mounts_some_from_the_containers_own_directory(self, file, read):
        def at(name, file):
            return f"/containers/storage/overlay-containers/{name}/userdata/{file}"

        point = "/run/secrets" if file == "run/secrets" else f"/etc/{file}"
        mounts = mounted((at(OUTER, "hostname"), "/etc/hostname"), (at(ID, file), point))
        assert read("0::/\n", mounts + KUBELET) == (UID, ID, "shop")

    def test_what_an_application_mounts_names_no_container(self, read):
        mounts = mounted((f"/var/lib/docker/containers/{OUTER}/x.log", "/logs/x.log"))
        assert read("0::/\n", OVERLAY + mounts).id == ""


@pytest.mark.parametrize(
    "part", ["-", "a-", f"{ID[:-1]}-", f"{ID[:-1]}:", "containers/", "/containers/a", f"{ID}/", "pods/", "garden/"]
)
def test_lines_that_no_kernel_writes_take_no_time(part, read):
    long = "/" + part * (1_000_000 // len(part))
    began = time.process_time()
    read("\n".join(f"0::{long[:4_000]}" for _ in range(64)), mounted((long, "/sys/fs/cgroup"), (long, "/etc/hosts")))
    read("", "".join(mounted((long[:4_000], "/sys/fs/cgroup")) for _ in range(240)))
    assert time.process_time() - began < 10


def test_outside_of_kubernetes_the_container_is_known_too(monkeypatch):
    monkeypatch.setattr(resource, "read_container", lambda root: read_container(root)._replace(id=ID))
    assert build_resource(Settings()).attributes["container.id"] == ID
    monkeypatch.setattr(resource, "read_container", lambda root: read_container(root)._replace(id=""))
    assert "container.id" not in build_resource(Settings()).attributes
