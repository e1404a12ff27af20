"""What every test application answers: the headers it saw, the span it ran in, and the headers it sent on."""

import os

import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor

PROPAGATION = {"traceparent", "tracestate", "baggage", "b3", "x-request-id"}


def is_propagation(name):
    return name.lower() in PROPAGATION or name.lower().startswith("x-b3-")


def echo(request):
    """Answer a call with the propagation headers that it carried."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
    return httpx.Response(200, json=[pair for pair in pairs if is_propagation(pair[0])])


def seen_in_scope(headers):
    """Return the propagation header lines of an ASGI scope."""
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return [pair for pair in pairs if is_propagation(pair[0])]


def seen_in_environ(environ):
    """Return the propagation headers of a WSGI environ."""
    names = {key: key.removeprefix("HTTP_").replace("_", "-").lower() for key in environ if key.startswith("HTTP_")}
    return [(name, environ[key]) for key, name in names.items() if is_propagation(name)]


class ServerSpans(SpanProcessor):
    """Remembers which SERVER spans were started, by trace: frameworks open further spans inside them."""

    def __init__(self):
        self.started = {}

    def on_start(self, span, parent_context=None):
        if span.kind is trace.SpanKind.SERVER:
            self.started.setdefault(span.context.trace_id, []).append(span)


server_spans = ServerSpans()


def watch_server_spans():
    """Begin to remember; for an application to call when there is a provider."""
    trace.get_tracer_provider().add_span_processor(server_spans)


def report(seen, sent):
    """Return the answer: headers seen and sent, the current trace, this request's SERVER spans in it, the process."""
    context = trace.get_current_span().get_span_context()
    started = server_spans.started.pop(context.trace_id, [])
    return {
        "seen": seen,
        "sent": sent,
        "pid": os.getpid(),
        "instance": trace.get_tracer_provider().resource.attributes.get("service.instance.id"),
        "trace_id": f"{context.trace_id:032x}",
        "server_spans": [
            {
                "span_id": f"{span.context.span_id:016x}",
                "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
            }
            for span in started
        ],
    }
