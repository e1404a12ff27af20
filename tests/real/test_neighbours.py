"""meshmw beside other telemetry in one process: one SERVER and one CLIENT span, in the trace that the request is in.

docs/compatibility.md says of each whose spans these are, and names these tests.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import meshmw
from meshmw.testing import OtlpReceiver, dies_with_parent, free_port, stop_processes
from tests.programs import clean_environment
from tests.real.install import real_server

SECONDS = 120
CALLER = "b7ad6b7169203331"
TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"valid": f"00-{TRACE}-{CALLER}-01", "malformed": "00-malformed", "none": None}
REFUSED = "meshmw: traceparent refused (hex)"
NO_PARENT = ("", "0" * 16)

DDTRACE = {
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
    "DD_TRACE_AGENT_URL": "http://127.0.0.1:9",
}


@dataclass(frozen=True)
class Case:
    """Describes what one application is set up beside, and what is then expected.

    Attributes:
        app: The application in apps/neighbours.py; its own name, where it is run once.
        server: The scope of the SERVER span. What ddtrace has made has its name instead.
        client: The same of the CLIENT span of a call by our client.
        plain: The same of a call by httpx's own client; None where that is not traced.
        under: The program beside Python that runs the server.
        settings: Further environment variables.
        says: What others write of being set up in this way.
    """

    app: str
    server: str = "meshmw"
    client: str = "meshmw"
    plain: str | None = None
    under: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()


CONTRIBS, CONTRIBS_HTTPX = "opentelemetry.instrumentation.fastapi", "opentelemetry.instrumentation.httpx"
LOGFIRES, LOGFIRES_HTTPX = "logfire.fastapi", "logfire.httpx"
CASES = {
    "alone": Case("alone"),
    "opentelemetry-instrument": Case("alone", CONTRIBS, plain=CONTRIBS_HTTPX, under="opentelemetry-instrument"),
    "logfire-before": Case("logfire_before", CONTRIBS, plain=CONTRIBS_HTTPX),
    "logfire-after": Case(
        "logfire_after", CONTRIBS, plain=CONTRIBS_HTTPX, says=("Overriding of current TracerProvider is not allowed",)
    ),
    "sentry-before": Case("sentry_before"),
    "sentry-after": Case("sentry_after"),
    "sentry-otel": Case("sentry_otel"),
    "ddtrace-run": Case("datadog", under="ddtrace-run", settings=DDTRACE),
    "ddtrace-run-otel": Case(
        "datadog",
        "fastapi.request",
        "http.request",
        "http.request",
        "ddtrace-run",
        DDTRACE | {"DD_TRACE_OTEL_ENABLED": "true"},
    ),
    "prometheus": Case("prometheus"),
    "fastmcp": Case("fastmcp"),
}


class Made(NamedTuple):
    """A span that was exported, whoever made it."""

    scope: str
    kind: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str


@dataclass
class Story:
    """What a whole life of the application has left."""

    case: Case
    answers: dict[str, Any]
    kept: Any
    spans: list[Made]
    metrics: str
    log: str

    def of(self, kind: str, trace_id: str) -> list[Made]:
        return [span for span in self.spans if (span.kind, span.trace_id) == (kind, trace_id)]


class NextHop(http.server.BaseHTTPRequestHandler):
    """Answers with the header lines that it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps([[name.lower(), value] for name, value in self.headers.items()]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextlib.contextmanager
def next_hop() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NextHop)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/next"
    finally:
        server.shutdown()
        server.server_close()


def ask(port: int, path: str, traceparent: str | None = None, order: Any = None) -> Any:
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if traceparent is not None:
        headers |= {"traceparent": traceparent, "baggage": "tenant=north"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request("POST" if order else "GET", path, json.dumps(order) if order else None, headers)
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status == 200, body
    return json.loads(body) if answer.headers["content-type"] == "application/json" else body.decode()


CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "item", "arguments": {"number": 7}}}


