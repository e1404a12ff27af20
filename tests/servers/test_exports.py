"""Every worker exports its spans, also those still queued when the server is told to stop: none is lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

SECONDS = 60
# So long that nothing is exported before the end; and not measured, for coverage handles SIGTERM by itself.
QUEUED = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}

ONE_PROCESS = ["uvicorn", "uvicorn-no-lifespan", "hypercorn", "waitress", "werkzeug"]
TWO_WORKERS = [
    "uvicorn-workers",
    "hypercorn-workers",
    "granian-asgi",
    "granian-wsgi",
    "gunicorn-sync",
    "gunicorn-gthread",
    "gunicorn-asgi",
    "gunicorn-uvicorn",
    "gunicorn-gevent",
    # configure() was called, and a span exported, before these forked.
    "gunicorn-preload",
    "gunicorn-uvicorn-preload",
    "gunicorn-gevent-preload",
]
# A worker ends after three requests, and another takes its place.
RECYCLING = ["gunicorn-recycling", "hypercorn-recycling"]
# These leave SIGTERM to Python, which would end without exit handlers, and cut off what is under way.
KILLED = ["waitress", "werkzeug"]
# uvicorn ends its own graceful stop with the signal that began it.
DIE_OF_SIGTERM = ["uvicorn", "uvicorn-no-lifespan", *KILLED]


@dataclass
class Ended:
    """A server's whole life: what it answered, with what it ended, and which spans had arrived by then."""

    reports: dict[str, dict]
    held: dict[str, int]
    returncode: int
    arrived: dict[str, list]
    log: str


