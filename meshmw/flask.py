"""Flask: the WSGI middleware, and the route's name from Flask's own URL map.

    meshmw.flask.init_app(app)

The requests are served by `meshmw.wsgi.TraceContextMiddleware`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack

from meshmw._frameworks import record_answered
from meshmw._lifecycle.serving import ServerOptions
from meshmw.errors import extra_named
from meshmw.wsgi import TraceContextMiddleware

if TYPE_CHECKING:
    from flask import Flask, Response

with extra_named("flask", "Flask", "flask"):
    from flask import request

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
    app.handle_user_exception = _recording(app)  # type: ignore[method-assign]  # as Flask documents, to be overridden


def _recording(app: Flask) -> Callable[..., Response]:
    """Return the application's `handle_user_exception`, which notes an exception that is answered with 5xx.

    No signal tells of one for which the application has a handler of its own.
    """
    handle = app.handle_user_exception

    def handle_user_exception(e: Exception) -> Response:
        response = app.make_response(handle(e))
        if response.status_code >= 500:
            record_answered(request.environ, e)
        return response

    return handle_user_exception
