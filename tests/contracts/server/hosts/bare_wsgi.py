"""The server contract on a WSGI application that no framework has made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

from meshmw import wsgi
from tests.contracts.server.wsgi_host import WSGIHost


class BareWSGI(WSGIHost):
    """meshmw.wsgi around a bare WSGI application."""

    def application(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        found = path.startswith(("/items/", "/stream", "/health"))
        if path == "/fail":
            self.visit_environ(environ)
            raise self.error
        start_response("200 OK" if found else "404 Not Found", [("Content-Type", "text/plain")])
        if path == "/stream":
            return self.chunks(environ)
        return [json.dumps(self.visit_environ(environ).outbound).encode() if found else b"nothing"]

    def chunks(self, environ: dict[str, Any]) -> Iterator[bytes]:
        for _ in range(3):
            self.visit_environ(environ)
            yield b"chunk"

    def build(self) -> Any:
        return wsgi.TraceContextMiddleware(validator(self.application), **self.options)


HOSTS = [BareWSGI]
