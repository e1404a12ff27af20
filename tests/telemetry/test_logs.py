"""Ids on log records: of the span, of the request that a real server logs, and nothing where there is none."""

from __future__ import annotations

import io
import json
import logging
import re
import secrets
import sys
import time
from pathlib import Path

import httpx
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext

from meshmw import logs
from meshmw._lifecycle import serving
from meshmw.logs import FORMAT, JsonFormatter, TraceContextFilter, add_trace_context, ids_of
from meshmw.testing._processes import start_process, stop_processes


@pytest.fixture
def written():
    """Return a logger, and a function that returns what it wrote with a formatter."""
    logger = logging.Logger("app")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)

    def write(formatter, filtered=True):
        handler.setFormatter(formatter)
        handler.filters = [TraceContextFilter()] if filtered else []
        return logger, stream.getvalue

    return write


@pytest.fixture
def span():
    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("t").start_as_current_span("s") as current:
        yield current.get_span_context()


def ids(span_context):
    return {
        "trace_id": f"{span_context.trace_id:032x}",
        "span_id": f"{span_context.span_id:016x}",
        "trace_flags": f"{span_context.trace_flags:02x}",
    }


def test_dir_shows_what_a_user_imports():
    assert dir(logs) == sorted(logs.__all__)


class TestFilter:
    def test_a_record_within_a_span_has_its_ids(self, written, span):
        logger, text = written(logging.Formatter("%(trace_id)s %(span_id)s %(trace_flags)s|%(trace)s"))
        logger.info("x")
        found = ids(span)
        assert text() == (f"{' '.join(found.values())}| trace_id={found['trace_id']} span_id={found['span_id']}\n")

    def test_without_a_span_there_is_nothing_and_no_zero(self, written):
        logger, text = written(logging.Formatter("[%(trace_id)s%(span_id)s%(trace_flags)s%(trace)s] %(message)s"))
        logger.info("x")
        assert text() == "[] x\n"

    def test_the_recipe_shows_both(self, written, span):
        logger, text = written(logging.Formatter(FORMAT))
        logger.info("hello")
        assert re.fullmatch(r"[-\d]+ [\d:,]+ INFO app trace_id=[0-9a-f]{32} span_id=[0-9a-f]{16}: hello\n", text())

    def test_a_span_that_is_not_recorded_has_ids_too(self, written):
        logger, text = written(logging.Formatter("%(trace_flags)s %(trace_id)s"))
        with TracerProvider(ALWAYS_OFF, shutdown_on_exit=False).get_tracer("t").start_as_current_span("s") as current:
            logger.info("x")
        assert text().split()[1] == f"{current.get_span_context().trace_id:032x}"
        assert int(text().split()[0], 16) & 1 == 0

    def test_what_a_record_brings_along_stays(self, written, span):
        logger, text = written(logging.Formatter("%(trace_id)s %(trace)s"))
        logger.info("x", extra={"trace_id": "mine", "trace": "own"})
        assert text() == "mine own\n"

    @pytest.mark.parametrize("name", ["trace_id", "span_id"])
    def test_one_id_that_a_record_brings_along_stands_alone_and_raises_nothing(self, name, written, span):
        logger, text = written(logging.Formatter(FORMAT))
        logger.info("x", extra={name: "mine"})
        assert text().endswith(f" INFO app {name}=mine: x\n")


class TestJson:
    def test_one_line_with_ids_and_extra(self, written, span):
        logger, text = written(JsonFormatter(), filtered=False)
        logger.warning(
            "hello\n%s",
            "w\u00f6rld",
            extra={
                "order": 7,
                "odd": {
                    1,
                },
            },
        )
        line = json.loads(text())
        assert text().count("\n") == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*\+00:00", line.pop("timestamp"))
        assert line == {
            "level": "WARNING",
            "logger": "app",
            "message": "hello\nw\u00f6rld",
            "order": 7,
            "odd": "{1}",
            **ids(span),
        }

    def test_what_json_cannot_say_is_said_in_another_way_and_no_line_is_lost(self, written):
        logger, text = written(JsonFormatter())
        circle = []
        circle.append(circle)
        for odd in ({("a", 1): 2}, float("nan"), circle, "\udcff"):
            logger.info("x", extra={"odd": odd})
        text().encode()
        said = [json.loads(line, parse_constant=pytest.fail)["odd"] for line in text().splitlines()]
        assert said == ["{('a', 1): 2}", "nan", "[[...]]", "\udcff"]

    def test_without_a_span_the_keys_are_not_there(self, written):
        logger, text = written(JsonFormatter())
        logger.info("x")
        assert set(json.loads(text())) == {"timestamp", "level", "logger", "message"}

    def test_an_exception_and_a_stack_are_text(self, written):
        logger, text = written(JsonFormatter())
        try:
            raise KeyError("k")
        except KeyError:
            logger.exception("failed", stack_info=True)
        line = json.loads(text())
        assert "KeyError: 'k'" in line["exception"]
        assert "test_an_exception" in line["stack"]

    def test_a_record_that_a_queue_carried_to_another_thread_keeps_its_ids(self, written, span):
        record = logging.makeLogRecord({"msg": "x", "name": "app"})
        TraceContextFilter().filter(record)
        from opentelemetry.context import Context, attach, detach

        token = attach(Context())
        try:
            assert ids_of(record) == ids(span)
        finally:
            detach(token)