@dataclass
class Application:
    """An application of a case that runs, and what hears of it."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    collector: OtlpReceiver
    log: Path

    def tell(self) -> Story:
        """Ask it with each header, end it, and return what came of it."""
        case, collector = CASES[self.name], self.collector
        try:
            _wait_for(self.port, self.process, self.log)
            order = CALL if self.name == "fastmcp" else None
            path = "/mcp" if order else "/items/7"
            answers = {kind: ask(self.port, path, header, order) for kind, header in HEADERS.items()}
            kept = [] if order else ask(self.port, "/kept")
            metrics = ask(self.port, "/metrics") if self.name == "prometheus" else ""
            if case.server != "fastapi.request":
                collector.wait_for(lambda spans: len([span for span in spans if span.kind == "SERVER"]) >= len(HEADERS))
        finally:
            stop_processes([self.process], timeout=SECONDS)
        spans = [
            Made(each.scope, each.kind, each.name, each.trace_id, each.span_id, each.parent_id)
            for each in collector.spans
        ]
        if case.server == "fastapi.request":
            made = [(each["name"], str(each["kind"]).upper(), each["resource"], *map(each.get, IDS)) for each in kept]
            spans = [Made(*each) for each in made]
        return Story(case, answers, kept, spans, metrics, self.log.read_text(errors="replace"))


@contextlib.contextmanager
def application(name: str, folder: Path, of_meshmw: Path, home: Path) -> Iterator[Application]:
    """Start the application of a case, in the main thread: off it, nothing would end it with this process."""
    case, port, python = CASES[name], free_port(), str(folder / "bin" / "python")
    under = [python, str(folder / "bin" / case.under)] if case.under else []
    log_file = home / f"{name}.log"
    with next_hop() as hop, OtlpReceiver() as collector, log_file.open("wb") as log:
        environment = clean_environment() | {
            "PYTHONPATH": f"{of_meshmw}:{Path(__file__).parent / 'apps'}",
            "MESHMW_SHOW_LOG": "true",
            "NEXT_HOP": hop,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.http_endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "1000",
            # What one neighbour does at its start takes a whole core for seconds.
            "COVERAGE_PROCESS_START": "",
        }
        command = [*under, python, "-m", "uvicorn", "--factory", f"neighbours:{case.app}", "--port", str(port)]
        process = subprocess.Popen(dies_with_parent(command), env=environment | case.settings, stdout=log, stderr=log)
        try:
            yield Application(name, port, process, collector, log_file)
        finally:
            stop_processes([process], timeout=SECONDS)


class Stories:
    """Tells each story once. The next application starts meanwhile, for each spends seconds on its imports."""

    def __init__(self, names: Iterable[str], start: Callable[[str], Application]) -> None:
        self._names, self._start = list(names), start
        self._running: dict[str, Application] = {}
        self._told: dict[str, Future[Story]] = {}

    def of(self, name: str) -> Story:
        if name not in self._told:
            self._told[name] = told = Future()
            following = (each for each in self._names if each not in self._told)
            for each in (name, *islice(following, 1)):
                if each not in self._running:
                    self._running[each] = self._start(each)
            try:
                told.set_result(self._running[name].tell())
            except Exception as error:
                told.set_exception(error)
        return self._told[name].result()


IDS = ("trace_id", "span_id", "parent_id")


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as trial:
            trial.connect()
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stories(request, tmp_path_factory):
    """The story of each case that a test of this run asks for."""
    folder = real_server(request.config, "neighbours")
    home = tmp_path_factory.mktemp("neighbours")
    # meshmw alone, and no other package of the environment that runs the tests.
    (home / "path").mkdir()
    (home / "path" / "meshmw").symlink_to(Path(meshmw.__file__).parent)
    mine = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = dict.fromkeys(item.callspec.params["story"] for item in mine)
    with contextlib.ExitStack() as running:
        yield Stories(names, lambda name: running.enter_context(application(name, folder, home / "path", home)))


@pytest.fixture
def story(request, stories):
    return stories.of(request.param)


def of(*names):
    """Return the mark of a test of the stories of some cases."""
    return pytest.mark.parametrize("story", names, indirect=True)


EVERY = [name for name in CASES if name != "fastmcp"]


@of(*EVERY)
class TestARequest:
    def test_it_is_answered_in_its_own_trace_and_a_malformed_header_begins_a_new_one(self, story):
        answers = story.answers
        assert [answer["traceparent"] for answer in answers.values()] == [HEADERS["valid"], None, None]
        assert answers["valid"]["trace_id"] == TRACE
        assert len({answer["trace_id"] for answer in answers.values()} - {"0" * 32}) == 3

    def test_it_has_one_server_span(self, story):
        for kind, answer in story.answers.items():
            (span,) = story.of("SERVER", answer["trace_id"])
            assert (span.scope, span.name) == (story.case.server, "GET /items/{item}")
            assert span.parent_id in ([CALLER] if kind == "valid" else NO_PARENT)

    def test_a_call_of_our_client_has_one_client_span_and_carries_it_once(self, story):
        for answer in story.answers.values():
            self.assert_carried(story, answer, "ours", story.case.client)

    def test_so_has_a_call_of_another_client_where_somebody_traces_it(self, story):
        for answer in story.answers.values():
            if story.case.plain is not None:
                self.assert_carried(story, answer, "plain", story.case.plain)

    def assert_carried(self, story, answer, client, scope):
        (server,) = story.of("SERVER", answer["trace_id"])
        (text,) = [value for name, value in answer[client] if name == "traceparent"]
        _, trace_id, span_id, _ = text.split("-")
        assert trace_id == answer["trace_id"]
        (span,) = [each for each in story.of("CLIENT", trace_id) if each.span_id == span_id]
        assert (span.scope, span.parent_id) == (scope, server.span_id)
        assert len(story.of("CLIENT", trace_id)) == (1 if story.case.plain is None else 2)

    def test_baggage_goes_on(self, story):
        lines = [value for name, value in story.answers["valid"]["ours"] if name == "baggage"]
        assert lines == ["tenant=north"]


@of(*CASES)
def test_what_is_warned_of_is_the_malformed_header_alone(story):
    warned = [line for line in story.log.splitlines() if "WARNING" in line and "meshmw" in line]
    assert len(warned) == 1, story.log
    assert REFUSED in warned[0]
    said = [line for line in story.log.splitlines() if "not allowed" in line]
    assert said == list(story.case.says)


@of("ddtrace-run")
def test_ddtrace_sends_spans_of_its_own_to_its_agent(story):
    servers = [span for span in story.kept if (span["kind"], span["route"]) == ("server", "/items/{item}")]
    assert [span["name"] for span in servers] == ["fastapi.request"] * 3
    assert (servers[0]["trace_id"], servers[0]["parent_id"]) == (TRACE, CALLER)
    assert {span["trace_id"] for span in servers[1:]}.isdisjoint(
        answer["trace_id"] for answer in story.answers.values()
    )


@of("sentry-before", "sentry-after")
def test_sentry_sends_transactions_of_its_own_with_trace_ids_of_its_own(story):
    transactions = [each["trace_id"] for each in story.kept if each["name"] == "/items/{item}"]
    assert len(transactions) == 3
    assert set(transactions).isdisjoint(answer["trace_id"] for answer in story.answers.values())


@of("sentry-otel")
def test_sentry_makes_its_transactions_of_our_spans(story):
    transactions = [each["trace_id"] for each in story.kept if each["name"] == "GET /items/{item}"]
    assert transactions == [answer["trace_id"] for answer in story.answers.values()]


@of("prometheus")
def test_the_metrics_count_requests_by_their_route(story):
    assert 'http_requests_total{handler="/items/{item}",method="GET",status="2xx"} 3.0' in story.metrics


@of("fastmcp")
def test_fastmcp_makes_a_server_span_of_each_call_below_that_of_its_request(story):
    for kind, answer in story.answers.items():
        found = answer["result"]["structuredContent"]
        http_span, rpc_span = sorted(story.of("SERVER", found["trace_id"]), key=lambda span: span.scope != "meshmw")
        assert (http_span.name, rpc_span.name) == ("POST /mcp", "tools/call item")
        assert http_span.parent_id == (CALLER if kind == "valid" else "")
        assert rpc_span.parent_id == http_span.span_id
        (client,) = story.of("CLIENT", found["trace_id"])
        assert client.parent_id == rpc_span.span_id
        (text,) = [value for name, value in found["ours"] if name == "traceparent"]
        assert text.split("-")[1:3] == [client.trace_id, client.span_id]
        assert (found["trace_id"] == TRACE) == (kind == "valid")
