"""A private Redis, which stores nothing."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator

import pytest

from meshmw.testing import free_port, start_process, stop_processes
from tests.programs import not_installed

START_SECONDS = 60


@pytest.fixture(scope="session")
def redis_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running Redis that nobody else uses."""

    program = shutil.which("redis-server")
    if program is None:
        not_installed(request.config, "Redis is not installed: run  apt-get install redis-server")
    log, port = tmp_path_factory.mktemp("redis") / "log.txt", free_port()
    options = f"--bind 127.0.0.1 --port {port} --save --appendonly no".split()
    process = start_process([program, *options], log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        stop_processes([process])
