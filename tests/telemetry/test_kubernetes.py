"""Where in Kubernetes a process runs: the downward API, mounts, cgroups of both versions, the hostname; or nowhere.

No kubelet runs here: the files are made as kubelets, containerd and CRI-O write them.
"""

from __future__ import annotations

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.util._importlib_metadata import entry_points

from meshmw._telemetry.provider import build_provider
from meshmw._telemetry.resource import (
    KubernetesResourceDetector,
    build_resource,
    parse_map,
    service_attributes,
    workload_attributes,
)
from meshmw.settings import Settings

UID = "0c4fe2c4-8d1e-4f9a-9d3b-6a1f2b3c4d5e"
ID = "ab" * 32
POD = "checkout-7d9f8b6c5d-x2k4q"

# As a container of containerd sees them on a node with cgroup v2: its own cgroup is the root.
V2_CGROUP = "0::/\n"
MOUNTINFO = f"""\
2131 1876 0:233 / / rw,relatime master:512 - overlay overlay rw,lowerdir=/var/lib/containerd/x/snapshots/12/fs
2150 2131 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw
2157 2131 259:1 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts rw,noatime - ext4 /dev/root rw,discard
2158 2132 259:1 /var/lib/kubelet/pods/{UID}/containers/web-app/5e1a2b3c /dev/termination-log rw - ext4 /dev/root rw
2159 2131 259:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{"cd" * 32}/hostname /etc/hostname rw - ext4 x
short line
"""
V1_CGROUPFS = f"""\
12:memory:/kubepods/burstable/pod{UID}/{ID}
0::/system.slice/containerd.service
"""
SYSTEMD = f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/crio-{ID}.scope\n"
HOSTS = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n10.1.2.3\tcheckout\n"


