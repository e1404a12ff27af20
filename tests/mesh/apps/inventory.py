"""Flask behind waitress, as a user would write it."""

from __future__ import annotations

import logging
import sys

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from opentelemetry import trace
from waitress import serve

import meshmw
from meshmw.flask import init_app

logging.basicConfig(level=logging.INFO)
meshmw.configure()
app = Flask(__name__)
init_app(app)


@app.get("/api/stock")
def stock() -> ResponseReturnValue:
    trace_id = trace.get_current_span().get_span_context().trace_id
    return jsonify(seen={name.lower(): value for name, value in request.headers}, trace_id=f"{trace_id:032x}")


if __name__ == "__main__":
    serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=4)