class Story:
    """Serves until *is_enough*, holds a request, stops the server, and sees what arrived."""

    def __init__(self, service, collector, new_ids, folder):
        self.service, self.collector, self.new_ids, self.folder = service, collector, new_ids, folder
        self.reports, self.held = {}, {}

    def ask(self, *_):
        trace, parent = self.new_ids()
        try:
            answer = self.service.ask(f"traceparent: 00-{trace}-{parent}-01")
        except ConnectionError:
            # A worker that is being replaced.
            return
        if answer.status == 200:
            self.reports[trace] = answer.report
            assert answer.report["trace_id"] == trace

    def serve(self, is_enough, at_once=4):
        deadline = time.monotonic() + SECONDS
        with ThreadPoolExecutor(at_once) as pool:
            while not is_enough(self.reports):
                assert time.monotonic() < deadline, f"{len(self.reports)} answers are not enough:\n{self.service.log}"
                list(pool.map(self.ask, range(at_once)))

    def hold(self, count=1):
        """Begin requests, and return a function that lets them end and waits for it."""
        threads = [threading.Thread(target=self._held) for _ in range(count)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + SECONDS
        while len(list(self.folder.glob("begun-*"))) < count:
            assert time.monotonic() < deadline, f"requests do not begin:\n{self.service.log}"
            time.sleep(0.01)

        def release():
            (self.folder / "end").touch()
            for thread in threads:
                thread.join(SECONDS)

        return release

    def _held(self):
        trace, parent = self.new_ids()
        answer = self.service.ask(f"traceparent: 00-{trace}-{parent}-01", path=f"/hold?folder={self.folder}")
        self.held[trace] = answer.status
        if answer.status == 200:
            assert answer.report["trace_id"] == trace

    def end(self, how=signal.SIGTERM, release=lambda: None):
        self.service.process.send_signal(how)
        release()
        returncode = self.service.process.wait(SECONDS)
        # The server is gone, so nothing is still on its way.
        arrived = {}
        for span in self.collector.spans:
            if span.kind == "SERVER" and span.trace_id in {*self.reports, *self.held}:
                arrived.setdefault(span.trace_id, []).append(span)
        return Ended(self.reports, self.held, returncode, arrived, self.service.log)


@pytest.fixture(scope="module")
def stories():
    return {}


@pytest.fixture
def story(own_fleet, collector, new_ids, tmp_path):
    def begin(name, **settings):
        own_fleet.launch(name, **QUEUED | settings)
        return Story(own_fleet.get(name), collector, new_ids, tmp_path)

    return begin


def workers_of(reports):
    return {report["pid"] for report in reports.values()}


def all_have_served(server, reports):
    """Say whether every worker has; granian forgets a signal that comes while one still starts."""
    return len(workers_of(reports)) == (2 if server in TWO_WORKERS else 1)


@pytest.fixture
def ended(request, stories, story):
    """A server that served, was sent SIGTERM while a request was under way, and ended; told once for all tests."""
    server = request.param
    if server not in stories:
        of_server = story(f"{server}/strict")
        of_server.serve(lambda reports: len(reports) >= 8 and all_have_served(server, reports))
        release = of_server.hold()
        # What will be cut off must not end while the last spans go out.
        stories[server] = of_server.end(release=(lambda: None) if server in KILLED else release)
        release()
    return stories[server]


@pytest.mark.parametrize("ended", [*ONE_PROCESS, *TWO_WORKERS], indirect=True)
class TestSigterm:
    def test_every_queued_span_arrives_once(self, ended):
        assert {trace: len(ended.arrived.get(trace, ())) for trace in ended.reports} == dict.fromkeys(ended.reports, 1)

    def test_each_span_names_the_process_that_made_it(self, ended):
        named = {trace: ended.arrived[trace][0].resource["service.instance.id"] for trace in ended.reports}
        assert named == {trace: report["instance"] for trace, report in ended.reports.items()}
        assert len(set(named.values())) == len(workers_of(ended.reports))

    def test_what_was_under_way_is_answered_and_its_span_arrives(self, request, ended):
        if request.node.callspec.params["ended"] in KILLED:
            assert set(ended.held.values()) == {0}
            return
        assert set(ended.held.values()) == {200}
        assert {trace: len(ended.arrived.get(trace, ())) for trace in ended.held} == dict.fromkeys(ended.held, 1)

    def test_the_exit_status_is_the_servers_own(self, request, ended):
        dies = request.node.callspec.params["ended"] in DIE_OF_SIGTERM
        assert ended.returncode == (-signal.SIGTERM if dies else 0), ended.log


@pytest.mark.parametrize("server", ["uvicorn-h11", "gunicorn", "waitress", "werkzeug"])
def test_queued_spans_arrive_after_an_interrupt(story, server):
    of_server = story(f"{server}/interrupted")
    of_server.serve(lambda reports: len(reports) >= 4)
    ended = of_server.end(signal.SIGINT)
    assert ended.arrived.keys() == ended.reports.keys()


@pytest.mark.parametrize("server", RECYCLING)
def test_the_spans_of_a_worker_that_was_replaced_arrive(story, server):
    of_server = story(f"{server}/strict")
    of_server.serve(lambda reports: len(workers_of(reports)) >= 3, at_once=1)
    ended = of_server.end()
    assert ended.arrived.keys() == ended.reports.keys(), ended.log
    assert len({span.resource["service.instance.id"] for [span] in ended.arrived.values()}) >= 3


def test_the_spans_of_a_process_that_reloads_its_code_arrive(story, own_fleet):
    watched = own_fleet.folder / "watched.py"
    watched.touch()
    of_server = story("uvicorn-reload/strict")
    of_server.serve(lambda reports: len(reports) >= 4)
    first = workers_of(of_server.reports)
    os.utime(watched, (in_an_hour := time.time() + 3600, in_an_hour))
    of_server.serve(lambda reports: workers_of(reports) > first, at_once=1)
    ended = of_server.end()
    assert ended.arrived.keys() == ended.reports.keys(), ended.log


@pytest.fixture
def deaf():
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("server", "exporter"),
    [
        ("uvicorn", "otlp"),
        ("granian-wsgi", "otlp-http"),
        ("gunicorn-sync", "otlp"),
        ("waitress", "otlp"),
    ],
)
def test_a_collector_that_does_not_answer_holds_no_server_up(story, deaf, server, exporter):
    of_server = story(f"{server}/deaf-{exporter}", MESHMW_ENDPOINT=deaf, MESHMW_EXPORTER=exporter)
    of_server.serve(lambda reports: all_have_served(server, reports))
    ended = of_server.end()
    assert ended.returncode == (-signal.SIGTERM if server in DIE_OF_SIGTERM else 0), ended.log
    assert ended.arrived == {}


def test_requests_of_one_worker_that_take_turns_keep_their_traces(story):
    of_server = story("gunicorn-gevent/turns")
    release = of_server.hold(8)
    release()
    ended = of_server.end()
    assert list(ended.held.values()) == [200] * 8
    assert ended.arrived.keys() == ended.held.keys()
