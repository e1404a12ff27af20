"""A collector that refuses, hangs, drags, resets, is overloaded or talks nonsense, and one that comes back.

Between exporter and collector stands a TCP proxy that does what networks do; the collector is a real one.
"""

from __future__ import annotations

import time
from typing import get_args

import pytest
from opentelemetry.trace import SpanKind

from meshmw import Settings
from meshmw._telemetry.handle import Telemetry
from meshmw._telemetry.provider import build_provider
from meshmw.testing import Fault, FaultProxy, OtlpReceiver
from tests.telemetry.rotel import Rotel, require_rotel

QUEUE = 64
SECONDS = 60


@pytest.fixture(scope="module")
def receiver():
    with OtlpReceiver() as found:
        yield found


@pytest.fixture(scope="module")
def rotel(receiver, tmp_path_factory, request):
    require_rotel(request.config)
    with Rotel(receiver.grpc_endpoint, tmp_path_factory.mktemp("rotel")) as found:
        yield found


class Service:
    """Makes spans as a service under load does, through the pipeline that `configure()` builds."""

    def __init__(self, exporter, endpoint):
        settings = Settings(exporter=exporter, endpoint=endpoint, batching=f"moderate/{QUEUE}", service_name="s")
        self.provider, self.processor = build_provider(settings)
        self.handle = Telemetry(settings, None, self.provider, owned=True, processor=self.processor)
        self._tracer = self.provider.get_tracer("t")

    def serve(self, number=1, name="served"):
        for _ in range(number):
            with self._tracer.start_as_current_span(name, kind=SpanKind.SERVER) as span:
                assert span.is_recording()
            assert self.processor.queue_length <= QUEUE

    def serve_until(self, done, name="served"):
        deadline = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < deadline, vars(self.processor.collector)
            self.serve(name=name)
            time.sleep(0.005)


@pytest.fixture
def service(monkeypatch):
    """Return a function that starts a service that exports to an endpoint; short times, so that faults show soon."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    started = []

    def start(exporter, endpoint):
        started.append(Service(exporter, endpoint))
        return started[-1]

    yield start
    for each in started:
        each.handle.shutdown(0.1)


def endpoint_of(receiver, exporter):
    return receiver.grpc_endpoint if exporter == "otlp" else receiver.http_endpoint


def arrived(receiver, name):
    return lambda: any(span.name == name for span in receiver.spans)


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
@pytest.mark.parametrize("fault", get_args(Fault))
def test_requests_go_on_memory_is_bounded_and_export_resumes_by_itself(fault, exporter, receiver, service, caplog):
    with FaultProxy(endpoint_of(receiver, exporter)) as proxy:
        told = service(exporter, proxy.endpoint)
        told.serve_until(arrived(receiver, f"before {fault} {exporter}"), name=f"before {fault} {exporter}")
        collector = told.processor.collector
        with proxy.outage(fault):
            told.serve(4 * QUEUE)
            if fault == "slow":
                told.serve_until(arrived(receiver, "served"))
            else:
                told.serve_until(lambda: collector.exports_failed)
                assert "requests are unaffected" in caplog.text
        told.serve_until(arrived(receiver, f"after {fault} {exporter}"), name=f"after {fault} {exporter}")
        told.serve_until(lambda: not collector.failing)
        receiver.clear()


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
@pytest.mark.parametrize("fault", ["hang", "unavailable", "flood"])
def test_the_end_comes_within_its_time(fault, exporter, receiver, service, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120")  # what an export may take is far more than what the end may
    with FaultProxy(endpoint_of(receiver, exporter)) as proxy, proxy.outage(fault):
        told = service(exporter, proxy.endpoint)
        told.serve(QUEUE)
        began = time.monotonic()
        told.handle.shutdown(1.0)
        assert time.monotonic() - began < SECONDS
        assert told.processor.dropped_ended + told.processor.collector.spans_lost > 0


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
def test_a_real_collector_that_is_stopped_continued_killed_and_started_again(exporter, rotel, receiver, service):
    receiver.clear()
    told = service(exporter, f"127.0.0.1:{rotel.grpc_port if exporter == 'otlp' else rotel.http_port}")
    collector = told.processor.collector
    told.serve_until(arrived(receiver, "first"), name="first")
    rotel.stop()
    told.serve_until(lambda: collector.exports_failed)
    rotel.resume()
    told.serve_until(arrived(receiver, "continued"), name="continued")
    failed = collector.exports_failed
    rotel.kill()
    told.serve_until(lambda: collector.exports_failed > failed)
    rotel.start()
    told.serve_until(arrived(receiver, "restarted"), name="restarted")
    told.serve_until(lambda: not collector.failing)
    assert told.processor.queue_length <= QUEUE


def test_a_collector_that_let_a_flush_pass_is_not_waited_for_again(receiver, service, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120")
    with FaultProxy(endpoint_of(receiver, "otlp")) as proxy, proxy.outage("hang"):
        told = service("otlp", proxy.endpoint)
        told.serve(QUEUE)
        assert told.handle.force_flush(0.2) is False
        told.handle.shutdown(600)
        assert told.processor.shutdown_seconds == 1.0
