"""`istioctl analyze` and `validate` over every manifest of ours, and what `meshmw doctor` sees beyond them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from meshmw._tools.doctor.manifest_rules import judge_manifests
from meshmw._tools.doctor.manifests import read_manifests
from meshmw._tools.mesh_config import render_config
from tests.programs import clean_environment
from tests.real.install import real_server

MESH = Path(__file__).parents[2] / "sample_apps" / "mesh" / "kubernetes"
PROVIDER = "extensionProviders: [{name: otel, opentelemetry: {service: otel.mesh.svc.cluster.local, port: 4317}}]"
TELEMETRY = """
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec:
  tracing: [{providers: [{name: NAME}], randomSamplingPercentage: 100}]
"""


@pytest.fixture
def istioctl(request: pytest.FixtureRequest):
    program = real_server(request.config, "istio") / "istio"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(
            command, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False
        )

    return run


def analyze(istioctl, *paths, mesh=None):
    more = [f"--meshConfigFile={mesh}"] if mesh else []
    return istioctl("analyze", "--use-kube=false", "--failure-threshold=Info", "-A", *more, *paths)


def files_of(tmp_path, name, **options):
    """Files to check together: those of the sample, or what `meshmw mesh-config` prints."""
    if name == "sample":
        return [path for path in sorted(MESH.rglob("*.yaml")) if path.parent.name != "linkerd"]
    path = tmp_path / "printed.yaml"
    path.write_text(render_config(name))
    return [path]


@pytest.mark.parametrize("name", ["sample", "istio", "k8s"])
def test_our_manifests_pass(istioctl, tmp_path, name):
    paths = files_of(tmp_path, name)
    for path in paths:
        validated = istioctl("validate", "-f", path)
        assert validated.returncode == 0, validated.stdout + validated.stderr
    analyzed = analyze(istioctl, *paths)
    assert analyzed.returncode == 0, analyzed.stdout + analyzed.stderr


def test_it_finds_a_fault(istioctl, tmp_path):
    file = tmp_path / "telemetry.yaml"
    file.write_text(TELEMETRY.replace("100", "101"))
    assert istioctl("validate", "-f", file).returncode != 0


def codes(*paths):
    return [finding.code for finding in judge_manifests(read_manifests(paths))]


def test_a_provider_that_is_not_there_is_seen_by_the_doctor_alone(istioctl, tmp_path):
    mesh, telemetry = tmp_path / "mesh.yaml", tmp_path / "telemetry.yaml"
    mesh.write_text(PROVIDER)
    telemetry.write_text(TELEMETRY.replace("NAME", "otle"))
    assert istioctl("validate", "-f", telemetry).returncode == 0
    assert analyze(istioctl, telemetry, mesh=mesh).returncode == 0
    assert codes(mesh, telemetry) == ["telemetry.provider-missing"]


@pytest.mark.parametrize(
    ("mesh", "code"),
    [
        ('enableTracing: "true"', "mesh-config.refused"),
        ("extensionProviders: {otel: here}", "mesh-config.refused"),
        ("extensionProviders: [otel]", "mesh-config.refused"),
        ("extensionProviders: [{name: 5}]", "mesh-config.refused"),
        ("accessLogFormat: {a: b}", "mesh-config.refused"),
        ("enableTracing: [", "manifest.no-yaml"),
    ],
)
def test_a_mesh_configuration_that_istiod_refuses_is_seen_by_the_doctor_alone(istioctl, tmp_path, mesh, code):
    file, telemetry = tmp_path / "mesh.yaml", tmp_path / "telemetry.yaml"
    file.write_text(mesh)
    telemetry.write_text(TELEMETRY.replace("NAME", "envoy"))
    assert analyze(istioctl, telemetry, mesh=file).returncode == 0
    # Istio's own reader refuses it; istiod then goes on with its defaults.
    refused = istioctl("serve", f"--mesh={file}")
    assert refused.returncode == 1, refused.stderr
    assert codes(file) == [code]
