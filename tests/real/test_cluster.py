"""A Kubernetes API server takes every object of ours as the pages say to apply it, and Pod Security takes the pods."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshmw._tools.mesh_config import render_config
from tests.real.cluster import Cluster, running_cluster
from tests.real.install import real_server

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "sample_apps" / "mesh" / "kubernetes"
PAGE = (ROOT / "sample_apps" / "mesh" / "README.md").read_text()
# A file for istioctl; and a product of which no module has the definitions.
UNKNOWN = {"IstioOperator", "MeshTrace"}
NAMESPACES = ("istio-system", "envoy-gateway-system", "mesh")


@pytest.fixture(scope="module", params=["Istio", "Linkerd"])
def mesh(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, mesh: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One with the mesh's page applied; another mesh needs another, since nobody here ends a namespace."""
    server = real_server(request.config, "kubernetes")
    with running_cluster(server, tmp_path_factory.mktemp("cluster")) as running:
        for name in NAMESPACES:
            running.must("create", "namespace", name)
        said = "".join(running.must(*line, cwd=KUBERNETES) for line in lines_of(mesh, "apply"))
        assert said.count("created") == len(said.splitlines()) == len(objects_of(mesh))
        yield running


def lines_of(mesh: str, verb: str) -> list[list[str]]:
    """The page's lines, but for those that apply what another program prints."""
    (part,) = re.findall(rf"^## {mesh}\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    return [line.split() for line in re.findall(rf"^\$ kubectl ({verb} -f .*)$", part, re.MULTILINE)]


def objects_of(mesh: str) -> list[dict[str, Any]]:
    files = [word for line in lines_of(mesh, "apply") for word in line if word.endswith(".yaml")]
    return [each for name in files for each in yaml.safe_load_all((KUBERNETES / name).read_text()) if each]


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    """The pod that a controller would make of it."""
    where = deployment["metadata"]
    template = deployment["spec"]["template"]
    metadata = template["metadata"] | {"name": where["name"], "namespace": where["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def pods_of(mesh: str) -> list[dict[str, Any]]:
    return [pod_of(each) for each in objects_of(mesh) if each["kind"] == "Deployment"]


def dry_run(cluster: Cluster, found: dict[str, Any], whence: str) -> None:
    """Let the server take an object of a reader's own, of whose pod only the reader knows what it may do."""
    if found["kind"] == "Deployment":
        found["metadata"]["namespace"] = "mesh"
    done = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(found))
    assert (done.returncode, done.stderr) == (0, ""), f"{whence}: {done.stderr}"


def test_what_is_applied_twice_is_unchanged(cluster: Cluster, mesh: str) -> None:
    for line in lines_of(mesh, "apply"):
        said = cluster.must(*line, cwd=KUBERNETES)
        assert said.count("unchanged") == len(said.splitlines()), said


def test_pod_security_takes_every_pod(cluster: Cluster, mesh: str) -> None:
    pods = pods_of(mesh)
    assert len(pods) == 5
    said = cluster.must("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(json.loads(json.dumps(pods))))
    assert said.count("created (server dry run)") == len(pods)


def test_it_does_not_take_one_that_may_do_more(cluster: Cluster, mesh: str) -> None:
    pod = pods_of(mesh)[0]
    pod["spec"]["containers"][0]["securityContext"] = {"allowPrivilegeEscalation": True}
    done = cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))
    # Linkerd's namespaces warn, because its init container may do more.
    assert re.search("violates? PodSecurity", done.stderr)
    assert done.returncode == (1 if mesh == "Istio" else 0)


@pytest.mark.parametrize("name", ["istio", "k8s"])
def test_what_mesh_config_prints_is_taken(cluster: Cluster, name: str) -> None:
    printed = [each for each in yaml.safe_load_all(render_config(name)) if each and each["kind"] not in UNKNOWN]
    assert printed
    for each in printed:
        dry_run(cluster, each, name)


def test_what_the_documentation_shows_is_taken(cluster: Cluster) -> None:
    shown = [
        (path.name, found)
        for path in sorted((ROOT / "docs").rglob("*.md"))
        for block in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
        if "apiVersion:" in block
        for found in yaml.safe_load_all(block)
        if found["kind"] not in UNKNOWN
    ]
    assert len(shown) >= 5
    for page, found in shown:
        dry_run(cluster, found, page)


@pytest.mark.parametrize(
    ("file", "before", "after", "refusal"),
    [
        (
            "istio/telemetry.yaml",
            "randomSamplingPercentage: 100",
            "randomSamplingPercentage: 101",
            "less than or equal",
        ),
        ("istio/telemetry.yaml", "randomSamplingPercentage", "randomSampling", "unknown field"),
        ("istio/gateway.yaml", "number: 80, name: http,", "number: 80,", "Required value"),
        ("services.yaml", "runAsNonRoot", "runAsNonroot", "unknown field"),
    ],
)
def test_it_refuses_a_mistake(cluster: Cluster, file: str, before: str, after: str, refusal: str) -> None:
    text = (KUBERNETES / file).read_text()
    assert before in text
    done = cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text.replace(before, after))
    assert done.returncode == 1
    assert refusal in done.stderr


def test_what_is_undone_was_there(cluster: Cluster, mesh: str) -> None:
    (line,) = lines_of(mesh, "delete")
    # Nobody here ends a namespace, for which kubectl would wait.
    said = cluster.must(*line, "--wait=false", cwd=KUBERNETES)
    assert said.count("deleted") == len(said.splitlines()) == len(objects_of(mesh))
