"""Real servers in processes of their own, and requests over raw sockets so that every byte arrives as written."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meshmw.errors import MissingExtraError
from meshmw.testing import OtlpReceiver, dies_with_parent, free_port, stop_processes
from tests.programs import not_installed

APPS = Path(__file__).parent / "apps"
START_SECONDS = 60
ANSWER_SECONDS = 60

# Every server is given port 0, and says in its log which port it got.
_UVICORN = "uvicorn {app} --host 127.0.0.1 --port 0 --loop asyncio --no-access-log"
_GUNICORN = "gunicorn {app} --bind 127.0.0.1:0 --no-control-socket"
_READY = re.compile(
    r"(?:(?:[Rr]unning on|Listening at:|Serving on) http://|(?:bound to|Listening on) TCP address )127\.0\.0\.1:(\d+)"
)


@dataclass(frozen=True)
class Kind:
    """Describes one way to serve an application.

    Attributes:
        interface: `asgi` or `wsgi`.
        command: What follows `python -m`.
        packages: The modules that it needs, under the names to install them by.
        app: The application, where it is another than that of all others.
    """

    interface: str
    command: str
    packages: tuple[str, ...]
    app: str = ""


# One thread or loop each, so that a request always follows the one before it in the same place. gunicorn refuses
# header fields over 8190 bytes by default, and baggage may have 8192.
KINDS = {
    "uvicorn-h11": Kind("asgi", f"{_UVICORN} --http h11", ("uvicorn", "h11")),
    "uvicorn-httptools": Kind("asgi", f"{_UVICORN} --http httptools", ("uvicorn", "httptools")),
    "hypercorn": Kind("asgi", "hypercorn {app} --bind 127.0.0.1:0", ("hypercorn",)),
    "gunicorn": Kind(
        "wsgi", f"{_GUNICORN} --worker-class gthread --threads 1 --limit-request-field_size 16384", ("gunicorn",)
    ),
    "waitress": Kind("wsgi", "waitress --listen=127.0.0.1:0 --threads=1 {app}", ("waitress",)),
    "werkzeug": Kind("wsgi", "flask --app {app} run --host 127.0.0.1 --port 0 --without-threads", ("flask",)),
}
# Further ways, for the tests that start a server of their own.
_UVICORN_WORKER = "uvicorn_worker.UvicornWorker"
_PRELOAD = f"{_GUNICORN} --workers 2 --preload"
_UWSGI = "uwsgi --module {app} --http-socket 127.0.0.1:0 --master --workers 2 --enable-threads"
_GRANIAN = "granian {app} --host 127.0.0.1 --port {port} --workers 2"
WORKERS = {
    "uvicorn": Kind("asgi", _UVICORN, ("uvicorn",)),
    "uvicorn-workers": Kind("asgi", f"{_UVICORN} --workers 2", ("uvicorn",)),
    "uvicorn-no-lifespan": Kind("asgi", f"{_UVICORN} --lifespan off", ("uvicorn",)),
    "uvicorn-reload": Kind("asgi", f"{_UVICORN} --reload --reload-dir {{folder}}", ("uvicorn",)),
    "hypercorn-workers": Kind("asgi", "hypercorn {app} --bind 127.0.0.1:0 --workers 2", ("hypercorn",)),
    "granian-asgi": Kind("asgi", f"{_GRANIAN} --interface asgi", ("granian",)),
    "granian-wsgi": Kind("wsgi", f"{_GRANIAN} --interface wsgi --blocking-threads 2", ("granian",)),
    "gunicorn-sync": Kind("wsgi", f"{_GUNICORN} --workers 2", ("gunicorn",)),
    "gunicorn-gthread": Kind("wsgi", f"{_GUNICORN} --workers 2 --worker-class gthread --threads 2", ("gunicorn",)),
    "gunicorn-gevent": Kind("wsgi", f"{_GUNICORN} --workers 2 --worker-class gevent", ("gunicorn", "gevent")),
    "gunicorn-asgi": Kind("asgi", f"{_GUNICORN} --workers 2 --worker-class asgi", ("gunicorn",)),
    "gunicorn-uvicorn": Kind(
        "asgi", f"{_GUNICORN} --workers 2 --worker-class {_UVICORN_WORKER}", ("gunicorn", "uvicorn_worker")
    ),
    "gunicorn-preload": Kind("wsgi", f"{_PRELOAD} --worker-class gthread", ("gunicorn",), "warm_app:wsgi"),
    "gunicorn-gevent-preload": Kind(
        "wsgi", f"{_PRELOAD} --worker-class gevent", ("gunicorn", "gevent"), "warm_app:wsgi"
    ),
    "gunicorn-uvicorn-preload": Kind(
        "asgi", f"{_PRELOAD} --worker-class {_UVICORN_WORKER}", ("gunicorn", "uvicorn_worker"), "warm_app:asgi"
    ),
    "gunicorn-recycling": Kind("wsgi", f"{_GUNICORN} --max-requests 3", ("gunicorn",)),
    "uvicorn-uvloop": Kind("asgi", _UVICORN.replace("asyncio", "uvloop"), ("uvicorn", "uvloop")),
    "hypercorn-uvloop": Kind(
        "asgi", "hypercorn {app} --bind 127.0.0.1:0 --worker-class uvloop", ("hypercorn", "uvloop")
    ),
    "granian-uvloop": Kind("asgi", f"{_GRANIAN} --interface asgi --loop uvloop", ("granian", "uvloop")),
    "daphne": Kind("asgi", "daphne {app} --bind 127.0.0.1 --port 0", ("daphne",)),
    "uwsgi": Kind("wsgi", f"{_UWSGI} --py-call-osafterfork", ("pyuwsgi",)),
    "uwsgi-lazy": Kind("wsgi", f"{_UWSGI} --lazy-apps", ("pyuwsgi",)),
    "wsgiref": Kind("wsgi", "odd_wsgi wsgiref", ()),
    "werkzeug-bare": Kind("wsgi", "odd_wsgi werkzeug", ("werkzeug",)),
    "werkzeug-debug": Kind("wsgi", "flask --app {app} run --host 127.0.0.1 --port 0 --debug", ("flask",)),
    "hypercorn-recycling": Kind("asgi", "hypercorn {app} --bind 127.0.0.1:0 --max-requests 3", ("hypercorn",)),
}
POLICIES = ("strict", "w3c")
APPS_BY_INTERFACE = {"asgi": "fastapi_app:app", "wsgi": "flask_app:app"}
ASGI_APPS = {"plain": "meshmw_asgi:app", "contrib": "contrib_asgi:app"}


@dataclass
class Answer:
    """Holds an HTTP response; `status` 0 where the server closed the connection without one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def report(self) -> Any:
        """What the application answered."""
        assert self.status == 200, f"{self.status} {self.body[:500]!r}"
        return json.loads(self.body)


