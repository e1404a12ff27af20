"""A peer in Java under OpenTelemetry's agent: the JDK's HTTP, grpc-java and Kafka's own client."""

from pathlib import Path

from tests.real.install import run
from tests.real.recipes import _maven


def build(folder: Path) -> None:
    """Leave `folder/libs`, `folder/agent.jar`, and the compiled program in `folder/classes`."""
    _maven.jars(__file__, folder)
    (agent,) = (folder / "libs").glob("opentelemetry-javaagent-*.jar")
    agent.rename(folder / "agent.jar")
    source = Path(__file__).with_suffix("") / "Peer.java"
    run("javac", "-d", folder / "classes", "-cp", f"{folder}/libs/*", source)
