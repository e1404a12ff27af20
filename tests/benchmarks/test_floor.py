"""What is written as one function, to see how little it takes, does what meshmw does: else it would prove nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In a process of its own: the benchmarks set the global provider.
COMMON = """
import asyncio
import httpx
from opentelemetry import baggage, context as otel_context, trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.benchmarks.traffic import IDS, SAMPLED, UNSAMPLED, COMMON, headers, provider, receive, scope_of

exporter = InMemorySpanExporter()
provider().add_span_processor(SimpleSpanProcessor(exporter))

def told():
    spans = exporter.get_finished_spans()
    exporter.clear()
    return [
        (span.name, span.kind, dict(span.attributes), tuple(span.parent), span.status.status_code,
         span.status.description, [event.name for event in span.events], span.links, span.end_time is not None)
        for span in spans
    ]
"""
SERVED = """
from meshmw import asgi
from tests.benchmarks.floor_served import NotPlain, served_in_one_function

START, BODY = {"type": "http.response.start", "status": 200}, {"type": "http.response.body"}
MORE = BODY | {"more_body": True}
ANSWERS = {
    "whole": ([START, BODY], None, {}),
    "chunks": ([START, MORE, MORE, BODY], None, {}),
    "route": ([START, BODY], None, {"path_template": "/items/{item}"}),
    "trailers": ([START | {"trailers": True}, BODY, {"type": "http.response.trailers"}], None, {}),
    "file": ([START, {"type": "http.response.pathsend", "path": "/"}], None, {}),
    "twice": ([START, START | {"status": 404}, BODY], None, {}),
    "failure": ([START | {"status": 503}, BODY], None, {}),
    "nothing": ([], None, {}),
    "half": ([START, MORE], None, {}),
    "raised": ([], ValueError("first"), {}),
    "raised amid": ([START, MORE], ValueError("amid"), {}),
    "raised after": ([START, BODY], ValueError("after"), {}),
    "failure raised": ([START | {"status": 500}, BODY], ValueError("after"), {}),
    "cancelled": ([START], asyncio.CancelledError(), {}),
}

def seen(make, lines, answer):
    messages, error, more = answer
    found = []
    async def app(scope, receive, send):
        scope.update(more)
        context = trace.get_current_span().get_span_context()
        found.append((context.trace_id, dict(context.trace_state), baggage.get_all(), sorted(scope)))
        found.append(sorted(otel_context.get_current()))
        for message in messages:
            await send(message)
        found.append(len(exporter.get_finished_spans()))
        if error is not None:
            raise error
    async def send(message):
        found.append(message)
    scope = scope_of(lines)
    try:
        asyncio.run(make(app)(scope, receive, send))
    except BaseException as raised:
        found.append(raised)
    return found, sorted(scope), told()

REQUESTS = [
    headers(SAMPLED),
    headers(UNSAMPLED),
    [*COMMON[:2], ("traceparent", SAMPLED)],
    [*headers(SAMPLED), ("x-meshmw-sent", "b7ad6b7169203331-01")],
    [*COMMON, ("traceparent", SAMPLED), ("baggage", "")],
]
for lines in REQUESTS:
    for name, answer in ANSWERS.items():
        ours, one = (seen(make, lines, answer) for make in (asgi.TraceContextMiddleware, served_in_one_function))
        assert ours == one, (name, ours, one)
        assert len(ours[-1]) == (lines is not REQUESTS[1])

REFUSED = [
    COMMON,
    headers(SAMPLED.upper()),
    [*headers(SAMPLED), ("traceparent", SAMPLED)],
    [*COMMON, ("traceparent", SAMPLED), ("tracestate", "A B")],
    [*COMMON, ("traceparent", SAMPLED), ("tracestate", "a=" + "b" * 2048)],
    [*COMMON, ("traceparent", SAMPLED), ("baggage", "=")],
    [*COMMON, ("traceparent", SAMPLED), ("baggage", "a=" + "b" * 8192)],
    [*headers(UNSAMPLED), ("x-meshmw-sent", "b7ad6b7169203331-01")],
    [("traceparent", SAMPLED)],
    [*COMMON[:2], ("traceparent", SAMPLED), ("x-request-id", "x" * 1025)],
]
for lines in REFUSED:
    found, scope, spans = seen(served_in_one_function, lines, ANSWERS["whole"])
    assert (type(found[0]), spans) == (NotPlain, []), (lines, found, spans)
"""
SENT = """
from meshmw.httpx import TraceContextTransport
from tests.benchmarks.clients import URL, _around
from tests.benchmarks.floor_sent import SentInOneFunction

class Stream(httpx.SyncByteStream):
    def __iter__(self):
        yield b"ok"

ANSWERS = {
    "whole": lambda: httpx.Response(200, content=b"ok"),
    "failure": lambda: httpx.Response(404, content=b"ok"),
    "version": lambda: httpx.Response(200, content=b"ok", extensions={"http_version": b"HTTP/1.1"}),
    "stream": lambda: httpx.Response(200, stream=Stream()),
    "error": lambda: 1 / 0,
}

def seen(make, answer, parent):
    found = []
    class Answers(httpx.BaseTransport):
        def handle_request(self, request):
            # The span's id is a new one each time.
            own = f"{trace.get_current_span().get_span_context().span_id:016x}"
            found.append([(name, value.replace(own, "own")) for name, value in request.headers.multi_items()])
            # What stands contrib's packages down meanwhile is no part of the call.
            current = sorted(key for key in otel_context.get_current() if not key.startswith("suppress"))
            found.append((request.url, request.method, current))
            return answer()
    request = httpx.Request("GET", URL, headers={"accept": "*/*"})
    with _around(parent)():
        try:
            response = make(Answers()).handle_request(request)
            found.append((response.status_code, len(exporter.get_finished_spans())))
            found.append(response.read())
            response.close()
        except ZeroDivisionError as error:
            found.append(str(error))
        # The parent is a new span each time.
        after = [each[:3] + each[4:] for each in told()]
    found.append(request.headers.multi_items())
    exporter.clear()
    return found, after

for parent in (SAMPLED, UNSAMPLED):
    for name, answer in ANSWERS.items():
        ours, one = (seen(make, answer, parent) for make in (TraceContextTransport, SentInOneFunction))
        assert ours == one, (name, ours, one)
        assert len(ours[-1]) == (parent is SAMPLED)
"""


def test_a_request_that_is_served_in_one_function_is_served_as_by_the_middleware():
    subprocess.run([sys.executable, "-c", COMMON + SERVED], cwd=ROOT, check=True, timeout=120)


def test_a_call_that_is_sent_in_one_function_is_sent_as_by_the_transport():
    subprocess.run([sys.executable, "-c", COMMON + SENT], cwd=ROOT, check=True, timeout=120)
