"""A service with no telemetry at all: passes the request on to the next one, with its traceparent, or with SENDS."""

import json
import os
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, FURTHER = int(sys.argv[1]), sys.argv[2:]


class Relay(BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ.get("SAYS", "").encode()
        if FURTHER:
            passed = {
                name: value for name, value in self.headers.items() if name.lower() in ("traceparent", "x-request-id")
            }
            passed |= json.loads(os.environ.get("SENDS", "{}"))
            with urllib.request.urlopen(urllib.request.Request(FURTHER[0], headers=passed), timeout=30) as answer:
                body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = b"POST " + self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Relay).serve_forever()
