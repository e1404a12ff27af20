"""The plain application behind meshmw's middleware, which opens the SERVER spans itself."""

from plain import answer
from report import watch_server_spans

import meshmw
from meshmw.asgi import TraceContextMiddleware

meshmw.configure()
watch_server_spans()

app = TraceContextMiddleware(answer)
