"""aiohttp: the middleware of its server.

web.Application(middlewares=[meshmw.aiohttp.TraceContextMiddleware()])
"""

from __future__ import annotations

from meshmw._aiohttp_server import TraceContextMiddleware
from meshmw._lifecycle.serving import ServerOptions

__all__ = ["ServerOptions", "TraceContextMiddleware"]


def __dir__() -> list[str]:
    return sorted(__all__)
