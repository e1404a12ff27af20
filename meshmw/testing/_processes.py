"""The processes of a test mesh: what a service is, how a process is started and stopped, and which port it gets.

Run as a program, this file serves a WSGI application with the standard library, one thread for each request:

    python -m meshmw.testing._processes --port 8000 shop.inventory:app
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from meshmw._notices import quoted
from meshmw._policy.words import one_of
from meshmw.errors import MeshError

Sidecar: TypeAlias = Literal["none", "otel", "zipkin-b3", "zipkin-b3-w3c", "strip", "linkerd-like"]
Interface: TypeAlias = Literal["asgi", "wsgi"]

_NAME: Final = re.compile(r"[a-z][a-z0-9-]*")
# The client's and the edge's spans, a sidecar's listener, and `{port}` in a command.
_TAKEN: Final = frozenset({"client", "edge", "inbound", "port"})
_SERVERS: Final[Mapping[Interface, str]] = {"asgi": "uvicorn", "wsgi": "meshmw.testing._processes"}

# Runs before the command takes the process over; `-I -S` keeps that at some ten milliseconds. A `preexec_fn` would run
# in a fork of this process, where a lock that another thread holds is held for ever. The parent may be gone before
# prctl is called, hence the second look.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# Below what Linux (32768) and others (49152) hand out by themselves: a port that was free a moment ago goes to the next
# who asks for any, and a proxy whose application has its port sends requests to itself, round and round.
_PORTS: Final = range(20_000, 32_000)
_HELD: Final = 128
_held: Final[deque[int]] = deque()


@dataclass(frozen=True, slots=True)
class Service:
    """Describes one service of the mesh, which gets a sidecar of its own.

    Args:
        name: Its name, in lower case; also its `service.name` where the application sets none. `client`, `edge`,
            `inbound`, `port`, and what ends in `-sidecar`, are names that the mesh has given already.
        app: `module:attribute` of its application, as servers take it.
        interface: What `app` speaks: `asgi` (served by uvicorn) or `wsgi` (served by the standard library). A command
            serves itself.
        command: What to run instead of `app`. In it `{port}` stands for the port to listen on, and `{other}` for the
            base URL of the service `other`.
        calls: The names of the services that it calls. Where they are stands in its environment: the base URL of
            `inventory`, through the sidecar, in `INVENTORY_URL`.
        environment: More environment variables; `{port}` and `{other}` stand for the same as in `command`.
        sidecar: The style of its sidecar; the mesh's own if None.
        directory: Where it runs; where the tests run if None.

    Raises:
        MeshError: The name is no name or is the mesh's own, there are both or neither of `app` and `command`, a command
            has an interface, or there is no such interface or sidecar.
    """

    name: str
    app: str | None = None
    interface: Interface = "asgi"
    command: Sequence[str] | None = None
    calls: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    sidecar: Sidecar | None = None
    directory: Path | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise MeshError(f"{quoted(self.name)} is no name of a service: use lower-case letters, digits and '-'")
        if self.name in _TAKEN or self.name.endswith("-sidecar"):
            raise MeshError(f"{quoted(self.name)} is the mesh's own name for something else: give the service another")
        if (self.app is None) == (self.command is None):
            raise MeshError(f"service {quoted(self.name)} needs an app, such as 'shop.main:app', or a command")
        check_word(Interface, self.interface, "interface")
        if self.command is not None and self.interface != "asgi":
            raise MeshError(f"service {quoted(self.name)} has a command, which serves itself: interface is for an app")
        if self.sidecar is not None:
            check_word(Sidecar, self.sidecar, "sidecar")

    def arguments(self, places: Mapping[str, str]) -> list[str]:
        """Return the command that serves it, with what stands in braces put in.

        Args:
            places: The `port`, and the base URL of each service that it calls.
        """
        if self.command is not None:
            return [_fill_in(word, places) for word in self.command]
        options = ["--port", places["port"], "--host", "127.0.0.1"]
        return [sys.executable, "-m", _SERVERS[self.interface], *options, str(self.app)]

    def variables(self, places: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables that say where the others are, and those it was given."""
        urls = {f"{name.upper().replace('-', '_')}_URL": places[name] for name in self.calls}
        return urls | {name: _fill_in(value, places) for name, value in self.environment.items()}


