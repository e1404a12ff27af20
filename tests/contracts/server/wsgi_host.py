"""Drives a WSGI application, whatever its framework, as a server would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from opentelemetry.context import Context

from tests.contracts.server.host import Headers, Host, Reply, Visit, attached


class WSGIHost(Host):
    """Drives a WSGI application as a server would, PEP 3333 checked on both sides."""

    def environ(self, path: str, headers: Headers, **more: Any) -> dict[str, Any]:
        environ: dict[str, Any] = {
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "REMOTE_ADDR": "10.0.0.9",
            "REMOTE_PORT": "41000",
            "HTTP_HOST": "shop.internal:8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "QUERY_STRING": "",
        }
        for name, value in headers:
            key = "HTTP_" + name.upper().replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        setup_testing_defaults(environ)
        return environ | more

    def get(
        self,
        path: str = "/items/7",
        headers: Headers = (),
        *,
        ambient: Context | None = None,
        between: Callable[[], None] = lambda: None,
        **more: Any,
    ) -> Reply:
        reply = Reply()

        def start_response(status: str, _headers: Any, exc_info: Any = None) -> Any:
            reply.status = int(status[:3])
            return lambda data: None

        with attached(ambient):
            try:
                body = validator(self.app)(self.environ(path, headers, **more), start_response)
                try:
                    for chunk in body:
                        reply.body += chunk
                        between()
                finally:
                    body.close()
            except Exception as error:
                reply.error = error
        return reply

    def visit_environ(self, environ: dict[str, Any]) -> Visit:
        return self.visit(
            [(key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")]
        )
