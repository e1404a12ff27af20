"""Apache Kafka itself: one node in KRaft mode, from the jars that `python -m tests.real.install kafka` fetches."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshmw.testing import dies_with_parent, free_port, stop_processes
from tests.real.install import real_server

STARTED = "Kafka Server started"
SECONDS = 300  # it takes 12 seconds of a core, and others may want that core
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
READINESS = "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"


class ApacheKafka:
    """One node on free ports. It keeps its messages when it is stopped and started again.

    Args:
        server: The folder that the recipe has made.
        folder: Where it may write.
    """

    def __init__(self, server: Path, folder: Path) -> None:
        self._server = server
        self._folder = folder
        broker, controller = free_port(), free_port()
        self.address = f"127.0.0.1:{broker}"
        self._own = {
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "log.dirs": str(folder / "data"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copytree(server / "formatted", folder / "data")

    def start(self) -> None:
        """Start the node, and wait until it serves."""
        # Compiled a little, not well: most of a short life is its start.
        java = [
            shutil.which("java") or "java",
            "-Xmx384m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            QUIET,
            READINESS,
        ]
        own = [part for key, value in self._own.items() for part in ("--override", f"{key}={value}")]
        log = self._folder / "kafka.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                dies_with_parent([*java, "-cp", "libs/*", "kafka.Kafka", "server.properties", *own]),
                cwd=self._server,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + SECONDS
        while STARTED not in (said := log.read_text()):
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def stop(self) -> None:
        """Ask the node to end: one that is killed is refused for some seconds when it comes again."""
        if self._process is not None:
            stop_processes([self._process], timeout=30)


@pytest.fixture(scope="session")
def apache_kafka(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a node that all tests share."""
    node = ApacheKafka(real_server(pytestconfig, "kafka"), tmp_path_factory.mktemp("apache-kafka"))
    try:
        node.start()
        yield node.address
    finally:
        node.stop()
