"""The README's own example of a test, run as it stands there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from werkzeug.serving import make_server

from meshmw import MeshPropagator
from meshmw.testing import OtlpReceiver
from meshmw.wsgi import TraceContextMiddleware

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLE = next(block for block in README.split("```python\n") if "def test_" in block).partition("```")[0]


@pytest.fixture
def my_service(otlp_receiver: OtlpReceiver) -> Iterator[SimpleNamespace]:
    """A service of a reader: any WSGI server, exporting to the receiver."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(otlp_receiver.grpc_endpoint, insecure=True)))

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    served = TraceContextMiddleware(application, propagator=MeshPropagator(), tracer_provider=provider)
    server = make_server("127.0.0.1", 0, served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield SimpleNamespace(address=f"127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()
    provider.shutdown()


exec(compile(EXAMPLE, "README.md", "exec"))
