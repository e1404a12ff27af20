"""An application for ASGI and one for WSGI that log, under loggers that write the ids. Run by real servers."""

from __future__ import annotations

import logging
import sys

import meshmw
from meshmw.asgi import TraceContextMiddleware
from meshmw.logs import FORMAT, TraceContextFilter
from meshmw.wsgi import TraceContextMiddleware as WsgiMiddleware

meshmw.configure(meshmw.Settings(exporter="none", service_name="logged"))
log = logging.getLogger("app")


def write_ids():
    """Give the root and every server's own loggers one handler that writes the ids."""
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(TraceContextFilter())
    handler.setFormatter(logging.Formatter("LINE " + FORMAT.replace("%(asctime)s ", "")))
    logging.getLogger().handlers = [handler]
    for name in ("uvicorn", "uvicorn.access", "gunicorn.access", "gunicorn.error", "hypercorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    log.setLevel(logging.INFO)


write_ids()


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    write_ids()  # once more: hypercorn sets its loggers up after the application has started
    log.info("serving")
    if scope["path"] == "/fails":
        raise RuntimeError("asked to")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def answers_500(scope, receive, send):
    """Answer for an application that failed, as frameworks do, outside the middleware."""
    try:
        await TraceContextMiddleware(asgi)(scope, receive, send)
    except RuntimeError:
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        raise


def wsgi(environ, start_response):
    log.info("serving")
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]


asgi_app = answers_500
wsgi_app = WsgiMiddleware(wsgi)
