"""The two ways to trace a service that the matrix compares: meshmw, and OpenTelemetry's contrib packages.

Both set globals, so that a process uses one of them alone. Rows ask a kit for what a user of it would write; where it
offers nothing, the attribute is None.
"""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import logging
import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class _DetachErrors(logging.Handler):
    """Counts contexts that failed to detach."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "Failed to detach" in record.getMessage()


class Kit:
    """Traces a service in one way; what both ways have in common stands here."""

    name = ""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._detach_errors = _DetachErrors()
        logging.getLogger("opentelemetry").addHandler(self._detach_errors)
        logging.getLogger("opentelemetry").propagate = False
        self.tracer = trace.get_tracer("matrix")

    def record_spans(self) -> None:
        """Set the tracer provider; its spans stay in memory."""
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        trace.set_tracer_provider(provider)

    def forget(self) -> None:
        """Begin a row with nothing of the row before it."""
        self._exporter.clear()
        self._detach_errors.count = 0

    @property
    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended, the first to end first."""
        return list(self._exporter.get_finished_spans())

    @property
    def server_spans(self) -> list[ReadableSpan]:
        """The spans of kind SERVER that have ended."""
        return [span for span in self.spans if span.kind is trace.SpanKind.SERVER]

    @property
    def detach_errors(self) -> int:
        """How many contexts failed to detach."""
        return self._detach_errors.count


class Meshmw(Kit):
    """Traces with meshmw, as its guides say to use it."""

    name = "meshmw"

    def __init__(self) -> None:
        super().__init__()
        import meshmw

        self.record_spans()
        meshmw.configure(meshmw.Settings(exporter="none", service_name="matrix"))
        logging.getLogger("meshmw").setLevel(logging.CRITICAL)

    @property
    def version(self) -> str:
        return "meshmw"

    def asgi(self, app: Any) -> Any:
        """Return an ASGI application that is traced."""
        from meshmw.asgi import TraceContextMiddleware

        return TraceContextMiddleware(app)

    def wsgi(self, app: Any) -> Any:
        """Return a WSGI application that is traced."""
        from meshmw.wsgi import TraceContextMiddleware

        return TraceContextMiddleware(app)

    def fastapi(self, app: FastAPI) -> FastAPI:
        """Trace a FastAPI application."""
        from meshmw.asgi import TraceContextMiddleware

        app.add_middleware(TraceContextMiddleware)
        return app

    def flask(self, app: Flask) -> Flask:
        """Trace a Flask application."""
        import meshmw.flask

        meshmw.flask.init_app(app)
        return app

    def client(self, transport: Any) -> Any:
        """Return an httpx client that is traced."""
        import meshmw.httpx

        return meshmw.httpx.Client(transport=transport, follow_redirects=True)

    def thread(self, target: Callable[[], object]) -> threading.Thread:
        """Return a thread, not yet started."""
        from meshmw.concurrency import Thread

        return Thread(target=target)

    def thread_pool(self) -> concurrent.futures.Executor:
        """Return a pool of one thread."""
        from meshmw.concurrency import ThreadPoolExecutor

        return ThreadPoolExecutor(1)

    def process_pool(self, **options: Any) -> concurrent.futures.Executor:
        """Return a pool of one process."""
        from meshmw.concurrency import ProcessPoolExecutor

        return ProcessPoolExecutor(1, **options)

    def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function to be called elsewhere, in this context."""
        from meshmw.concurrency import bind

        return bind(fn)

    def stream(self, generator: Any) -> Any:
        """Return a generator whose steps run in this context."""
        from meshmw.streams import stream

        return stream(generator)

    def linked(self, name: str) -> Any:
        """Return a block that is a new trace with a link to this one."""
        from meshmw.concurrency import linked

        return linked(name)

    def write_json(self, message: dict[str, Any]) -> None:
        """Put the current context into a message."""
        from meshmw.frames import inject_json

        inject_json(message)

    def read_json(self, message: Any) -> Any:
        """Return the context that a message brings."""
        from meshmw.frames import extract_json

        return extract_json(message)

    def write_frame(self) -> bytes:
        """Return the current context as bytes."""
        from meshmw.frames import encode

        return encode()

    def read_frame(self, data: bytes) -> Any:
        """Return the context that bytes bring, and the rest of them."""
        from meshmw.frames import decode

        return decode(data)


class Contrib(Kit):
    """Traces with OpenTelemetry's instrumentation packages, each as its documentation says, with their own defaults."""

    name = "contrib"

    def __init__(self) -> None:
        super().__init__()
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
        from opentelemetry.instrumentation.threading import ThreadingInstrumentor

        self.record_spans()
        ThreadingInstrumentor().instrument()
        HTTPXClientInstrumentor().instrument()

    @property
    def version(self) -> str:
        return f"contrib {importlib.metadata.version('opentelemetry-instrumentation-asgi')}"

    def asgi(self, app: Any) -> Any:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        return OpenTelemetryMiddleware(app)

    def wsgi(self, app: Any) -> Any:
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

        return OpenTelemetryMiddleware(app)

    def fastapi(self, app: FastAPI) -> FastAPI:
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(app)
        return app

    def flask(self, app: Flask) -> Flask:
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        FlaskInstrumentor().instrument_app(app)
        return app

    def client(self, transport: Any) -> Any:
        import httpx
        from opentelemetry.instrumentation.httpx import SyncOpenTelemetryTransport

        # It patches httpx's own transports, which the rows do not use.
        return httpx.Client(transport=SyncOpenTelemetryTransport(transport), follow_redirects=True)

    def thread(self, target: Callable[[], object]) -> threading.Thread:
        return threading.Thread(target=target)

    def thread_pool(self) -> concurrent.futures.Executor:
        return concurrent.futures.ThreadPoolExecutor(1)

    def process_pool(self, **options: Any) -> concurrent.futures.Executor:
        return concurrent.futures.ProcessPoolExecutor(1, **options)

    def stream(self, generator: Any) -> Any:
        return generator

    def write_json(self, message: dict[str, Any]) -> None:
        from opentelemetry import propagate

        propagate.inject(message.setdefault("trace_context", {}))

    def read_json(self, message: Any) -> Any:
        from opentelemetry import propagate

        return propagate.extract(message["trace_context"])

    # Nothing is offered; whoever needs it writes it by hand.
    bind = linked = write_frame = read_frame = None


KITS = {kit.name: kit for kit in (Meshmw, Contrib)}