@pytest.fixture(autouse=True)
def _no_variables_of_this_machine(monkeypatch):
    for name in ("KUBERNETES_SERVICE_HOST", "NODE_NAME", "POD_IP", "POD_NAME", "POD_NAMESPACE", "POD_UID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pod(tmp_path):
    """Return a function that writes files below a root, by their paths, and returns the root."""

    def write(**files):
        for path, text in files.items():
            file = tmp_path / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return tmp_path

    return write


def detected(root, **options):
    return dict(KubernetesResourceDetector(root=root, **options).detect().attributes)


class TestOutside:
    def test_nothing_is_found_and_no_file_of_the_kernel_is_read(self, pod, monkeypatch):
        root = pod(proc__self__mountinfo=MOUNTINFO, proc__self__cgroup=V1_CGROUPFS, etc__hosts="127.0.0.1 localhost\n")
        monkeypatch.setattr("meshmw._telemetry.resource.read_container", lambda root: pytest.fail("read"))
        monkeypatch.setenv("POD_NAME", "a variable that many programs use")
        assert detected(root) == {}

    def test_this_machine_is_outside(self):
        assert KubernetesResourceDetector().detect() == Resource.get_empty()


class TestInside:
    def test_without_any_set_up_mounts_token_and_hostname_tell(self, pod, monkeypatch):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        root = pod(
            proc__self__cgroup=V2_CGROUP,
            proc__self__mountinfo=MOUNTINFO,
            proc__sys__kernel__hostname=POD + "\n",
            etc__hosts=HOSTS,
            **{"var__run__secrets__kubernetes.io__serviceaccount__namespace": "shop"},
        )
        assert detected(root) == {
            "k8s.namespace.name": "shop",
            "k8s.pod.name": POD,
            "k8s.pod.uid": UID,
            "k8s.container.name": "web-app",
            "k8s.deployment.name": "checkout",
            "k8s.replicaset.name": "checkout-7d9f8b6c5d",
            "service.name": "checkout",
            "service.namespace": "shop",
            "service.instance.id": f"shop.{POD}.web-app",
        }

    @pytest.mark.parametrize("cgroup", [V1_CGROUPFS, SYSTEMD])
    def test_cgroups_that_can_be_seen_tell_the_pod_and_the_container(self, cgroup, pod, monkeypatch):
        monkeypatch.setenv("K8S_POD_NAME", "p")
        assert detected(pod(proc__self__cgroup=cgroup)) == {
            "k8s.pod.name": "p",
            "k8s.pod.uid": UID,
            "container.id": ID,
            "service.name": "p",
        }

    def test_variables_win_over_the_volume_and_the_volume_over_the_kernel(self, pod, monkeypatch):
        monkeypatch.setenv("K8S_POD_NAME", "of-variable")
        root = pod(
            etc__podinfo__name="of-volume",
            etc__podinfo__namespace="of-volume\n",
            etc__podinfo__uid="uid-of-volume",
            proc__self__mountinfo=MOUNTINFO,
        )
        found = detected(root)
        assert [found[f"k8s.{name}"] for name in ("pod.name", "namespace.name", "pod.uid", "container.name")] == [
            "of-variable",
            "of-volume",
            "uid-of-volume",
            "web-app",
        ]

    @pytest.mark.parametrize(
        ("variable", "attribute"),
        [
            ("K8S_NODE_NAME", "k8s.node.name"),
            ("NODE_NAME", "k8s.node.name"),
            ("K8S_NAMESPACE", "k8s.namespace.name"),
            ("POD_NAMESPACE", "k8s.namespace.name"),
            ("POD_IP", "k8s.pod.ip"),
            ("OTEL_RESOURCE_ATTRIBUTES_POD_UID", "k8s.pod.uid"),
        ],
    )
    def test_the_common_variables_of_the_downward_api_are_read(self, variable, attribute, pod, monkeypatch):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(variable, " value ")
        assert detected(pod())[attribute] == "value"

    @pytest.mark.parametrize(
        "files",
        [
            {"etc__podinfo__labels": ""},
            {"var__run__secrets__kubernetes.io__serviceaccount__token": ""},
            {"etc__hosts": "# Kubernetes-managed hosts file (host network).\n"},
        ],
    )
    def test_a_pod_of_which_nothing_is_known_has_no_attribute(self, files, pod):
        root = pod(proc__sys__kernel__hostname="ip-10-0-0-7", **files)
        assert KubernetesResourceDetector(root=root)._in_kubernetes()
        assert detected(root) == {}

    @pytest.mark.parametrize("hosts", ["", "127.0.0.1 localhost\n", HOSTS.replace("file.", "file (host network).")])
    def test_a_nodes_hostname_is_no_pods_name(self, hosts, pod, monkeypatch):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert detected(pod(proc__sys__kernel__hostname="ip-10-0-0-7", etc__hosts=hosts)) == {}

    @pytest.mark.parametrize(("length", "expected"), [(62, True), (63, False)])
    def test_a_hostname_that_may_be_cut_off_is_no_pods_name(self, length, expected, pod):
        found = detected(pod(proc__sys__kernel__hostname="p" * length, etc__hosts=HOSTS))
        assert ("k8s.pod.name" in found) is expected

    @pytest.mark.parametrize("name", ["x" * 254, "two\nlines", "\x1b[31m"])
    def test_what_no_object_of_kubernetes_is_called_is_no_name(self, name, pod):
        assert detected(pod(etc__podinfo__name=name, etc__podinfo__namespace=name, etc__podinfo__uid=name)) == {}

    def test_bytes_of_the_environment_that_are_no_text_become_one_that_otlp_carries(self, pod, monkeypatch):
        monkeypatch.setenv("K8S_POD_NAME", "a\udcff")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "b\udcff=c\udcff")
        assert detected(pod())["k8s.pod.name"] == "a?"
        assert build_resource(Settings()).attributes["b?"] == "c?"

    def test_an_annotation_decides_what_the_service_is(self, pod):
        annotations = (
            'resource.opentelemetry.io/service.name="cart"\nresource.opentelemetry.io/team="a\\"b"\nother="1"\n'
        )
        found = detected(pod(etc__podinfo__name=POD, etc__podinfo__annotations=annotations))
        assert (found["service.name"], found["team"], "other" in found) == ("cart", 'a"b', False)

    @pytest.mark.parametrize(("asked", "expected"), [(True, ("shop-cart", "1.2")), (False, ("checkout", None))])
    def test_labels_name_the_service_where_that_is_asked_for(self, asked, expected, pod):
        labels = (
            'app.kubernetes.io/instance="shop-cart"\napp.kubernetes.io/name="cart"\napp.kubernetes.io/version="1.2"'
        )
        found = detected(pod(etc__podinfo__name=POD, etc__podinfo__labels=labels), labels=asked)
        assert (found["service.name"], found.get("service.version")) == expected

    def test_the_setting_for_labels_reaches_a_detector_that_opentelemetry_makes(self, pod, monkeypatch):
        monkeypatch.setenv("MESHMW_KUBERNETES_LABELS", "true")
        found = detected(pod(etc__podinfo__labels='app.kubernetes.io/name="cart"'))
        assert found == {"service.name": "cart"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('zone="us-east"', {"zone": "us-east"}),
        ('a="quote \\" and backslash \\\\"', {"a": 'quote " and backslash \\'}),
        ('a="two\\nlines\\tand\\a\\b\\f\\r\\v"', {"a": "two\nlines\tand\a\b\f\r\v"}),
        ('a="\\u00ad\\U000e0001 ü"', {"a": "\u00ad\U000e0001 ü"}),
        ('a="\\xc3\\xbc and \\xff"', {"a": "ü and \ufffd"}),
        ('a="\\Uffffffff"', {"a": "\ufffd"}),
        ('a="\\ud800\\U0000dfff"', {"a": "\ufffd\ufffd"}),
        ('a="first=second"', {"a": "first=second"}),
        ('a=""', {"a": ""}),
        ('a="not closed', {}),
        ('a=bare\nb="good"', {"b": "good"}),
        ("", {}),
    ],
)
def test_quoting_rules_of_the_downward_api(line, expected):
    assert parse_map(line) == expected


