"""The Flask service that is soaked: each route is a way to leave the frame that holds the context."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from flask import Flask, Response, request, send_file, stream_with_context

import meshmw.flask
from meshmw.concurrency import ThreadPoolExecutor, detached, linked
from tests.soak.watch import Watch, span

watch = Watch()
pool = ThreadPoolExecutor(4)
service = Flask(__name__)
meshmw.flask.init_app(service)
logging.getLogger(service.name).setLevel(logging.CRITICAL + 1)


def work(n: int, **attributes: Any) -> int:
    with span(n, **attributes):
        return n


def number() -> int:
    return int(request.args["n"])


@service.get("/plain")
def plain() -> str:
    return str(work(number()))


@service.post("/body")
def body() -> str:
    work(number())
    return str(len(request.get_data()))


@service.get("/threads")
def threads() -> str:
    n = number()
    return str(sum(pool.map(work, [n, n])) + pool.submit(work, n).result())


@service.get("/fail")
def fail() -> str:
    work(number())
    raise LookupError("as asked for")


def chunks(n: int, count: int, fail: bool = False) -> Iterator[bytes]:
    with span(n):  # current across every yield
        for _ in range(count):
            work(n)
            yield b"x" * 1024
        if fail:
            raise LookupError("half-way")


@service.get("/stream")
def stream() -> Response:
    return Response(chunks(number(), 3))


@service.get("/with-context")
def with_context() -> Response:
    @stream_with_context
    def steps() -> Iterator[bytes]:
        for _ in range(3):
            work(number())
            yield b"x"

    return Response(steps())


@service.get("/stream-fail")
def stream_fail() -> Response:
    return Response(chunks(number(), 2, fail=True))


@service.get("/stream-gone")
def stream_gone() -> Response:
    return Response(chunks(number(), 100_000))


@service.get("/file")
def file() -> Response:
    work(number())
    return send_file(__file__)


@service.get("/apart")
def apart() -> str:
    n = number()
    with linked("apart", attributes={"soak.request": n, "soak.apart": True}):
        pass
    with detached():
        work(n, **{"soak.apart": True})
    return str(work(n))


class _Watched:
    """Tells when it, a body, is closed; a file stays what it is, for sendfile."""

    def __init__(self, body: Any, before: Any) -> None:
        self._body, self._before = body, before

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        getattr(self._body, "close", lambda: None)()
        watch.end(self._before)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Compare what is current before and after each request; the outermost of all."""
    if environ["PATH_INFO"] == "/report":
        text = json.dumps(watch.report(thorough="thorough" in environ["QUERY_STRING"])).encode()
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]
    before = watch.begin()
    try:
        body = service(environ, start_response)
    except BaseException:
        watch.end(before)
        raise
    if type(body) is environ.get("wsgi.file_wrapper"):
        watch.end(before)
        return body
    return _Watched(body, before)
