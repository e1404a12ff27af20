"""Flask: the WSGI middleware, and the route's name from Flask's own URL map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from meshmw._lifecycle.http import HttpOperation
from meshmw._policy.trust import Trust, TrustCallable
from meshmw._runtime import ServerSpans
from meshmw.errors import MissingExtraError
from meshmw.propagator import MeshPropagator
from meshmw.wsgi import OPERATION, TraceContextMiddleware

if TYPE_CHECKING:
    from flask import Flask

try:
    from flask import request, request_started
except ModuleNotFoundError as missing:  # pragma: no cover - the bare install's own check meets it
    raise MissingExtraError("Flask", "flask") from missing


def init_app(
    app: Flask,
    *,
    exclude: Sequence[str] | None = None,
    trust: Trust | TrustCallable | None = None,
    server_spans: ServerSpans | None = None,
    propagator: MeshPropagator | None = None,
    tracer_provider: trace.TracerProvider | None = None,
) -> None:
    """Continue callers' traces in a Flask application; SERVER spans are named after the matched URL rule.

    Calling it twice for one application changes nothing.

    Args:
        app: The application; its `wsgi_app` is wrapped.
        exclude: As for the middleware in `meshmw.wsgi`, and so the others.
        trust: `continue`, `restart` or `ignore`, or a callable.
        server_spans: `auto` or `off`.
        propagator: Reads the headers.
        tracer_provider: Makes the spans.
    """
    if isinstance(app.wsgi_app, TraceContextMiddleware):
        return
    app.wsgi_app = TraceContextMiddleware(  # type: ignore[method-assign]  # the way that Flask documents
        app.wsgi_app,
        exclude=exclude,
        trust=trust,
        server_spans=server_spans,
        propagator=propagator,
        tracer_provider=tracer_provider,
    )
    request_started.connect(_name_after_rule, app)


def _name_after_rule(_app: Flask, **_: Any) -> None:
    operation = request.environ.get(OPERATION)
    if isinstance(operation, HttpOperation) and request.url_rule is not None:
        operation.route(request.url_rule.rule)
