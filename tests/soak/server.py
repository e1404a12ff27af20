"""A soaked server: uvicorn or gunicorn in a process of its own, on a socket that was bound here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from meshmw.testing import dies_with_parent, stop_processes

_COMMANDS = {
    "asgi": "uvicorn tests.soak.asgi_app:app --fd {fd} --loop asyncio --no-access-log --log-level critical",
    "wsgi": "gunicorn tests.soak.wsgi_app:app --bind fd://{fd} --worker-class gthread --threads 16 --keep-alive 60 "
    "--timeout 300 --log-level critical --no-control-socket",
}
_ROOT = Path(__file__).parents[2]


class Server:
    """Is one running server; a context manager that stops it.

    Args:
        interface: `asgi` or `wsgi`.
    """

    def __init__(self, interface: str) -> None:
        self._interface = interface
        self._folder = tempfile.TemporaryDirectory(prefix="meshmw-soak-")
        self.spans = Path(self._folder.name, "spans")
        self.log_file = Path(self._folder.name, "log")

    def __enter__(self) -> Server:
        self.spans.touch()
        with socket.socket() as bound, self.log_file.open("wb") as log:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(("127.0.0.1", 0))
            bound.listen(512)
            self.port = bound.getsockname()[1]
            command = [sys.executable, "-m", *_COMMANDS[self._interface].format(fd=bound.fileno()).split()]
            clean = {key: text for key, text in os.environ.items() if not key.startswith(("OTEL_", "MESHMW_"))}
            environment = clean | {"SOAK_SPANS": str(self.spans), "PYTHONUNBUFFERED": "1"}
            self._process = subprocess.Popen(
                dies_with_parent(command), cwd=_ROOT, env=environment, stdout=log, stderr=log,
                pass_fds=[bound.fileno()], start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        stop_processes([self._process], timeout=30)
        self._folder.cleanup()

    @property
    def has_ended(self) -> bool:
        """Say whether the process is gone."""
        return self._process.poll() is not None

    @property
    def log(self) -> str:
        """Everything that the server has written so far."""
        return self.log_file.read_text(errors="replace")

    def resident_bytes(self) -> int:
        """Return how much memory the process that serves holds."""
        pids = [self._process.pid, *_children(self._process.pid)]
        return _resident(pids[-1]) if self._interface == "wsgi" else _resident(pids[0])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
