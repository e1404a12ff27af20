"""What `python -m tests.real.install` does where it cannot install, and that the page names what it installs.

What it installs, all other tests here show.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.real.install import said_of

ROOT = Path(__file__).parents[2]
SECONDS = 60
# Says which process it is, in a file that appears whole.
LONG_BUILD = """#!{python}
import os, pathlib, time
written = pathlib.Path("{folder}", "writing")
written.write_text(str(os.getpid()))
written.rename("{folder}/pid")
time.sleep({seconds})
"""


@pytest.fixture
def command(tmp_path):
    """Starts the command with a cache of its own, and with the programs of one folder alone."""
    (tmp_path / "bin").mkdir()
    variables = {"PATH": str(tmp_path / "bin"), "MESHMW_REAL_SERVERS": str(tmp_path / "cache")}
    started = []

    def start(*arguments):
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.real.install", *arguments],
                cwd=ROOT,
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()
        each.stdout.close()


def test_a_program_that_is_missing_is_named_in_one_line(command, tmp_path):
    said, _ = command("toxiproxy").communicate(timeout=SECONDS)
    assert said == "go is not installed\n"
    assert [*(tmp_path / "cache").iterdir()] == []


def test_who_ends_it_leaves_no_half_of_a_server_and_no_running_step(command, tmp_path):
    go = tmp_path / "bin" / "go"
    go.write_text(LONG_BUILD.format(python=sys.executable, folder=tmp_path, seconds=SECONDS))
    go.chmod(0o755)
    installing = command("toxiproxy")
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "pid").exists():
        assert installing.poll() is None, installing.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    installing.send_signal(signal.SIGTERM)
    installing.wait(SECONDS)
    assert [*(tmp_path / "cache").iterdir()] == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("command", "output", "said"),
    [
        ([Path("/bin/go"), "build"], None, "/bin/go build ended with 3:\n"),
        (["go", "build"], "x" * 5000, f"go build ended with 3:\n{'x' * 4000}"),
        ("go build", "no network", "go build ended with 3:\nno network"),
    ],
)
def test_a_step_that_fails_is_named_whatever_was_caught_of_it(command, output, said):
    assert said_of(subprocess.CalledProcessError(3, command, output)) == said


def test_a_name_without_a_recipe_is_refused_with_those_that_have_one(command):
    said, _ = command("zookeeper").communicate(timeout=SECONDS)
    assert "no recipe is named zookeeper; there are go-peer, istio, jaeger" in said


PAGE = (ROOT / "docs" / "compatibility.md").read_text()
RECIPES = ROOT / "tests" / "real" / "recipes"


@pytest.mark.parametrize(
    ("file", "pinned", "shown"),
    [
        ("go_peer/go.mod", r"go.opentelemetry.io/otel v(1\.\d+)", "Go, OpenTelemetry {} with"),
        ("go_peer/go.mod", r"otelhttp v(0\.\d+)", "otelhttp and otelgrpc {},"),
        ("go_peer/go.mod", r"franz-go v(1\.\d+)", "franz-go {} with"),
        ("istio/go.mod", r"istio.io/istio v0\.0\.0-\d+-(\w+)", "(`{}`)"),
        ("java_peer/pom.xml", r"javaagent</artifactId>\s+<version>([\d.]+)", "agent {} with"),
        ("java_peer/pom.xml", r"grpc-stub</artifactId>\s+<version>(\d+\.\d+)", "grpc-java {} and"),
        ("jaeger/go.mod", r"collector/receiver/otlpreceiver v(0\.\d+)", "OpenTelemetry Collector {},"),
        ("kafka/pom.xml", r"kafka_2.13</artifactId>\s+<version>([\d.]+)", "Apache Kafka {},"),
        ("kubernetes.py", r'KUBERNETES = "v([\d.]+)"', "API server {} with etcd"),
        ("kubernetes.py", r"envoyproxy/gateway@v(\d+\.\d+)", "Envoy Gateway {} and"),
        ("kubernetes.py", r"gateway-api@v(\d+\.\d+)", "Gateway API {};"),
        ("node_peer/package.json", r'sdk-trace": "([\d.]+)"', "(SDK {},"),
        ("toxiproxy.py", r'VERSION = "v(\d+\.\d+)', "toxiproxy {} and"),
    ],
)
def test_the_page_names_the_version_that_is_installed(file, pinned, shown):
    (version,) = set(re.findall(pinned, (RECIPES / file).read_text()))
    assert shown.format(version) in PAGE


def test_the_page_names_the_jaeger_that_is_installed():
    # Version 1's number, by which Go's module is known, has version 2 in its changelog.
    assert "jaegertracing/jaeger v1.76.0" in (RECIPES / "jaeger" / "go.mod").read_text()
    assert "Jaeger 2.13," in PAGE
