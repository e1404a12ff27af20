"""Processes: the caller's span and baggage reach the child as headers, and the child's spans reach the collector."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context, create_key

import meshmw
from meshmw import concurrency
from meshmw._context.current import Current
from meshmw._telemetry import configure as bootstrap
from meshmw.concurrency import Carried, ProcessPoolExecutor, from_headers, to_headers
from meshmw.propagator import MeshPropagator
from tests.programs import clean_environment

pytestmark = pytest.mark.usefixtures("strict_context")

PROGRAM = Path(__file__).with_name("pool_program.py")
FAULTS = Path(__file__).with_name("fault_program.py")
HEADERS = {
    "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
    "tracestate": "a=1",
    "baggage": "user=7;secret",
    "x-request-id": "id-7",
}
# Telemetry has threads, and since Python 3.12 each fork beside a thread is warned of. The HTTP client under the OTLP
# exporter leaves its idle connections to the garbage collector.
WARNINGS = ["-W", "error", "-W", "ignore:This process:DeprecationWarning", "-W", "ignore:unclosed:ResourceWarning"]
every_start_method = pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])


def run(scenario, method, endpoint="127.0.0.1:9"):
    """Run a scenario in a process of its own, where every warning is an error, and return what it printed."""
    return run_program(PROGRAM, scenario, method, endpoint)


def run_program(*words):
    program = subprocess.run(
        [sys.executable, *WARNINGS, *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert program.returncode == 0, program.stderr
    return json.loads(program.stdout), program.stderr


class TestEachStartMethod:
    @every_start_method
    @pytest.mark.parametrize("exporter", ["grpc", "http"])
    def test_a_childs_spans_are_in_the_trace_and_are_exported(self, method, exporter, otlp_receiver):
        endpoint = getattr(otlp_receiver, f"{exporter}_endpoint")
        said, errors = run(f"spans_over_{exporter}", method, endpoint)
        spans = otlp_receiver.wait_for(lambda spans: len({span.name for span in spans}) >= 8)
        assert errors == ""
        work = {span.name: span for span in spans if span.name.startswith("work")}
        assert sorted(work) == ["work 1", "work 2", "work 3", "work 4"]
        assert {(span.parent_id, span.trace_id, span.service) for span in work.values()} == {
            (said["request"], "ab" * 16, "program")
        }
        assert {span.parent_id for span in spans if span.name == "initializer"} == {""}

        assert said["own"] not in {result["pid"] for result in said["results"]}
        for number, result in enumerate(said["results"], 1):
            own = f"00-{'ab' * 16}-{work[f'work {number}'].span_id}-01"
            assert result["headers"] == HEADERS | {"traceparent": own}
            assert result["user"] == "7"
        assert said["outside"]["headers"] == HEADERS
        assert said["initialized"] == "text"

    @every_start_method
    def test_an_applications_own_provider_is_the_applications_to_set(self, method, otlp_receiver):
        run("own_provider", method, otlp_receiver.http_endpoint)
        spans = {span.name: span for span in otlp_receiver.wait_for(2)}
        assert {span.service for span in spans.values()} == {"own"}
        assert spans["work 1"].parent_id == spans["request"].span_id

    @every_start_method
    def test_without_configure_the_headers_are_carried_all_the_same(self, method):
        said, _ = run("not_configured", method)
        assert said["headers"]["traceparent"] == HEADERS["traceparent"]
        assert said["headers"]["baggage"].startswith("user=7")

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_a_worker_that_ends_after_one_task_exports_its_spans(self, method, otlp_receiver):
        pids, _ = run("one_task_per_child", method, otlp_receiver.grpc_endpoint)
        assert len(set(pids)) == 2
        assert {"work 0", "work 1"} <= {span.name for span in otlp_receiver.wait_for(3)}

    @every_start_method
    def test_a_dead_collector_changes_no_result(self, method):
        assert run("dead_collector", method)[0] is None

    @every_start_method
    def test_faults_come_to_the_same_as_with_the_standard_executor(self, method):
        outcomes, _ = run_program(FAULTS, method)
        assert len(outcomes) == 8
        for standard, ours in outcomes:
            assert ours == standard
        assert [ours.split(":")[1].strip() for _, ours in outcomes] == [
            "('ValueError', 'from the task', '_RemoteTraceback', 1)",
            outcomes[1][0].split(":")[1].strip(),  # the error of pickle is another from version to version
            "('TypeError', 1)",
            "BrokenProcessPool",
            "BrokenProcessPool",
            "TypeError",
            "RuntimeError",
            "(1, True)",
        ]

    @every_start_method
    def test_loops_and_threads_hand_on_to_processes(self, method):
        assert run("loops", method)[0] == [HEADERS] * 4


class TestHeaders:
    @pytest.mark.parametrize("formats", [["tracecontext", "baggage"], ["b3"], []])
    def test_the_formats_between_services_do_not_matter_between_processes(self, formats):
        context = MeshPropagator().extract(HEADERS)
        assert MeshPropagator(formats).write(context) != HEADERS
        again = from_headers(to_headers(context))
        assert to_headers(again) == to_headers(context)
        assert {name: text for name, text in to_headers(again).items() if name in HEADERS} == HEADERS

    def test_what_trace_flags_cannot_say_stays(self):
        propagator = MeshPropagator(["b3"])
        for b3 in f"{'ab' * 16}-{'cd' * 8}-d", f"{'ab' * 16}-{'cd' * 8}":
            context = propagator.extract({"b3": b3})
            assert propagator.write(from_headers(to_headers(context)))["b3"] in (b3, b3 + "-0")

    def test_all_baggage_that_settings_can_let_in_goes_through_unchanged(self):
        # More properties than 256 are not taken (law 1).
        raw = ",".join(f"key{n}=value%20" + f";property={n}" * (n < 256) for n in range(1024))
        context = MeshPropagator(baggage_max_members=1024, baggage_max_bytes=61_440).extract({"baggage": raw})
        assert to_headers(from_headers(to_headers(context)))["baggage"] == raw

    def test_nothing_is_nothing_and_complains_of_nothing(self, caplog):
        assert to_headers(Context()) == {}
        assert from_headers({}) == {}
        assert baggage.get_all(from_headers({"baggage": "a=1"})) == {"a": "1"}
        assert caplog.text == ""

    def test_nothing_is_pickled_but_strings_and_the_function(self):
        with Current(MeshPropagator().extract(HEADERS, Context({create_key("other"): lambda: None}))):
            carried = Carried(describe)
        copy = pickle.loads(pickle.dumps(carried))
        assert all(type(part) is str for pair in copy._headers.items() for part in pair)
        assert copy() == (int("ab" * 16, 16), "7")
        assert describe() == (0, None)

    def test_an_exception_leaves_no_context(self):
        with pytest.raises(ZeroDivisionError):
            Carried(lambda: 1 / 0)()


def describe():
    return trace.get_current_span().get_span_context().trace_id, baggage.get_baggage("user")


class TestForkedConnections:
    def test_a_forked_process_opens_connections_of_its_own_and_leaves_its_parents_alone(self, monkeypatch):
        from meshmw._telemetry.http_session import BoundedSession

        closed, used = [], []

        class Adapter(requests.adapters.HTTPAdapter):
            def send(self, request, **options):
                used.append(self)
                return answer

            def close(self):
                closed.append(self)

        answer = requests.Response()
        answer.status_code, answer.raw = 200, io.BytesIO()
        monkeypatch.setattr("meshmw._telemetry.http_session._TimedAdapter", Adapter)
        session = BoundedSession()
        session.mount("http://", parents := Adapter())
        session.get("http://collector.test/")
        session.get("http://collector.test/")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        session.get("http://collector.test/")
        session.get("http://collector.test/")
        assert used[:2] == [parents, parents]
        assert used[2] is used[3] is not parents
        assert closed == []


class TestWorker:
    """What a worker does when it begins, here in the process of the test."""

    @pytest.fixture
    def happened(self, monkeypatch):
        happened = []
        monkeypatch.setattr(concurrency, "configure", lambda settings: happened.append(("configure", settings)))
        monkeypatch.setattr(
            concurrency, "Finalize", lambda obj, call, exitpriority: happened.append(("finalize", call))
        )
        return happened

    def telemetry(self, monkeypatch, settings, *, owned):
        telemetry = type("Telemetry", (), {"settings": settings, "owned": owned})
        monkeypatch.setattr(bootstrap, "_configured", telemetry)

    def started(self):
        """Return what a new process gets of the settings."""
        return pickle.loads(pickle.dumps(concurrency._OwnSettings()))

    def test_the_settings_come_first_and_are_equal_whatever_they_are(self, happened, monkeypatch):
        settings = meshmw.Settings(
            propagators=["b3", "baggage"],
            trusted_peers=["10.0.0.0/8"],
            exporter="none",
            sampling_ratio=0.5,
            exclude=["/a"],
        )
        self.telemetry(monkeypatch, settings, owned=True)
        concurrency._begin_worker(self.started(), lambda *args: happened.append(args), (1, 2))
        (_, configured), (finalize, call), arguments = happened
        assert (configured, finalize, call, arguments) == (settings, "finalize", meshmw._runtime.flush, (1, 2))

    def test_where_the_application_has_a_provider_its_initializer_comes_first(self, happened, monkeypatch):
        self.telemetry(monkeypatch, meshmw.Settings(), owned=False)
        concurrency._begin_worker(self.started(), lambda: happened.append("initializer"), ())
        assert happened[1] == "initializer"
        assert happened[2] == ("configure", meshmw.Settings(exporter="none"))

    def test_a_parent_that_is_not_configured_configures_no_child(self, happened, monkeypatch):
        monkeypatch.setattr(bootstrap, "_configured", None)
        concurrency._begin_worker(self.started(), None, ())
        assert [what for what, _ in happened] == ["finalize"]

    def test_a_forked_child_has_the_settings_already(self, happened):
        concurrency._begin_worker(concurrency._OwnSettings(), None, ())
        assert [what for what, _ in happened] == ["finalize"]

    def test_the_context_of_whoever_forked_is_not_the_initializers(self, happened):
        seen = []
        with Current(Context({create_key("of a request"): 1})):
            concurrency._begin_worker("", lambda: seen.append(otel_context.get_current()), ())
        assert seen == [{}]

    def test_settings_that_the_child_cannot_use_are_said_and_the_work_goes_on(self, happened, monkeypatch, caplog):
        def refuse(settings):
            raise meshmw.MissingExtraError("the exporter", "otlp")

        self.telemetry(monkeypatch, meshmw.Settings(), owned=True)
        monkeypatch.setattr(concurrency, "configure", refuse)
        concurrency._begin_worker(self.started(), lambda: happened.append("initializer"), ())
        assert happened[-1] == "initializer"
        assert "a worker process exports no spans" in caplog.text

    def test_an_initializer_must_be_callable(self):
        with pytest.raises(TypeError, match="initializer must be a callable"):
            ProcessPoolExecutor(1, initializer="text")