@pytest.mark.parametrize(
    ("pod_name", "labels", "expected"),
    [
        (POD, {}, {"deployment": "checkout", "replicaset": "checkout-7d9f8b6c5d"}),
        (
            "web-7d9f8b6c5d-x2k4q",
            {"pod-template-hash": "7d9f8b6c5d"},
            {"deployment": "web", "replicaset": "web-7d9f8b6c5d"},
        ),
        ("renamed", {"pod-template-hash": "7d9f8b6c5d"}, {}),
        ("db-0", {"statefulset.kubernetes.io/pod-name": "db-0"}, {"statefulset": "db"}),
        ("agent-x2k4q", {"controller-revision-hash": "6b4"}, {"daemonset": "agent"}),
        ("sweep-29012345-x2k4q", {"job-name": "sweep-29012345"}, {"job": "sweep-29012345", "cronjob": "sweep"}),
        ("once-x2k4q", {"batch.kubernetes.io/job-name": "once"}, {"job": "once"}),
        ("sweep-24567842-x2k4q", {}, {}),  # a CronJob's number looks like a hash
        ("db-0", {}, {}),
        ("checkout-aeiou1-x2k4q", {}, {}),
        ("", {}, {}),
    ],
)
def test_what_a_pod_belongs_to(pod_name, labels, expected):
    assert workload_attributes(pod_name, labels) == {f"k8s.{kind}.name": name for kind, name in expected.items()}


@pytest.mark.parametrize(
    "kind", ["deployment", "replicaset", "statefulset", "daemonset", "cronjob", "job", "pod", "container"]
)
def test_the_service_is_named_after_the_nearest_workload(kind):
    order = ["deployment", "replicaset", "statefulset", "daemonset", "cronjob", "job", "pod", "container"]
    known = {f"k8s.{each}.name": f"a-{each}" for each in order[order.index(kind) :]}
    assert service_attributes(known, {}, {})["service.name"] == f"a-{kind}"


class TestResource:
    @pytest.fixture(autouse=True)
    def _in_a_pod(self, pod, monkeypatch):
        monkeypatch.setenv("K8S_POD_NAME", POD)
        monkeypatch.setenv("K8S_NAMESPACE", "shop")
        monkeypatch.setenv("K8S_CONTAINER_NAME", "web")

    def test_the_pod_names_the_service(self):
        found = build_resource(Settings()).attributes
        assert (found["service.name"], found["service.namespace"]) == ("checkout", "shop")
        assert found["service.instance.id"] == f"shop.{POD}.web"

    def test_the_standard_variable_wins_over_the_pod_and_a_setting_over_that(self, monkeypatch):
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=a%20b,service.instance.id=mine,k8s.pod.name=told")
        found = build_resource(Settings()).attributes
        assert (found["service.name"], found["service.instance.id"], found["k8s.pod.name"]) == ("a b", "mine", "told")
        assert build_resource(Settings(service_name="set")).attributes["service.name"] == "set"

    def test_the_detector_has_a_name_in_opentelemetry(self, monkeypatch):
        (entry,) = entry_points(group="opentelemetry_resource_detector", name="meshmw_k8s")
        assert entry.load() is KubernetesResourceDetector
        monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "meshmw_k8s")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "told")
        found = Resource.create().attributes
        assert (found["k8s.pod.name"], found["service.name"]) == (POD, "told")

    def test_what_the_sdk_finds_anew_is_below_what_is_known(self):
        provider, _ = build_provider(Settings(exporter="none"))
        provider._update_resource(Resource({"service.instance.id": "random", "process.pid": 7}))
        found = provider.resource.attributes
        assert (found["service.instance.id"], found["process.pid"]) == (f"shop.{POD}.web", 7)
        provider.shutdown()

    def test_a_forked_worker_keeps_the_id_that_the_pod_gave(self, run_program):
        program = run_program(
            """
            import os, sys, warnings
            warnings.simplefilter("ignore")
            provider = configure(Settings(exporter="none")).tracer_provider
            if os.fork() == 0:
                span = trace.get_tracer("t").start_span("s")
                print(span.resource.attributes["service.instance.id"], flush=True)
                os._exit(0)
            os.wait()
            """,
            K8S_POD_NAME="p",
            K8S_NAMESPACE="n",
            K8S_CONTAINER_NAME="c",
        )
        assert program.stdout == "n.p.c\n", program.stderr
