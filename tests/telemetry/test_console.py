"""Spans on standard output: one tree for each request."""

from __future__ import annotations

import io

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from meshmw._telemetry import export as console
from meshmw._telemetry.export import TreeSpanExporter

CALLER = SpanContext(0x4B << 120, 0x7A << 56, is_remote=True, trace_flags=TraceFlags(1))


@pytest.fixture
def tracer():
    """Return a tracer whose spans are printed as soon as they end."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(TreeSpanExporter()))
    yield provider.get_tracer("test")
    provider.shutdown()


def test_a_request_is_one_tree_written_at_its_end(tracer, capsys):
    context = trace.set_span_in_context(NonRecordingSpan(CALLER))
    with tracer.start_as_current_span("GET /checkout", context, SpanKind.SERVER) as server:
        with tracer.start_as_current_span("reserve"), tracer.start_as_current_span("GET", kind=SpanKind.CLIENT) as call:
            call.set_attribute("server.address", "inventory")
            call.set_attribute("http.response.status_code", 404)
            call.set_attribute("error.type", "404")
            call.set_status(Status(StatusCode.ERROR))
        assert capsys.readouterr().out == ""
        with tracer.start_as_current_span("write\x1b[2J\nthe answer"):
            pass
        server.set_attribute("http.response.status_code", 200)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["", f"trace {CALLER.trace_id:032x}  continues the caller's span {CALLER.span_id:016x}"]
    # Milliseconds differ.
    texts = [line.partition(" ms")[0].rstrip("0123456789.").rstrip() for line in lines[2:]]
    assert texts == [
        "  SERVER GET /checkout",
        "  ├─ reserve",
        "  │  └─ CLIENT GET",
        "  └─ write\\x1b[2J\\x0athe answer",
    ]
    assert [line.partition(" ms")[2].strip() for line in lines[2:]] == ["200", "", "inventory  404  ERROR 404", ""]


def test_a_trace_that_begins_here_says_so(tracer, capsys):
    tracer.start_span("tick").end()
    assert capsys.readouterr().out.splitlines()[1].endswith("  began here")


def test_what_ends_after_its_parent_is_written_at_once(tracer, capsys):
    with tracer.start_as_current_span("served") as parent:
        late = tracer.start_span("mail")
    capsys.readouterr()
    late.end()
    _, first, line = capsys.readouterr().out.splitlines()
    span_id = parent.get_span_context().span_id
    assert first.endswith(f"  below the span {span_id:016x}, which was written before, or has not ended")
    assert line.startswith("  mail ")


def test_what_never_finds_its_parent_is_written_at_the_end(capsys):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(TreeSpanExporter()))
    tracer = provider.get_tracer("test")
    with trace.use_span(tracer.start_span("never ends")):
        tracer.start_span("waits").end()
    assert capsys.readouterr().out == ""
    provider.shutdown()
    assert "  waits " in capsys.readouterr().out


def test_no_more_than_so_many_wait(tracer, capsys, monkeypatch):
    monkeypatch.setattr(console, "_MOST", 2)
    with trace.use_span(tracer.start_span("never ends")):
        for _ in range(3):
            tracer.start_span("waits").end()
    assert capsys.readouterr().out.count("  waits ") == 3


def test_a_chain_of_thousands_is_drawn(tracer, capsys):
    spans = [tracer.start_span("0")]
    for number in range(1, 3_000):
        spans.append(tracer.start_span(str(number), trace.set_span_in_context(spans[-1])))
    for span in spans[::-1]:
        span.end()
    assert len(capsys.readouterr().out.splitlines()) >= 3_000


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_show_is_escaped(encoding, tracer, monkeypatch):
    monkeypatch.setattr("sys.stdout", stdout := io.TextIOWrapper(io.BytesIO(), encoding))
    with tracer.start_as_current_span("parent"), tracer.start_as_current_span("child \u65e5"):
        pass
    written = stdout.buffer.getvalue().decode(encoding)
    assert "  parent" in written
    assert "  \\u2514\\u2500 child \\u65e5" in written


def test_a_stream_of_text_has_no_encoding(tracer, monkeypatch):
    monkeypatch.setattr("sys.stdout", stdout := io.StringIO())
    tracer.start_span("alone \u65e5").end()
    assert "  alone \u65e5" in stdout.getvalue()
