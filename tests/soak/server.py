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
from tests.programs import clean_environment

_COMMANDS = {
    "asgi": "uvicorn {app} --fd {fd} --loop asyncio --no-access-log --log-level critical",
    "wsgi": "gunicorn {app} --bind fd://{fd} --worker-class gthread --threads 16 --keep-alive 60 "
    "--timeout 300 --log-level critical --no-control-socket",
}
_ROOT = Path(__file__).parents[2]


class Server:
    """Runs one server; a context manager that stops it.

    Args:
        interface: `asgi` or `wsgi`.
        app: Where the application is; the one that is soaked by default.
        environment: Further environment variables.
    """

    def __init__(self, interface: str, app: str = "", **environment: str) -> None:
        self._interface = interface
        self._app = app or f"tests.soak.{interface}_app:app"
        self._environment = environment
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
            command = [
                sys.executable,
                "-m",
                *_COMMANDS[self._interface].format(app=self._app, fd=bound.fileno()).split(),
            ]
            clean = clean_environment()
            environment = clean | {"SOAK_SPANS": str(self.spans), "PYTHONUNBUFFERED": "1"} | self._environment
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
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def forget_peak(self) -> None:
        """Begin to look for the most memory anew."""
        (self._proc / "clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Return the most memory that the process that serves has held since."""
        lines = dict(line.split(":", 1) for line in (self._proc / "status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024

    @property
    def _proc(self) -> Path:
        """The process that serves; gunicorn's is the child of the one that was started."""
        own = Path(f"/proc/{self._process.pid}")
        children = (own / "task" / own.name / "children").read_text().split()
        return Path("/proc", children[-1]) if self._interface == "wsgi" else own
