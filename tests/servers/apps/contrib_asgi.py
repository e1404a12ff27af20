"""The plain application behind OpenTelemetry's own middleware, to show what the tests of meshmw would catch."""

from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from plain import answer
from report import watch_server_spans

trace.set_tracer_provider(TracerProvider())
watch_server_spans()

app = OpenTelemetryMiddleware(answer, exclude_spans=["send", "receive"])
