"""Every worker exports its spans, also those still queued when the server is told to stop: none is lost.

And of whole lives, what servers have said in them: with no logging set up, one line that meshmw is on.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import pytest

SECONDS = 60
# Servers spend much of their lives waiting: for their workers, for the test, for a collector that is deaf.
AT_ONCE = 4
# So long that nothing is exported before the end; and not measured, for coverage handles SIGTERM by itself.
QUEUED = {"OTEL_BSP_SCHEDULE_DELAY": "600000", "COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}

# Half of what a worker's start costs is its framework. Flask's own command serves nothing else.
BARE = {"asgi": "bare:asgi", "wsgi": "bare:wsgi"}
FLASK = {"wsgi": "flask_app:app"}

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
    "uwsgi-lazy",
]
# From Python 3.13 on, uWSGI 2.0.30 with py-call-osafterfork answers nothing, whatever it serves.
FORKING_UWSGI = ["uwsgi"] if sys.version_info < (3, 13) else []
TWO_WORKERS += FORKING_UWSGI
# A worker ends after three requests, and another takes its place.
RECYCLING = ["gunicorn-recycling", "hypercorn-recycling"]
# These leave SIGTERM to Python, which would end without exit handlers, and cut off what is under way.
KILLED = ["waitress", "werkzeug"]
# uvicorn ends its own graceful stop with the signal that began it.
DIE_OF_SIGTERM = ["uvicorn", "uvicorn-no-lifespan", *KILLED]

# How the server's own lines begin; ours where it has none.
UVICORNS_FORM = r"^INFO:     "
OF_UVICORN = ["uvicorn", "uvicorn-no-lifespan", "uvicorn-workers", "uvicorn-reload"]
DAPHNES_FORM = r"^[-0-9: ,]+ INFO     "
COMMON_FORM = r"^\[[-0-9: +]+\] \[\d+\] \[INFO\] "


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

    def __init__(self, server, service, collector, folder):
        self.server, self.service, self.collector, self.folder = server, service, collector, folder
        self.reports, self.held = {}, {}

    def new_ids(self):
        return f"{secrets.token_hex(15)}af", f"{secrets.token_hex(7)}af"

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

    def end(self, how=signal.SIGTERM, release=lambda: None, is_for_all=False):
        (os.killpg if is_for_all else os.kill)(self.service.process.pid, how)
        release()
        returncode = self.service.process.wait(SECONDS)
        # The server is gone, so nothing is still on its way.
        arrived = {}
        for span in self.collector.spans:
            if span.kind == "SERVER" and span.trace_id in {*self.reports, *self.held}:
                arrived.setdefault(span.trace_id, []).append(span)
        return Ended(self.reports, self.held, returncode, arrived, self.service.log)


def workers_of(reports):
    return {report["pid"] for report in reports.values()}


def all_have_served(server, reports):
    """Say whether every worker has; granian forgets a signal that comes while one still starts."""
    return len(workers_of(reports)) == (2 if server in TWO_WORKERS else 1)


def stopped(story):
    """Serve, and be sent SIGTERM while a request is under way."""
    story.serve(lambda reports: len(reports) >= 8 and all_have_served(story.server, reports))
    release = story.hold()
    # What will be cut off must not end while the last spans go out.
    ended = story.end(release=(lambda: None) if story.server in KILLED else release)
    release()
    return ended


def interrupted(story):
    """Serve, and be sent what Ctrl-C sends."""
    story.serve(lambda reports: len(reports) >= 4)
    return story.end(signal.SIGINT)


def answered(story):
    """Serve."""
    story.serve(lambda reports: len(reports) >= 4)
    return story.end()


def recycled(story):
    """Serve until several workers have been replaced."""
    story.serve(lambda reports: len(workers_of(reports)) >= 3, at_once=1)
    return story.end()


def reloaded(story):
    """Serve, and again when the code has changed."""
    story.serve(lambda reports: len(reports) >= 4)
    first = workers_of(story.reports)
    os.utime(story.watched, (in_an_hour := time.time() + 3600, in_an_hour))
    story.serve(lambda reports: workers_of(reports) > first, at_once=1)
    return story.end()


def stopped_together(story):
    """Serve until both workers have, and have every process be sent SIGTERM at once."""
    story.serve(lambda reports: len(workers_of(reports)) == 2)
    return story.end(is_for_all=True)


def deaf(story):
    """Serve, and be stopped while the collector does not answer."""
    story.serve(lambda reports: all_have_served(story.server, reports))
    return story.end()


def turns(story):
    """Hold several requests at once in few workers."""
    release = story.hold(8)
    release()
    return story.end()


class Stories:
    """Tells the stories of all selected tests, several at once, in the order in which they are asked for.

    Processes are started by the main thread alone: others' children do not end with this process.
    """

    def __init__(self, wanted, begin, pool):
        self.waiting, self.begin, self.pool = list(dict.fromkeys(wanted)), begin, pool
        self.told = {}

    def get(self, key):
        while key not in self.told or not self.told[key].done():
            under_way = [each for each in self.told.values() if not each.done()]
            while self.waiting and len(under_way) < AT_ONCE:
                under_way.append(self._tell(self.waiting.pop(0)))
            wait(under_way, return_when=FIRST_COMPLETED)
        return self.told[key].result()

    def _tell(self, key):
        try:
            story = self.begin(key)
        except (pytest.skip.Exception, pytest.fail.Exception) as outcome:
            self.told[key] = Future()
            self.told[key].set_exception(outcome)
        else:
            self.told[key] = self.pool.submit(lambda: key[0](story()))
        return self.told[key]


@pytest.fixture(scope="module")
def silent_endpoint():
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def stories(request, own_fleet, collector, silent_endpoint, tmp_path_factory):
    watched = own_fleet.folder / "watched.py"
    watched.touch()

    def begin(key):
        tell, server, exporter = key
        name = f"{server}/{tell.__name__}-{exporter}"
        endpoint = {"otlp": collector.grpc_endpoint, "otlp-http": collector.http_endpoint}[exporter]
        other = {"MESHMW_ENDPOINT": silent_endpoint if tell is deaf else endpoint}
        own_fleet.launch(
            name, FLASK if server.startswith("werkzeug") else BARE, **QUEUED, MESHMW_EXPORTER=exporter, **other
        )

        def story():
            it = Story(server, own_fleet.get(name), collector, tmp_path_factory.mktemp("story"))
            it.watched = watched
            return it

        return story

    items = [each for each in request.session.items if each.path == request.path and hasattr(each, "callspec")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield Stories([each.callspec.params["ended"] for each in items], begin, pool)


@pytest.fixture(scope="module")
def ended(request, stories):
    """A server that has ended; its story is told once for all tests."""
    return stories.get(request.param)


def the_ends(tell, *servers):
    """Return the mark of a test of how each server ended; a server's name may be followed by the exporter's."""
    keys = [(tell, *(each.split() if " " in each else (each, "otlp"))) for each in servers]
    return pytest.mark.parametrize("ended", keys, indirect=True, ids=["-".join(each.split()) for each in servers])


def server_of(request):
    return request.node.callspec.params["ended"][1]


def assert_it_says_once_that_it_is_on(request, log):
    tell, server, exporter = request.node.callspec.params["ended"]
    forms = {"daphne": DAPHNES_FORM, "granian-asgi": "", "granian-wsgi": ""} | dict.fromkeys(OF_UVICORN, UVICORNS_FORM)
    form = forms.get(server, COMMON_FORM)
    (line,) = [line for line in log.splitlines() if "meshmw ready" in line]
    service = re.escape(f"{server}/{tell.__name__}-{exporter}")
    assert re.search(f"{form}meshmw ready: .*service={service}", line), line


@the_ends(stopped, *ONE_PROCESS, *TWO_WORKERS)
class TestSigterm:
    def test_every_queued_span_arrives_once(self, ended):
        assert {trace: len(ended.arrived.get(trace, ())) for trace in ended.reports} == dict.fromkeys(ended.reports, 1)

    def test_each_span_names_the_process_that_made_it(self, ended):
        named = {trace: ended.arrived[trace][0].resource["service.instance.id"] for trace in ended.reports}
        assert named == {trace: report["instance"] for trace, report in ended.reports.items()}
        assert len(set(named.values())) == len(workers_of(ended.reports))

    def test_what_was_under_way_is_answered_and_its_span_arrives(self, request, ended):
        if server_of(request) in KILLED:
            assert set(ended.held.values()) == {0}
            return
        assert set(ended.held.values()) == {200}
        assert {trace: len(ended.arrived.get(trace, ())) for trace in ended.held} == dict.fromkeys(ended.held, 1)

    def test_the_exit_status_is_the_servers_own(self, request, ended):
        assert ended.returncode == (-signal.SIGTERM if server_of(request) in DIE_OF_SIGTERM else 0), ended.log

    def test_a_tree_of_processes_says_once_that_it_is_on(self, request, ended):
        assert_it_says_once_that_it_is_on(request, ended.log)


@the_ends(answered, "werkzeug-debug")
def test_so_does_the_reloader_of_werkzeug_and_its_child(request, ended):
    assert_it_says_once_that_it_is_on(request, ended.log)


@the_ends(interrupted, "uvicorn-h11", "gunicorn", "waitress", "werkzeug")
def test_queued_spans_arrive_after_an_interrupt(ended):
    assert ended.arrived.keys() == ended.reports.keys()


@the_ends(recycled, *RECYCLING)
def test_the_spans_of_a_worker_that_was_replaced_arrive(ended):
    assert ended.arrived.keys() == ended.reports.keys(), ended.log
    assert len({span.resource["service.instance.id"] for [span] in ended.arrived.values()}) >= 3


@the_ends(reloaded, "uvicorn-reload")
class TestReload:
    def test_the_spans_of_a_process_that_reloads_its_code_arrive(self, ended):
        assert ended.arrived.keys() == ended.reports.keys(), ended.log

    def test_a_reload_does_not_say_again_that_it_is_on(self, request, ended):
        assert_it_says_once_that_it_is_on(request, ended.log)


@the_ends(deaf, "uvicorn otlp", "granian-wsgi otlp-http", "gunicorn-sync otlp", "waitress otlp")
def test_a_collector_that_does_not_answer_holds_no_server_up(request, ended):
    assert ended.returncode == (-signal.SIGTERM if server_of(request) in DIE_OF_SIGTERM else 0), ended.log
    assert ended.arrived == {}


@the_ends(turns, "gunicorn-gevent")
def test_requests_of_one_worker_that_take_turns_keep_their_traces(ended):
    assert list(ended.held.values()) == [200] * 8
    assert ended.arrived.keys() == ended.held.keys()


@the_ends(answered, "daphne")
def test_daphne_exports_what_is_queued_and_cuts_off_what_is_under_way(request, ended):
    assert ended.arrived.keys() == ended.reports.keys(), ended.log
    assert ended.returncode == 0
    assert_it_says_once_that_it_is_on(request, ended.log)


@the_ends(stopped_together, *(f"{each} otlp-http" for each in FORKING_UWSGI), "uwsgi-lazy otlp-http", "uwsgi-lazy otlp")
def test_uwsgi_ends_where_its_workers_get_two_signals_at_once(ended):
    """That of the group, and the master's own: the second one must not be handled in a thread of ours."""
    assert ended.returncode == 0, ended.log
