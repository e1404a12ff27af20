"""Serves a WSGI application for tests with nothing but the standard library, one thread for each request.

python -m meshmw.testing.serve_wsgi --port 8000 shop.inventory:app
"""

from __future__ import annotations

import argparse
import os
import signal
import socketserver
import sys
from collections.abc import Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # The default of 5 makes a connection that comes in a burst wait for a second.
    request_queue_size = 128

    def server_bind(self) -> None:
        # The standard one looks the host's name up, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: what the application writes shall be found in its log."""


def load(reference: str) -> Any:
    """Return what `module:attribute` names."""
    module, _, attribute = reference.partition(":")
    return attrgetter(attribute or "app")(import_module(module))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m meshmw.testing.serve_wsgi", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("app", help="module:attribute")
    options = parser.parse_args(arguments)
    # `sys.exit` runs the exit handlers, which export what is queued.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sys.path.insert(0, os.getcwd())
    with _Server((options.host, options.port), _Handler) as server:
        server.set_app(load(options.app))
        server.serve_forever(0.05)


if __name__ == "__main__":
    main()
