"""Flask: the WSGI middleware, and the route's name from Flask's own URL map.

    meshmw.flask.init_app(app)

The requests are served by `meshmw.wsgi.TraceContextMiddleware`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from meshmw._lifecycle.http import OPERATION, HttpOperation
from meshmw._lifecycle.http_conventions import known_root
from meshmw._lifecycle.serving import ServerOptions
from meshmw.errors import MissingExtraError
from meshmw.wsgi import TraceContextMiddleware

if TYPE_CHECKING:
    from flask import Flask

try:
    from flask import request, request_started
except ModuleNotFoundError as missing:  # pragma: no cover - the bare install's own check meets it
    raise MissingExtraError("Flask", "flask") from missing

__all__ = ["ServerOptions", "init_app"]


def __dir__() -> list[str]:
    return sorted(__all__)


def init_app(app: Flask, **options: Unpack[ServerOptions]) -> None:
    """Continue callers' traces in a Flask application; SERVER spans are named after the matched URL rule.

    Calling it twice for one application changes nothing.

    Args:
        app: The application; its `wsgi_app` is wrapped.
        options: Those of `meshmw.wsgi.TraceContextMiddleware`.

    Raises:
        ValueError: An option holds a word or a pattern that is none.
        TypeError: An option is not known, or holds no propagator or tracer provider.
    """
    if isinstance(app.wsgi_app, TraceContextMiddleware):
        return
    app.wsgi_app = TraceContextMiddleware(app.wsgi_app, **options)  # type: ignore[method-assign]  # as Flask documents
    request_started.connect(_name_after_rule, app)


def _name_after_rule(_app: Flask, **_: Any) -> None:
    operation = request.environ.get(OPERATION)
    if isinstance(operation, HttpOperation) and request.url_rule is not None:
        root = known_root(request.root_path)
        if root is not None:
            operation.route(f"{root}{request.url_rule.rule}")
