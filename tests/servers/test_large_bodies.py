"""100 MB through a real server: nothing is buffered, whichever way it goes; files are still sent by sendfile."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import pytest

from tests.matrix.served import Connection, Ids, told, wait_for
from tests.programs import not_installed
from tests.soak.server import Server

MB = 1 << 20
LARGE = 100 * MB
CHUNK = 65_536
# What may come on top: socket buffers, and what the allocator keeps. A body that was held would be five times that.
ALLOWED = 20 * MB
SECONDS = 60
APPS = Path(__file__).parent / "apps"


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def server(request, tmp_path_factory):
    missing = [name for name in ("uvicorn", "gunicorn") if importlib.util.find_spec(name) is None]
    if missing:
        not_installed(request.config, f"not installed: run  pip install {' '.join(missing)}")
    file = tmp_path_factory.mktemp("large") / "file"
    with file.open("wb") as empty:
        empty.truncate(LARGE)
    paths = os.pathsep.join([str(APPS), os.environ.get("PYTHONPATH", "")])
    with Server(request.param, f"large_{request.param}:app", PYTHONPATH=paths, LARGE_FILE=str(file)) as server:
        server.interface = request.param
        assert wait_for(lambda: answers(server)), server.log
        yield server


def answers(server):
    assert not server.has_ended, server.log
    try:
        return ask(server, "/received")
    except OSError:
        return None


def ask(server, path, *lines):
    connection = Connection(server.port)
    try:
        return connection.ask(path, *lines)
    finally:
        connection.close()


def send(server, head, ids):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
    connection.sendall(
        f"{head} HTTP/1.1\r\nHost: large.test\r\n{': '.join(ids.traceparent)}\r\nConnection: close\r\n".encode()
    )
    return connection


def read_all(connection):
    """Read what is left; return its size, and how it ends."""
    size, end = 0, b""
    while some := connection.recv(MB):
        size += len(some)
        end = (end + some)[-100:]
    return size, end


def has_one_span(server, ids):
    return wait_for(lambda: told(ask(server, "/spans")).count(ids.trace) == 1)


@pytest.mark.parametrize("path", [f"/down?chunks={LARGE // CHUNK}", "/file"], ids=["stream", "file"])
def test_a_large_response_is_never_held(server, path):
    ids = Ids()
    server.forget_peak()
    before = server.resident_bytes()
    with send(server, f"GET {path}", ids) as connection:
        connection.sendall(b"\r\n")
        assert read_all(connection)[0] > LARGE
    assert server.peak_bytes() - before < ALLOWED
    assert has_one_span(server, ids)


def test_a_large_request_is_never_held(server):
    ids = Ids()
    server.forget_peak()
    before = server.resident_bytes()
    with send(server, "POST /up", ids) as connection:
        connection.sendall(f"Content-Length: {LARGE}\r\n\r\n".encode())
        for _ in range(LARGE // CHUNK):
            connection.sendall(b"x" * CHUNK)
        assert read_all(connection)[1].endswith(str(LARGE).encode())
    assert server.peak_bytes() - before < ALLOWED
    assert has_one_span(server, ids)


def test_the_first_chunk_arrives_before_the_last_one_is_made(server):
    with send(server, "GET /waits", Ids()) as connection:
        connection.sendall(b"\r\n")
        got = b""
        while b"first" not in got:
            got += connection.recv(1000)
        # Only now can the rest be made.
        ask(server, "/go-on")
        assert b"last" in read_all(connection)[1]


def test_the_first_bytes_reach_the_application_before_the_last_ones_are_sent(server):
    with send(server, "POST /up", Ids()) as connection:
        connection.sendall(f"Content-Length: {4 * CHUNK}\r\n\r\n".encode() + b"x" * CHUNK * 2)
        assert wait_for(lambda: CHUNK <= int(ask(server, "/received")) <= 2 * CHUNK)
        connection.sendall(b"x" * CHUNK * 2)
        assert read_all(connection)[1].endswith(str(4 * CHUNK).encode())


@pytest.mark.parametrize("server", ["wsgi"], indirect=True)
def test_a_file_is_sent_by_sendfile(server):
    with send(server, "GET /file", Ids()) as connection:
        connection.sendall(b"\r\n")
        assert read_all(connection)[0] > LARGE
    assert ask(server, "/reads") == b"0"


def test_nothing_failed_to_detach(server):
    assert "Failed to detach" not in server.log