class TestStructlog:
    def log(self, *processors):
        return structlog.wrap_logger(
            structlog.ReturnLogger(), processors=[*processors, structlog.processors.JSONRenderer()]
        )

    def test_an_event_within_a_span_has_its_ids(self, span):
        found = json.loads(self.log(add_trace_context).info("hello", trace_flags="mine"))
        assert found == {"event": "hello", **ids(span), "trace_flags": "mine"}

    def test_without_a_span_there_is_nothing(self):
        assert json.loads(self.log(add_trace_context).info("hello")) == {"event": "hello"}

    def test_records_of_the_standard_library_are_asked_too(self, written, span):
        formatter = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[add_trace_context], processor=structlog.processors.JSONRenderer()
        )
        logger, text = written(formatter, filtered=False)
        logger.info("hello")
        assert json.loads(text())["trace_id"] == ids(span)["trace_id"]


class TestWhichRequest:
    """A server's record takes the ids of the request that it is about, and of no other."""

    SPAN = SpanContext(1, 2, is_remote=False)

    def record(self, name, args, **more):
        return logging.makeLogRecord({"name": name, "args": args, **more})

    @pytest.fixture(autouse=True)
    def _noted(self):
        token = serving._SERVED.set(serving.Served(self.SPAN, "GET", "/a b"))
        yield
        serving._SERVED.reset(token)

    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("uvicorn.access", ("1.2.3.4:5", "GET", "/a%20b?q=1", "1.1", 200)),
            ("gunicorn.access", {"m": "GET", "U": "/a b"}),
            ("hypercorn.access", {"m": "GET", "U": "/a b"}),
        ],
    )
    def test_the_one_that_was_served(self, name, args):
        assert ids_of(self.record(name, args))["trace_id"] == f"{1:032x}"

    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("uvicorn.access", ("1.2.3.4:5", "POST", "/a%20b", "1.1", 200)),
            ("uvicorn.access", ("1.2.3.4:5", "GET", "/other", "1.1", 200)),
            ("uvicorn.access", None),
            ("uvicorn.access", ("one",)),
            ("gunicorn.access", {"m": "GET", "U": "/other", "{meshmw.operation}e": "forged"}),
            ("gunicorn.access", {}),
            ("uvicorn.error", ("Invalid HTTP request",)),
            ("app", ("1.2.3.4:5", "GET", "/a%20b", "1.1", 200)),
        ],
    )
    def test_another_one_has_nothing(self, name, args):
        assert ids_of(self.record(name, args)) == {}

    def test_gunicorn_hands_out_the_environ_in_which_the_operation_is(self):
        class Operation:
            span = NonRecordingSpan(SpanContext(7, 8, is_remote=False))

        record = self.record("gunicorn.access", {"m": "GET", "U": "/a b", "{meshmw.operation}e": Operation()})
        assert ids_of(record)["trace_id"] == f"{7:032x}"

    def test_a_request_is_noted_once_somebody_wants_to_know(self):
        TraceContextFilter()
        assert serving.is_wanted
        serving.note(SpanContext(3, 4, is_remote=False), "GET", "/n")
        assert serving.noted().path == "/n"

    def test_an_exception_that_the_server_logs_is_the_served_ones(self):
        assert ids_of(self.record("uvicorn.error", None, exc_info=(ValueError, ValueError(), None)))

    def test_nothing_is_noted_where_nothing_was_served(self):
        serving._SERVED.set(None)
        assert ids_of(self.record("uvicorn.access", ("c", "GET", "/a%20b", "1.1", 200))) == {}


SERVERS = {
    "uvicorn-h11": "uvicorn logged_app:asgi_app --host 127.0.0.1 --port 0 --http h11 --loop asyncio",
    "uvicorn-httptools": "uvicorn logged_app:asgi_app --host 127.0.0.1 --port 0 --http httptools --loop asyncio",
    "hypercorn": "hypercorn logged_app:asgi_app --bind 127.0.0.1:0 --access-logfile -",
    "gunicorn-sync": "gunicorn logged_app:wsgi_app --bind 127.0.0.1:0 --access-logfile - --no-control-socket",
    "gunicorn-gthread": "gunicorn logged_app:wsgi_app --bind 127.0.0.1:0 --access-logfile - --threads 2"
    " --no-control-socket",
    "gunicorn-asgi": "gunicorn logged_app:asgi_app --bind 127.0.0.1:0 --access-logfile - --worker-class asgi"
    " --no-control-socket",
}
READY = re.compile(r"(?:[Rr]unning on|Listening at:) http://127\.0\.0\.1:(\d+)")
SECONDS = 60


@pytest.fixture(params=SERVERS)
def server(request, tmp_path):
    """Start a real server, and return its URL and a function that waits for a line of its log."""
    log = tmp_path / "server.log"
    process = start_process(
        [sys.executable, "-u", "-m", *SERVERS[request.param].split()], log, cwd=Path(__file__).parent
    )

    def wait_for(pattern):
        deadline = time.monotonic() + SECONDS
        while (found := re.search(pattern, log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return found

    yield f"http://127.0.0.1:{wait_for(READY)[1]}", wait_for, request.param
    stop_processes([process])


def test_a_real_servers_access_log_has_the_requests_trace_and_span(server):
    url, wait_for, name = server
    access = name.partition("-")[0] + r"\.access"
    paths = ["/", "/a%20b?q=1"] + ["/fails"] * (name.startswith("uvicorn"))
    with httpx.Client() as client:  # one connection, on which requests follow each other
        client.get(url)  # only now do some servers write with our handler
        for path in paths:
            trace_id = secrets.token_hex(16)
            client.get(f"{url}{path}", headers={"traceparent": f"00-{trace_id}-{'2' * 16}-01"})
            of_app = wait_for(rf"LINE INFO app trace_id={trace_id} span_id=(\w+): serving")
            wait_for(rf"LINE INFO {access} trace_id={trace_id} span_id={of_app[1]}: ")
            if path == "/fails":
                wait_for(rf"LINE ERROR uvicorn\.error trace_id={trace_id} span_id={of_app[1]}: Exception in ASGI")
