"""Applications without a framework, soon started: each answers which process it is, and may wait before it does."""

import asyncio
import json
import os
import time
import uuid
from pathlib import Path
from urllib.parse import parse_qs

from opentelemetry import trace

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.wsgi import TraceContextMiddleware as WsgiTraceContextMiddleware

meshmw.configure()


def report():
    trace_id = trace.get_current_span().get_span_context().trace_id
    instance = trace.get_tracer_provider().resource.attributes.get("service.instance.id")
    return json.dumps({"pid": os.getpid(), "instance": instance, "trace_id": f"{trace_id:032x}"}).encode()


def headers(body):
    return [("content-type", "application/json"), ("content-length", str(len(body)))]


def begin(query):
    """Leave a sign that the request is under way; return the file that lets it end."""
    folder = Path(parse_qs(query)["folder"][0])
    (folder / f"begun-{uuid.uuid4()}").touch()
    return folder / "end"


async def answer(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in "startup", "shutdown":
            assert (await receive())["type"] == f"lifespan.{step}"
            await send({"type": f"lifespan.{step}.complete"})
        return
    if scope["path"] == "/hold":
        end = begin(scope["query_string"].decode())
        while not end.exists():  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(0.02)
    body = report()
    lines = [(name.encode(), value.encode()) for name, value in headers(body)]
    await send({"type": "http.response.start", "status": 200, "headers": lines})
    await send({"type": "http.response.body", "body": body})


def answer_wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        end = begin(environ["QUERY_STRING"])
        while not end.exists():
            time.sleep(0.02)
    body = report()
    start_response("200 OK", headers(body))
    return [body]


asgi = TraceContextMiddleware(answer)
wsgi = WsgiTraceContextMiddleware(answer_wsgi)
