"""Whole processes, with OpenTelemetry's globals set as a service sets them. Each case is a process of its own."""

import pytest

from tests.programs import run_parts

COMMON = """
import asyncio, inspect
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

def spans(kind):
    return [span for span in exporter.get_finished_spans() if span.kind is kind]

async def serve(app, headers=(), path="/items/7"):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        pass
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
             "root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"},
             "server": ("10.0.0.1", 80), "client": ("10.0.0.9", 4), "headers": list(headers)}
    await app(scope, receive, send)
"""

PROVIDER = """
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""

CONFIGURED = """
import meshmw
meshmw.configure(meshmw.Settings(exporter="none"))
"""


def run(*parts, **environment):
    return run_parts(COMMON, *parts, **environment)


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_a_ready_client_needs_nothing_but_configure(family):
    """Its own transport, a mount and a redirect are each wrapped once."""
    run(
        PROVIDER,
        CONFIGURED,
        f"import {family} as library, meshmw.{family} as ours",
        """
        got = []
        def answer(request):
            got.append(request.headers["traceparent"])
            if request.url.path == "/redirect":
                return library.Response(302, headers={"location": "http://mounted.internal/items"})
            return library.Response(200)
        async def main(kind):
            double = library.MockTransport(answer)
            client = kind(transport=double, mounts={"http://mounted.internal": double}, follow_redirects=True)
            result = client.get("http://shop.internal/redirect")
            result = await result if inspect.isawaitable(result) else result
            closing = client.aclose() if hasattr(client, "aclose") else client.close()
            if inspect.isawaitable(closing):
                await closing
        for kind in (ours.Client, ours.AsyncClient):
            got.clear()
            exporter.clear()
            with provider.get_tracer("work").start_as_current_span("work") as work:
                asyncio.run(main(kind))
            calls = spans(SpanKind.CLIENT)
            assert len(calls) == 2, calls
            assert [sent[36:52] for sent in got] == [f"{span.context.span_id:016x}" for span in calls]
            assert {span.parent.span_id for span in calls} == {work.get_span_context().span_id}
        """,
    )


FASTAPI = """
import fastapi
from meshmw.asgi import TraceContextMiddleware
seen = []

def build():
    app = fastapi.FastAPI()

    @app.get("/items/{item}")
    async def read(item: str):
        carrier = {}
        meshmw.inject(carrier)
        seen.append(carrier)

    return app

def inside(app):
    app.add_middleware(TraceContextMiddleware)
    return app

def outside(app):
    return TraceContextMiddleware(app)

def both(app):
    return outside(inside(app))

def none(app):
    return app
"""

ONE_SERVER_SPAN = """
for place in (inside, outside, both, none):
    app = build()
    served = place(app)
    instrument(app)
    for headers, parent in [([(b"traceparent", VALID.encode())], 0x00f067aa0ba902b7), ([], None),
                            ([(b"traceparent", VALID.encode())] * 2, None), ([(b"traceparent", b"junk")], None)]:
        exporter.clear()
        seen.clear()
        asyncio.run(serve(served, headers))
        (span,) = spans(SpanKind.SERVER)
        assert (span.parent and span.parent.span_id) == parent, (place, span.parent)
        assert span.name in ("GET /items/{item}", "GET"), span.name
        assert seen[0]["traceparent"][3:35] == f"{span.context.trace_id:032x}"
"""

TELEMETRY = {
    "native": "instrument = lambda app: None",
    "contrib on the application": """
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        instrument = FastAPIInstrumentor.instrument_app
        """,
    "contrib on every application": """
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        FastAPIInstrumentor().instrument()
        instrument = lambda app: None
        """,
}


@pytest.mark.parametrize("telemetry", TELEMETRY.values(), ids=TELEMETRY)
def test_after_configure_there_is_one_strict_server_span_wherever_the_middleware_is(telemetry):
    """Within FastAPI's own middleware, around the application, both, or nowhere."""
    run(PROVIDER, CONFIGURED, FASTAPI, telemetry, ONE_SERVER_SPAN)


def test_flask_under_contrib_is_one_server_span():
    run(
        PROVIDER,
        CONFIGURED,
        """
        from flask import Flask
        from opentelemetry.instrumentation.flask import FlaskInstrumentor
        from meshmw.flask import init_app
        for order in ("contrib first", "contrib last"):
            app = Flask("shop")
            app.get("/items/<item>")(lambda item: "ok")
            steps = [FlaskInstrumentor().instrument_app, init_app]
            for step in steps if order == "contrib first" else steps[::-1]:
                step(app)
            for headers in ({}, {"traceparent": VALID}, {"traceparent": "junk"}, {"traceparent": VALID + "," + VALID}):
                exporter.clear()
                assert app.test_client().get("/items/7", headers=headers).text == "ok"
                (span,) = spans(SpanKind.SERVER)
                assert bool(span.parent) == (headers.get("traceparent") == VALID), (order, span.parent)
                assert span.name == "GET /items/<item>", (order, span.name)
        """,
    )


