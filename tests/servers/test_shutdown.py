"""The end of the ASGI lifespan exports what is queued, and cannot hold a server up."""

import asyncio
import contextlib

import pytest

from meshmw import _runtime as runtime
from meshmw._telemetry.handle import Telemetry
from meshmw.asgi import TraceContextMiddleware
from meshmw.propagator import MeshPropagator
from meshmw.settings import Settings


class Provider:
    """A tracer provider that only counts."""

    def __init__(self):
        self.flushes = []

    def force_flush(self, timeout_millis):
        self.flushes.append(timeout_millis)
        return True


class Processor:
    """Feeds a collector that answers or does not."""

    def __init__(self, *, failing):
        self.span_exporter = self
        self.failing = failing


def telemetry(provider, *, failing=False):
    return Telemetry(Settings(), MeshPropagator(), provider, owned=False, processor=Processor(failing=failing))


def serve_lifespan(fault=None):
    """Run an application through its lifespan; return what the server got to hear."""
    heard = []

    async def app(scope, receive, send):
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.failed" if fault else "lifespan.shutdown.complete"})
        if fault:
            raise fault

    async def receive():
        raise AssertionError("the application asks for nothing")

    async def send(message):
        heard.append(message["type"])

    with pytest.raises(type(fault)) if fault else contextlib.nullcontext():
        asyncio.run(TraceContextMiddleware(app)({"type": "lifespan"}, receive, send))
    return heard


@pytest.mark.parametrize(("fault", "end"), [(None, "complete"), (ValueError("no database"), "failed")])
def test_the_end_of_the_lifespan_exports_what_is_queued(monkeypatch, fault, end):
    provider = Provider()
    monkeypatch.setattr(runtime, "_installed", runtime.Runtime(flush=telemetry(provider).flush_before_end))
    assert serve_lifespan(fault) == ["lifespan.startup.complete", f"lifespan.shutdown.{end}"]
    assert provider.flushes == [2000]


def test_a_collector_that_is_known_not_to_answer_is_not_waited_for(monkeypatch):
    provider = Provider()
    flush = telemetry(provider, failing=True).flush_before_end
    monkeypatch.setattr(runtime, "_installed", runtime.Runtime(flush=flush))
    serve_lifespan()
    assert provider.flushes == []


@pytest.mark.parametrize("installed", [None, runtime.Runtime()], ids=["not-configured", "nothing-to-flush"])
def test_without_an_exporter_the_lifespan_passes_untouched(monkeypatch, installed):
    monkeypatch.setattr(runtime, "_installed", installed)
    assert serve_lifespan() == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
