"""The server contract on Flask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Flask, request

import meshmw.flask
from tests.contracts.server.wsgi_host import WSGIHost


class FlaskHost(WSGIHost):
    """meshmw.flask in a Flask application."""

    def build(self) -> Any:
        app = Flask("shop")
        app.config["PROPAGATE_EXCEPTIONS"] = True

        @app.get("/items/<item>")
        def read_item(item: str) -> dict[str, str]:
            return self.visit_environ(request.environ).outbound

        @app.get("/health")
        def health() -> dict[str, str]:
            return self.visit_environ(request.environ).outbound

        @app.get("/stream")
        def stream() -> Any:
            environ = request.environ

            def chunks() -> Iterator[bytes]:
                for _ in range(3):
                    self.visit_environ(environ)
                    yield b"chunk"

            return app.response_class(chunks())

        @app.get("/fail")
        def fail() -> None:
            self.visit_environ(request.environ)
            raise self.error

        self.finish(app)
        return app

    def finish(self, app: Flask) -> None:
        meshmw.flask.init_app(app, **self.options)


HOSTS = [FlaskHost]
