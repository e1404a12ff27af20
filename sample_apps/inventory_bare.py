"""inventory-service without meshmw: the same route, a span made by hand, nothing read from the request's headers."""

from flask import Flask, abort
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider(resource=Resource.create({"service.name": "inventory-service"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("inventory-service")

app = Flask("inventory-service")

STOCK = {"teapot": 12, "kettle": 3}


@app.get("/api/stock/<item>")
def stock(item: str) -> dict[str, str | int]:
    with tracer.start_as_current_span("GET /api/stock/<item>", kind=trace.SpanKind.SERVER):
        if item not in STOCK:
            abort(404)
        return {"item": item, "in_stock": STOCK[item]}
