"""What stands in for Windows and macOS, on which no test of ours runs: Linux without what they have not.

A process takes away what Windows' Python lacks, calls itself win32, and then uses each part. It cannot show what
Windows does differently with what it has: paths, pipes, the console.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

# Those of the standard library's documentation that say "Availability: Unix", and that one might think of here.
WITHOUT = """
import asyncio, ctypes, multiprocessing.util, os, signal, socket, subprocess, sys, uuid
import aiohttp, grpc, httpx, jinja2, requests, rich.console, typer, typer.testing, uvicorn, yaml
import celery.concurrency.prefork
import sysconfig
sysconfig.get_config_vars()
import opentelemetry.sdk.metrics, opentelemetry.sdk.trace
import opentelemetry.exporter.otlp.proto.grpc.trace_exporter, opentelemetry.exporter.otlp.proto.http.trace_exporter

TAKEN = {
    os: "fork forkpty getuid geteuid getgid getegid getpgid getpgrp setsid killpg register_at_fork O_NOFOLLOW "
        "O_NONBLOCK O_CLOEXEC O_DIRECTORY sched_getaffinity getloadavg uname sysconf mkfifo wait WNOHANG",
    signal: "SIGKILL SIGHUP SIGALRM SIGCHLD SIGUSR1 SIGUSR2 SIGQUIT alarm setitimer pthread_kill pthread_sigmask "
        "sigwait siginterrupt",
    socket: "AF_UNIX SO_REUSEPORT MSG_DONTWAIT",
}
# Windows has a pair of another kind.
pair_of_unix = socket.socketpair
socket.socketpair = lambda *_: pair_of_unix(1)
for module, names in TAKEN.items():
    for name in names.split():
        delattr(module, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"):
    sys.modules[name] = None
sys.platform = "win32"
"""

USES = {
    "each module": """
import importlib, pkgutil, meshmw
for found in pkgutil.walk_packages(meshmw.__path__, "meshmw."):
    # A framework's adapter needs its framework, which may need Unix; `auto` configures.
    if not found.name.endswith(("__main__", ".auto", "meshmw.django", "meshmw.kafka", "meshmw.rabbitmq")):
        importlib.import_module(found.name)
""",
    "requests and their spans": """
import meshmw, meshmw.asgi, meshmw.httpx, meshmw.wsgi
from meshmw.testing import OtlpReceiver

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})

def wsgi_app(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]

async def call():
    inner = httpx.ASGITransport(meshmw.asgi.TraceContextMiddleware(app))
    async with meshmw.httpx.AsyncClient(transport=inner) as client:
        assert (await client.get("http://shop/")).text == "ok"

with OtlpReceiver() as receiver:
    settings = meshmw.Settings(service_name="shop", exporter="otlp-http", endpoint=receiver.http_endpoint)
    before = signal.getsignal(signal.SIGTERM)
    with meshmw.configure(settings):
        assert signal.getsignal(signal.SIGTERM) is before
        asyncio.run(call())
        with meshmw.httpx.Client(transport=httpx.WSGITransport(meshmw.wsgi.TraceContextMiddleware(wsgi_app))) as client:
            assert client.get("http://shop/").text == "ok"
    spans = receiver.spans
assert sorted(span.kind for span in spans) == ["CLIENT", "CLIENT", "SERVER", "SERVER"], spans
assert len({span.trace_id for span in spans}) == 2
""",
    "tools": """
import pathlib, tempfile
from typer.testing import CliRunner
from meshmw._tools.commands import app
dump = pathlib.Path(tempfile.mkdtemp()) / "dump.json"
dump.write_text('{"configs": []}')
for words in (["--help"], ["settings"], ["inspect", "-H", "traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01"],
    ["mesh-config", "istio"], ["doctor", str(dump)], ["doctor"], ["access-log", str(dump)]):
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
    assert "Traceback" not in done.output
    assert done.output, words
""",
    "testing": """
import pathlib, tempfile
from meshmw.testing import dies_with_parent, free_port, start_process, stop_processes
assert len({free_port() for _ in range(200)}) > 190
command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
assert dies_with_parent(command) == command
""",
}


@pytest.mark.parametrize("use", USES)
def test_without_what_windows_lacks(use):
    done = subprocess.run([sys.executable, "-c", WITHOUT + USES[use]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