def check_word(words: Any, value: object, name: str) -> None:
    """Check that a value is one of some words, as `one_of` does.

    Raises:
        MeshError: It is none of them.
    """
    try:
        one_of(words, value, name)
    except ValueError as fault:
        raise MeshError(str(fault)) from None


def in_order(services: Sequence[Service]) -> list[Service]:
    """Return the services so that each comes after all that it calls.

    Raises:
        MeshError: Two have one name, one calls a service that is not there, or they call each other in a circle.
    """
    by_name = {service.name: service for service in services}
    if len(by_name) != len(services) or not services:
        raise MeshError(f"a mesh needs services with different names, got {[service.name for service in services]}")
    ordered: dict[str, Service] = {}

    def add(service: Service, callers: tuple[str, ...]) -> None:
        if service.name in callers:
            raise MeshError(f"services call each other in a circle: {' -> '.join((*callers, service.name))}")
        for name in service.calls:
            if name not in by_name:
                raise MeshError(f"service {quoted(service.name)} calls {quoted(name)}, which is not in the mesh")
            add(by_name[name], (*callers, service.name))
        ordered.setdefault(service.name, service)

    for service in services:
        add(service, ())
    return list(ordered.values())


def _fill_in(text: str, places: Mapping[str, str]) -> str:
    # Not `str.format`: a command may hold braces of its own.
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return text


def dies_with_parent(command: Sequence[str]) -> list[str]:
    """Wrap a command so that the kernel ends it when this process dies, whatever the way.

    Args:
        command: An absolute path and its arguments.

    Returns:
        The command to start; unchanged outside Linux, and off the main thread, because Linux counts the end of the
        thread that started a process as the death of its parent.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def start_process(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that does not outlive this one, with its output and its errors in a file.

    Ctrl-C has to wait until it is started: a process that nobody holds yet could not be stopped.

    Args:
        command: An absolute path and its arguments.
        log: The file to write.
        environment: All of its environment variables; this process's own if None.
        cwd: Where it runs; this process's own directory if None.
    """
    with log.open("wb") as output, _interrupts_noted() as interrupts:
        process = subprocess.Popen(
            dies_with_parent(command),
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if interrupts:
        stop_processes([process])
        signal.raise_signal(signal.SIGINT)
    return process


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    noted: list[int] = []
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def stop_processes(processes: Iterable[subprocess.Popen[bytes]], timeout: float = 5.0) -> None:
    """End processes that may already have ended: ask all of them first, then wait, and kill what stays.

    Args:
        processes: What to stop.
        timeout: Seconds that each may take after being asked.
    """
    running = list(processes)
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses, and that neither the system nor `free_port` gives to others.

    What keeps it from other processes that ask in the same way is a UDP socket of the same number; the last 128 are
    held.

    Raises:
        OSError: All ports from 20,000 to 31,999 are in use.
    """
    first = random.SystemRandom().randrange(len(_PORTS))
    for port in itertools.chain(_PORTS[first:], _PORTS[:first]):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _hold(port)
            return port
    raise OSError("no port is free on 127.0.0.1")


def _hold(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as token:
        token.bind(("127.0.0.1", port))
        _held.append(token.detach())
    if len(_held) > _HELD:
        socket.close(_held.popleft())


class _WSGIServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # The default of 5 makes a connection that comes in a burst wait for a second.
    request_queue_size = 128

    def server_bind(self) -> None:
        # The standard one looks the host's name up, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _WSGIHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: what the application writes shall be found in its log."""


def serve_wsgi(arguments: Sequence[str] | None = None) -> None:
    """Serve a WSGI application until SIGTERM or Ctrl-C.

    Args:
        arguments: Those of the command line; this process's own if None.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {_SERVERS['wsgi']}", description="Serve a WSGI application.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("app", help="module:attribute")
    options = parser.parse_args(arguments)
    # `sys.exit` runs the exit handlers, which export what is queued.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.path.insert(0, os.getcwd())
    module, _, attribute = options.app.partition(":")
    with _WSGIServer((options.host, options.port), _WSGIHandler) as server:
        server.set_app(attrgetter(attribute or "app")(import_module(module)))
        server.serve_forever(0.05)


if __name__ == "__main__":
    serve_wsgi()
