"""A Flask service as a user writes it: `configure()`, `init_app()`, and meshmw's client for calls."""

import time
import uuid
from pathlib import Path

import httpx
from flask import Flask, Response, request
from report import echo, report, seen_in_environ, watch_server_spans

import meshmw
from meshmw.flask import init_app
from meshmw.httpx import Client

meshmw.configure()
watch_server_spans()

app = Flask(__name__)
init_app(app)

next_service = Client(transport=httpx.MockTransport(echo))
network = Client(trust_env=False)


def answer():
    return report(seen_in_environ(request.environ), next_service.get("http://next-service/").json())


@app.get("/")
def root():
    return answer()


@app.post("/body")
def body():
    return {"size": len(request.get_data()), **answer()}


@app.get("/hold")
def hold():
    """Answer when the test lets it, after a sign that the request is under way."""
    folder = Path(request.args["folder"])
    (folder / f"begun-{uuid.uuid4()}").touch()
    while not (folder / "end").exists():
        time.sleep(0.02)
    return answer()


@app.get("/call")
def call():
    return {"status": network.get(request.args["to"]).status_code}


@app.get("/pages")
def pages():
    return Response((b"a page" for _ in range(3)), mimetype="text/plain")


@app.get("/stream")
def stream():
    return Response((b"x" * 65_536 for _ in range(10_000)), mimetype="text/plain")


@app.get("/not-modified")
def not_modified():
    return Response((b"never sent" for _ in range(3)), status=304)


@app.get("/broken")
def broken():
    def chunks():
        yield b"a first chunk"
        raise ValueError("the body breaks off")

    return Response(chunks(), mimetype="text/plain")