def test_with_the_sdk_disabled_the_caller_goes_through_a_whole_service():
    run(
        CONFIGURED,
        FASTAPI,
        """
        served = inside(build())
        asyncio.run(serve(served, [(b"traceparent", VALID.encode()), (b"x-request-id", b"7")]))
        asyncio.run(serve(served))
        assert seen == [{"traceparent": VALID, "x-request-id": "7"}, {}], seen
        """,
        OTEL_SDK_DISABLED="true",
    )


def test_an_empty_extraction_at_start_up_proves_nothing_about_a_later_request():
    """A job that reads its own empty environment leaves a context that many frameworks copy to every request."""
    run(
        PROVIDER,
        CONFIGURED,
        """
        from opentelemetry import context, propagate
        from meshmw.asgi import TraceContextMiddleware

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def main():
            context.attach(propagate.extract({}))
            with trace.get_tracer("boot").start_as_current_span("boot"):
                for _ in range(2):
                    await asyncio.create_task(serve(TraceContextMiddleware(app)))

        asyncio.run(main())
        found = spans(SpanKind.SERVER)
        assert [span.parent for span in found] == [None, None], found
        assert len({span.context.trace_id for span in found}) == 2
        """,
    )


def test_contrib_that_is_not_installed_is_said_by_configure():
    run(
        """
        import sys
        sys.modules["opentelemetry.instrumentation.asgi"] = None  # as if it were not installed
        import meshmw
        try:
            meshmw.configure(meshmw.Settings(exporter="none", server_spans="contrib"))
        except meshmw.MissingExtraError as missing:
            assert "meshmw[contrib]" in str(missing)
        else:
            raise AssertionError("configured without contrib")
        assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        """
    )


def test_a_hand_made_global_propagator_serves_beside_settings_that_cannot_be_used():
    run(
        """
        import os
        os.environ["MESHMW_TRUST"] = "nonsense"
        import meshmw
        from opentelemetry import propagate
        from meshmw import _runtime as runtime
        mine = meshmw.MeshPropagator()
        propagate.set_global_textmap(mine)
        assert runtime.current().propagator is mine
        assert runtime.current() is runtime.current()
        """
    )


def test_configure_after_the_end_says_that_nothing_is_recorded():
    done = run(
        """
        import logging, meshmw
        logging.basicConfig(level=logging.WARNING)
        handle = meshmw.configure(meshmw.Settings(exporter="none"))
        handle.shutdown()
        assert meshmw.configure() is handle
        """
    )
    assert "meshmw was shut down" in done.stderr


def test_a_host_that_is_not_to_get_baggage_gets_none_from_inject():
    run(
        """
        import meshmw
        from opentelemetry import baggage
        meshmw.configure(meshmw.Settings(exporter="none"))
        context = baggage.set_baggage("tenant", "north")
        for host, expected in ((None, {"baggage": "tenant=north"}), ("shop", {"baggage": "tenant=north"}),
                               ("api.example.com", {})):
            headers = {}
            meshmw.inject(headers, context, host=host)
            assert headers == expected, (host, headers)
        """
    )


@pytest.mark.parametrize("settings", ["", "trust='restart', "])
@pytest.mark.parametrize(
    "headers", ["[]", "[(b'traceparent', VALID.encode()), (b'baggage', b'a=1'), (b'baggage', b'=')]"]
)
def test_a_flask_application_mounted_in_fastapi_is_one_request(settings, headers):
    done = run(
        PROVIDER,
        f"""
        import logging, warnings, meshmw, meshmw.flask
        warnings.simplefilter("ignore")
        logging.basicConfig(level=logging.WARNING)
        meshmw.configure(meshmw.Settings({settings}exporter="none"))
        from fastapi import FastAPI
        from flask import Flask
        from starlette.middleware.wsgi import WSGIMiddleware
        from meshmw.asgi import TraceContextMiddleware

        inner = Flask("inner")
        meshmw.flask.init_app(inner)

        @inner.get("/x")
        def x():
            with trace.get_tracer("user").start_as_current_span("work"):
                return "hi"

        app = FastAPI(telemetry={{"operation_spans": False}})
        app.add_middleware(TraceContextMiddleware)
        app.mount("/v1", WSGIMiddleware(inner))
        for _ in range(2):
            asyncio.run(serve(app, {headers}, path="/v1/x"))
        servers = spans(SpanKind.SERVER)
        assert len(servers) == 2, [span.name for span in servers]
        work = spans(SpanKind.INTERNAL)
        assert [span.parent.span_id for span in work] == [span.context.span_id for span in servers]
        """,
    )
    assert "leaked_span" not in done.stderr


def test_of_several_middleware_only_the_outermost_exports_at_the_end_of_the_lifespan():
    run(
        """
        import meshmw
        from meshmw import _runtime as runtime
        from meshmw.asgi import TraceContextMiddleware
        flushed = []
        runtime.install(runtime.Runtime(flush=lambda: flushed.append(1)))

        async def app(scope, receive, send):
            pass

        async def main():
            scope = {"type": "lifespan"}
            await TraceContextMiddleware(TraceContextMiddleware(app))(scope, None, None)
            assert scope == {"type": "lifespan"}

        asyncio.run(main())
        assert flushed == [1]
        """
    )
