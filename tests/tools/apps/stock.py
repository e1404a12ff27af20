"""Flask with meshmw: echoes its headers."""

from __future__ import annotations

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from opentelemetry import trace

import meshmw
from meshmw.flask import init_app

meshmw.configure()
app = Flask(__name__)
init_app(app)


@app.get("/")
def stock() -> ResponseReturnValue:
    trace_id = f"{trace.get_current_span().get_span_context().trace_id:032x}"
    return jsonify(headers={name.lower(): value for name, value in request.headers}, trace_id=trace_id)
