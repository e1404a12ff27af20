"""Real servers in threads, and requests whose header lines arrive as written; nothing here is traced by anybody."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from opentelemetry import trace
from werkzeug.serving import make_server

Lines = Sequence[tuple[str, str]]
SECONDS = 60


class Ids:
    """Holds a trace that a caller has begun."""

    def __init__(self) -> None:
        self.trace = f"{secrets.token_hex(15)}af"
        self.parent = f"{secrets.token_hex(7)}af"

    @property
    def traceparent(self) -> tuple[str, str]:
        """The header line that names it."""
        return "traceparent", f"00-{self.trace}-{self.parent}-01"


def trace_here() -> str:
    """Return the current trace id, all zeros where there is no span."""
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"


def span_here() -> str:
    """Return the current span id."""
    return f"{trace.get_current_span().get_span_context().span_id:016x}"


def trace_of(span: Any) -> str:
    """Return the trace id of an ended span."""
    return f"{span.context.trace_id:032x}"


def parent_of(span: Any) -> str:
    """Return the id of an ended span's parent; empty for a root."""
    return f"{span.parent.span_id:016x}" if span.parent else ""


def wait_for(found: Callable[[], Any]) -> Any:
    """Return what a function returns as soon as it is true, or false after all."""
    deadline = time.monotonic() + SECONDS
    while not (result := found()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return result


class Connection:
    """Keeps one connection."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)

    def ask(self, path: str = "/", *lines: tuple[str, str], method: str = "GET", body: bytes = b"") -> bytes:
        """Send a request and return the response's body."""
        self.send(path, *lines, method=method, body=body)
        response = self._http.getresponse()
        return response.read()

    def send(self, path: str, *lines: tuple[str, str], method: str = "GET", body: bytes = b"") -> None:
        """Send a request."""
        self._http.putrequest(method, path)
        for line in itertools.chain(lines, [("Content-Length", str(len(body)))] if body else []):
            self._http.putheader(*line)
        self._http.endheaders(body or None)

    def read_some(self) -> bytes:
        """Read the beginning of what comes."""
        return self._http.sock.recv(1000)

    def close(self) -> None:
        """Hang up."""
        self._http.close()


@contextlib.contextmanager
def uvicorn_serves(app: Any, loop: str = "asyncio", lifespan: str = "off") -> Iterator[int]:
    """Serve an ASGI application, and yield the port."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, loop=loop, lifespan=lifespan, timeout_graceful_shutdown=5
    )
    server, bound = uvicorn.Server(config), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    try:
        assert wait_for(lambda: server.started), "uvicorn did not start"
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(SECONDS)


@contextlib.contextmanager
def werkzeug_serves(app: Any) -> Iterator[int]:
    """Serve a WSGI application in one thread, one request after the other, and yield the port."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL + 1)
    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join(SECONDS)
        server.server_close()


def ask_once(serves: Any, app: Any, path: str = "/", *lines: tuple[str, str], **options: Any) -> bytes:
    """Serve an application for one request."""
    with serves(app) as port:
        connection = Connection(port)
        try:
            return connection.ask(path, *lines, **options)
        finally:
            connection.close()


def told(answer: bytes) -> Any:
    """Return the JSON of an answer."""
    return json.loads(answer)