class Connection:
    """Keeps one connection alive."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def write(self, lines: list[str], method: str = "GET", path: str = "/", body: bytes = b"") -> None:
        """Send one request, its header lines byte for byte as they are given."""
        head = [f"{method} {path} HTTP/1.1", "Host: server.test", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        self.socket.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def read(self, method: str = "GET") -> Answer:
        """Read one response."""
        try:
            status = self._file.readline().split(b" ")
            if len(status) < 2:
                return Answer(0)
            answer = Answer(int(status[1]))
            while line := self._file.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                answer.headers[name.lower()] = value.strip()
            if method != "HEAD" and answer.status != 304:
                answer.body = self._body(answer.headers)
        except ConnectionResetError:
            # A server that refuses a request may close the connection with some of the request still unread.
            return Answer(0)
        return answer

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self._file.read(int(headers.get("content-length", -1)))
        chunks = []
        while size := int(self._file.readline() or b"0", 16):
            chunks.append(self._file.read(size))
            self._file.readline()
        self._file.readline()
        return b"".join(chunks)

    def reset(self) -> None:
        """Go away at once, with a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._file.close()
        self.socket.close()


class Service:
    """Runs one server with a test application."""

    def __init__(self, name: str, kind: Kind, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.name = name
        self.interface = kind.interface
        self.process = process
        self.port = 0
        self._log_file = log_file

    @property
    def server(self) -> str:
        """The server's name without the variant, such as `uvicorn-h11`."""
        return self.name.partition("/")[0]

    @property
    def policy(self) -> str:
        """The variant, such as `strict`."""
        return self.name.partition("/")[2]

    @property
    def log(self) -> str:
        """Everything that the server and the application have written so far."""
        return self._log_file.read_text(errors="replace")

    def connect(self) -> Connection:
        """Open a connection, to be used in a `with` block."""
        return Connection(self.port)

    def ask(self, *lines: str, method: str = "GET", path: str = "/", body: bytes = b"") -> Answer:
        """Send one request on a connection of its own."""
        with self.connect() as connection:
            connection.write([*lines, "Connection: close"], method, path, body)
            return connection.read(method)

    def wait_until_it_answers(self) -> None:
        """Find the port and see one answer.

        Raises:
            AssertionError: The server ended, or does not answer in time; shows what it wrote.
        """
        deadline = time.monotonic() + START_SECONDS
        while not (said := _READY.search(self.log)):
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.name} did not start:\n{self.log}"
            time.sleep(0.02)
        port = int(said[1])
        # uvicorn with workers says where it will listen before it does.
        while not _listens(port):
            assert time.monotonic() < deadline, f"{self.name} does not listen:\n{self.log}"
            time.sleep(0.02)
        self.port = port
        # gunicorn listens before a worker serves; a connection waits in the queue.
        answer = self.ask()
        assert answer.status == 200, f"{self.name} answers {answer}:\n{self.log}"

    def stop(self) -> None:
        """End the server, and whatever it started."""
        stop_processes([self.process], timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


class Fleet:
    """Starts services, several at once, and stops them all at its end.

    Args:
        config: Says whether a server that is not installed is a failure.
        endpoint: Where spans go.
        folder: For the log files; a server that reloads watches it for Python's.
    """

    def __init__(self, config: pytest.Config, endpoint: str, folder: Path) -> None:
        self._config = config
        self._endpoint = endpoint
        self.folder = folder
        self._services: dict[str, Service] = {}

    def get(self, name: str) -> Service:
        """Return a running service by its name, `server/variant`."""
        self.launch(name)
        if not self._services[name].port:
            self._services[name].wait_until_it_answers()
        return self._services[name]

    def launch(self, name: str, apps: Mapping[str, str] = APPS_BY_INTERFACE, **settings: str) -> None:
        """Begin to start a service, if it does not run already.

        Args:
            name: Such as `uvicorn-h11/strict`.
            apps: The application by interface, where its kind and variant have none of their own.
            settings: Further environment variables.
        """
        if name in self._services:
            return
        kind = (KINDS | WORKERS)[name.partition("/")[0]]
        self._require(kind.packages)
        log_file = self.folder / f"{name.replace('/', '-')}.log"
        self._services[name] = Service(name, kind, self._spawn(name, kind, apps, settings, log_file), log_file)

    def launch_those_installed(self, names: Iterable[str], **settings: str) -> None:
        """Begin to start services at once, and leave it to `get()` to complain of one that is not installed."""
        for name in dict.fromkeys(names):
            with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
                self.launch(name, **settings)

    def stop(self) -> None:
        """Stop every service."""
        for service in self._services.values():
            service.process.terminate()
        for service in self._services.values():
            service.stop()
        self._services.clear()

    def _spawn(
        self, name: str, kind: Kind, apps: Mapping[str, str], settings: dict[str, str], log_file: Path
    ) -> subprocess.Popen[bytes]:
        variant = name.partition("/")[2]
        app = kind.app or ASGI_APPS.get(variant) or apps[kind.interface]
        words = kind.command.format(app=app, port=free_port(), folder=self.folder).split()
        command = dies_with_parent([sys.executable, "-m", *words])
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "MESHMW_", "K8S_"))
        }
        environment = inherited | {
            "PYTHONPATH": os.pathsep.join([str(APPS), os.environ.get("PYTHONPATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "MESHMW_SERVICE_NAME": name,
            "MESHMW_ENDPOINT": self._endpoint,
            "MESHMW_TRACEPARENT_POLICY": variant if variant in POLICIES else "strict",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with log_file.open("wb") as log:
            return subprocess.Popen(
                command, cwd=APPS, env=environment | settings, stdout=log, stderr=log, start_new_session=True
            )

    def _require(self, packages: tuple[str, ...]) -> None:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if not missing:
            return
        not_installed(self._config, f"not installed: run  pip install {' '.join(missing)}")


@pytest.fixture(scope="session")
def collector(pytestconfig: pytest.Config) -> Iterator[OtlpReceiver]:
    """Receives the spans of all services; they are told apart by `service`."""
    try:
        receiver = OtlpReceiver().__enter__()
    except MissingExtraError as missing:
        not_installed(pytestconfig, str(missing))
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.push(receiver)
        yield receiver


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest, collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory):
    """The services of this session, each started when the first test of a file that needs it is run."""
    fleet = Fleet(request.config, collector.grpc_endpoint, tmp_path_factory.mktemp("servers"))
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(scope="module", autouse=True)
def those_of_this_file(request: pytest.FixtureRequest) -> None:
    """Begin to start, at once, all services that the file's tests need: each worker runs but some of the files."""
    mine = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    if names := [item.callspec.params["service"] for item in mine if "service" in item.callspec.params]:
        request.getfixturevalue("fleet").launch_those_installed(names)


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest, fleet: Fleet) -> Service:
    """A running server: each of them under each policy, where a test does not name its own."""
    return fleet.get(request.param)


@pytest.fixture(scope="module")
def own_fleet(
    request: pytest.FixtureRequest, collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Services that one module starts, and stops, for itself."""
    fleet = Fleet(request.config, collector.grpc_endpoint, tmp_path_factory.mktemp("own-servers"))
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture
def new_ids():
    """A function that returns a trace id and a span id which nothing has used before, with letters in both."""
    return lambda: (f"{secrets.token_hex(15)}af", f"{secrets.token_hex(7)}af")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `service` on every server under every policy, unless it names the servers itself."""
    named = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "service" in metafunc.fixturenames and "service" not in named:
        names = [f"{server}/{policy}" for server in KINDS for policy in POLICIES]
        metafunc.parametrize("service", names, indirect=True, scope="session")
