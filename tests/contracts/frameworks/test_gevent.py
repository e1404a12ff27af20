"""gevent: a greenlet is a thread to us. Each case is a process of its own, patched before anything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from meshmw._telemetry.export import build_exporter
from meshmw.settings import Settings
from meshmw.testing import OtlpReceiver, dies_with_parent
from tests.programs import run_parts

SECONDS = 60
PATCHED = """
from gevent import monkey
monkey.patch_all()
"""
COMMON = """
import gevent, logging, os, signal, socket, threading, time
import gevent.pywsgi
from gevent.event import Event
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

logging.basicConfig(level=logging.WARNING)
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
import meshmw, meshmw.wsgi
from meshmw.concurrency import ThreadPoolExecutor, bind
meshmw.configure(meshmw.Settings(exporter="none"))

def trace_id():
    return f"{trace.get_current_span().get_span_context().trace_id:032x}"

def serve(application):
    server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), meshmw.wsgi.TraceContextMiddleware(application), log=None)
    server.start()
    return server

def ask(server, n):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        head = f"GET / HTTP/1.0\\r\\ntraceparent: 00-{n:032x}-00f067aa0ba902b7-01\\r\\n\\r\\n"
        connection.sendall(head.encode())
        return connection.makefile("rb").read().partition(b"\\r\\n\\r\\n")[2].decode()

def spans():
    return [span for span in exporter.get_finished_spans() if span.kind is trace.SpanKind.SERVER]
"""


def run(*parts, **environment):
    return run_parts(PATCHED, *parts, **environment)


def test_requests_that_take_turns_within_one_thread_keep_their_traces():
    run(
        COMMON,
        """
        COUNT = 20
        begun, all_there = [], Event()

        def application(environ, start_response):
            seen = [trace_id()]
            begun.append(seen[0])
            if len(begun) == COUNT:
                all_there.set()
            all_there.wait()
            seen.append(trace_id())
            start_response("200 OK", [])
            for _ in range(3):
                gevent.sleep(0)
                yield trace_id().encode() + b" "
            assert seen[0] == seen[1] == trace_id()

        server = serve(application)
        requests = [gevent.spawn(ask, server, n + 1) for n in range(COUNT)]
        gevent.joinall(requests, raise_error=True)
        assert [request.value.split() for request in requests] == [[f"{n + 1:032x}"] * 3 for n in range(COUNT)]
        assert sorted(span.context.trace_id for span in spans()) == list(range(1, COUNT + 1))
        assert not trace.get_current_span().get_span_context().is_valid
        """,
    )


def test_what_a_request_starts_belongs_to_it_once_it_is_bound():
    """A greenlet begins with an empty context, as a thread does."""
    run(
        COMMON,
        """
        def application(environ, start_response):
            start_response("200 OK", [])
            with ThreadPoolExecutor(1) as pool:
                return [" ".join([
                    gevent.spawn(trace_id).get(),
                    gevent.spawn(bind(trace_id)).get(),
                    gevent.get_hub().threadpool.apply(bind(trace_id)),
                    pool.submit(trace_id).result(),
                ]).encode()]

        server = serve(application)
        assert ask(server, 5).split() == ["0" * 32, *[f"{5:032x}"] * 3]
        """,
    )


def test_a_greenlet_that_is_killed_or_out_of_time_ends_its_span():
    run(
        COMMON,
        """
        workers = []

        def application(environ, start_response):
            workers.append(gevent.getcurrent())
            start_response("200 OK", [])
            yield b"x"
            with gevent.Timeout(0.01) if len(workers) == 2 else gevent.Timeout(None):
                Event().wait()

        server = serve(application)
        request = gevent.spawn(ask, server, 1)
        while not workers:
            gevent.sleep(0)
        gevent.sleep(0)
        workers[0].kill()
        request.get()
        ask(server, 2)
        assert [span.attributes["meshmw.response.incomplete"] for span in spans()] == [True, True]
        """,
    )


@pytest.mark.parametrize(
    ("patched", "exporter", "warns"), [(True, "otlp", True), (True, "otlp-http", False), (False, "otlp", False)]
)
def test_an_exporter_that_would_hold_requests_up_is_said(patched, exporter, warns):
    done = run(
        "" if patched else "import gevent.monkey; gevent.monkey.is_module_patched = lambda name: False",
        "import logging, meshmw; logging.basicConfig(); meshmw.configure()",
        MESHMW_EXPORTER=exporter,
        MESHMW_METRICS="otlp",
    )
    assert done.stderr.count("Set MESHMW_EXPORTER=otlp-http") == warns


def test_it_is_said_in_this_process_too(monkeypatch, caplog):
    """Where coverage sees it."""
    patched = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    build_exporter(Settings(exporter="otlp")).shutdown()
    assert "Set MESHMW_EXPORTER=otlp-http" in caplog.text


def test_a_collector_that_does_not_answer_holds_no_request_up_over_http():
    run(
        """
        import gevent, meshmw, socket
        from opentelemetry import trace

        deaf = socket.create_server(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        handle = meshmw.configure(meshmw.Settings(exporter="otlp-http", endpoint=address))
        trace.get_tracer("work").start_span("work").end()
        flush = gevent.spawn(handle.force_flush, 2)
        waiting, _ = deaf.accept()
        # The export waits for an answer. Whatever greenlet is next gets its turn all the same.
        assert waiting.recv(4) == b"POST"
        gevent.sleep(0)
        assert not flush.ready()
        waiting.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
        assert flush.get()
        """,
        OTEL_BSP_SCHEDULE_DELAY="600000",
    )


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_sigterm_exports_what_is_queued_and_ends_gevents_own_server_as_it_did(exporter):
    """Signals arrive in gevent's hub, which cannot wait for a greenlet."""
    # gevent looks for signals and then waits for events: one that arrives between the two is seen at the next event
    # (1 of 10,000, with any handler of Python's). The clock is that event, as traffic is elsewhere.
    program = """
    import os, gevent, gevent.pywsgi, meshmw, signal
    def tick():
        gevent.spawn_later(0.1, tick)
    from opentelemetry import trace
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    meshmw.configure()
    trace.get_tracer("work").start_span("work").end()
    server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), None)
    server.start()
    tick()
    os.write(1, b"w")
    server.serve_forever()
    """
    with OtlpReceiver() as collector:
        endpoint = collector.grpc_endpoint if exporter == "otlp" else collector.http_endpoint
        settings = {"MESHMW_EXPORTER": exporter, "MESHMW_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        command = dies_with_parent([sys.executable, "-c", PATCHED + textwrap.dedent(program)])
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | settings) as server:
            assert server.stdout.read(1) == b"w"
            server.terminate()
            server.communicate(timeout=SECONDS)
        assert server.returncode == -signal.SIGTERM
        assert [span.name for span in collector.spans] == ["work"]
