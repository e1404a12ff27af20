"""A Flask service that streams as much as it is asked for, in both directions."""

import io
import os
import threading

from flask import Flask, Response, jsonify, request, send_file
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import meshmw
import meshmw.flask

CHUNK = b"x" * 65_536

meshmw.configure(meshmw.Settings(exporter="none", service_name="large"))
spans = InMemorySpanExporter()
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(spans))

app = Flask(__name__)
if os.environ.get("LARGE_WITHOUT") != "1":
    meshmw.flask.init_app(app)
received = 0
go_on = threading.Event()


class Counted(io.FileIO):
    """Counts how often Python reads this file; with sendfile, it never does."""

    reads = 0

    def readinto(self, buffer):
        Counted.reads += 1
        return super().readinto(buffer)


@app.get("/down")
def down():
    return Response(CHUNK for _ in range(int(request.args["chunks"])))


@app.get("/waits")
def waits():
    def steps():
        yield b"first"
        go_on.wait(60)
        yield b"last"

    return Response(steps())


@app.get("/go-on")
def release():
    go_on.set()
    return ""


@app.post("/up")
def up():
    global received
    received = 0
    while chunk := request.stream.read(65_536):
        received += len(chunk)
    return str(received)


@app.get("/received")
def so_far():
    return str(received)


@app.get("/file")
def file():
    opened = io.BufferedReader(Counted(os.environ["LARGE_FILE"]))
    return send_file(opened, mimetype="text/plain")


@app.get("/reads")
def reads():
    return str(Counted.reads)


@app.get("/spans")
def ended():
    return jsonify([f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()])
