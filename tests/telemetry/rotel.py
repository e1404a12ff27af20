"""A real OpenTelemetry collector, `rotel` from PyPI, that can be stopped, continued, killed and started again."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from meshmw.testing import free_port
from meshmw.testing._processes import start_process, stop_processes
from tests.programs import not_installed

START_SECONDS = 60


class Rotel:
    """Passes on what it takes, over gRPC; a context manager.

    Args:
        upstream: Where it sends spans, as `host:port` of an OTLP receiver for gRPC.
        folder: Where its log goes.
    """

    def __init__(self, upstream: str, folder: Path) -> None:
        self.grpc_port, self.http_port = free_port(), free_port()
        self._upstream = upstream
        self._folder = folder
        self._process = None

    def __enter__(self) -> Rotel:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        stop_processes([self._process])

    def start(self) -> None:
        """Start it on the same ports, and wait until it answers there."""
        command = [
            str(binary()),
            "start",
            f"--otlp-grpc-endpoint=127.0.0.1:{self.grpc_port}",
            f"--otlp-http-endpoint=127.0.0.1:{self.http_port}",
            f"--otlp-exporter-endpoint={self._upstream}",
            "--batch-timeout=20ms",
            f"--log-file={self._folder / 'rotel.log'}",
            f"--pid-file={self._folder / 'rotel.pid'}",
        ]
        self._process = start_process(command, self._folder / "rotel.out", environment=_variables())
        deadline = time.monotonic() + START_SECONDS
        for port in (self.grpc_port, self.http_port):
            while not _answers(port):
                said = (self._folder / "rotel.out").read_text(errors="replace")
                assert self._process.poll() is None, f"rotel ended:\n{said}"
                assert time.monotonic() < deadline, f"rotel does not listen:\n{said}"
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop it: its ports accept, and nobody reads."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was stopped."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once; its ports refuse."""
        self._process.kill()
        self._process.wait()


def binary() -> Path:
    found = importlib.util.find_spec("rotel")
    return Path(found.origin).with_name("rotel-agent") if found and found.origin else Path("/nowhere")


def _variables() -> dict[str, str]:
    """Return an environment in which the loader finds the Python library that rotel embeds, beside this interpreter."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ROTEL_")}
    places = [str(sysconfig.get_config_var("LIBDIR")), *filter(None, [kept.get("LD_LIBRARY_PATH")])]
    return {**kept, "LD_LIBRARY_PATH": os.pathsep.join(places)}


def _missing() -> str:
    if not binary().exists():
        return "rotel is not installed: run  pip install rotel"
    tried = subprocess.run(
        [binary(), "--help"], env=_variables(), capture_output=True, text=True, timeout=START_SECONDS
    )
    return f"rotel does not start, install what it says: {tried.stderr.strip()}" if tried.returncode else ""


def require_rotel(config: pytest.Config) -> None:
    """Skip where rotel cannot run, and fail where everything is to be there."""
    if missing := _missing():
        not_installed(config, missing)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
