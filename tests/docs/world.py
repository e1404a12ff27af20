"""Every host that a page calls over http: one server, which programs meet as their HTTP proxy."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    """Answers each request with JSON that says what it was."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"item": "teapot", "count": 7, "url": self.path, "headers": headers}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def world() -> Iterator[dict[str, str]]:
    """Yield the environment of a program that is to meet this server wherever it calls."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        here, not_through_it = f"http://127.0.0.1:{server.server_port}", "127.0.0.1,localhost"
        names = {"http_proxy": here, "HTTP_PROXY": here, "no_proxy": not_through_it, "NO_PROXY": not_through_it}
        yield names
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
