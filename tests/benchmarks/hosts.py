"""FastAPI and Flask: what each way to trace them adds to a request, and what we add to a span of the host's own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from flask import Flask
from opentelemetry import propagate
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from starlette.background import BackgroundTask

import meshmw.flask
from meshmw import _runtime as runtime
from meshmw.asgi import TraceContextMiddleware
from tests.benchmarks.measure import Batch, Case
from tests.benchmarks.servers import sdk_alone
from tests.benchmarks.traffic import SAMPLED, asgi_batch, flush, headers, provider, wsgi_batch

QUIET = {"tracing": False, "metrics": False, "logs": False}
ONE_SPAN = {"operation_spans": False}


def fastapi_app(telemetry: dict[str, bool]) -> FastAPI:
    """Return an application of one route."""
    app = FastAPI(telemetry=telemetry)  # type: ignore[arg-type]

    @app.get("/items/{item}")
    async def item(item: int, page: int = 0) -> dict[str, int]:
        return {"item": item, "page": page}

    return app


def flask_app() -> Flask:
    """Return an application of one route."""
    app = Flask(__name__)

    @app.get("/items/<int:item>")
    def item(item: int) -> dict[str, int]:
        return {"item": item}

    return app


def cases() -> list[Case]:
    """Return the cases of this file."""
    provider()
    return [_fastapi(), _adopted(), _flask()]


def _fastapi() -> Case:
    contrib = fastapi_app(QUIET)
    untouched = BackgroundTask.__call__
    FastAPIInstrumentor.instrument_app(contrib)
    # It also puts a span around every background task of this process, whose application ever it is.
    BackgroundTask.__call__ = untouched  # type: ignore[method-assign]
    apps: dict[str, Any] = {
        "bare": fastapi_app(QUIET),
        "meshmw": TraceContextMiddleware(fastapi_app({})),
        "FastAPI's own": fastapi_app({}),
        "FastAPI's own, one span": fastapi_app(ONE_SPAN),
        "contrib": contrib,
        "SDK span alone": sdk_alone(fastapi_app(QUIET), SAMPLED),
    }
    batches = {label: asgi_batch(app, headers(SAMPLED)) for label, app in apps.items()}
    target = {"FastAPI's own": 1 / 7, "FastAPI's own, one span": 1 / 4}
    return Case("FastAPI request", batches, floor="bare", times=100, between=flush, target=target, drawn=True)


def _adopted() -> Case:
    """The middleware inside of FastAPI adopts FastAPI's span; `configure()` lets both read with one propagator."""
    inside = fastapi_app(ONE_SPAN)
    inside.add_middleware(TraceContextMiddleware)
    apps: dict[str, Any] = {
        "bare": fastapi_app(QUIET),
        "meshmw": inside,
        "FastAPI's own, one span": fastapi_app(ONE_SPAN),
    }
    batches = {label: asgi_batch(app, headers(SAMPLED)) for label, app in apps.items()}
    batches["meshmw"] = _configured(batches["meshmw"])
    target = {"FastAPI's own, one span": 1.05}
    return Case("FastAPI request, its own span adopted", batches, "bare", times=100, between=flush, target=target)


def _configured(batch: Batch) -> Batch:
    """Read all headers with our propagator for the length of a batch, as `configure()` lets a process do."""

    def run(times: int) -> None:
        others = propagate.get_global_textmap()
        propagate.set_global_textmap(runtime.current().propagator)
        try:
            batch(times)
        finally:
            propagate.set_global_textmap(others)

    return run


def _flask() -> Case:
    ours, contrib = flask_app(), flask_app()
    meshmw.flask.init_app(ours)
    FlaskInstrumentor().instrument_app(contrib)
    apps = {"bare": flask_app(), "meshmw": ours, "contrib": contrib}
    batches = {label: wsgi_batch(app, headers(SAMPLED)) for label, app in apps.items()}
    return Case("Flask request", batches, floor="bare", times=100, between=flush, target={"contrib": 1 / 4})
