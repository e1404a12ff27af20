"""The server contract beside the contrib packages' own instrumentation, which must not make a second SERVER span."""

from __future__ import annotations

from typing import Any

from flask import Flask
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribASGI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware as ContribWSGI
from starlette.middleware import Middleware

from meshmw import wsgi
from tests.contracts.server.hosts.bare_wsgi import BareWSGI
from tests.contracts.server.hosts.fastapi import FastAPIHost
from tests.contracts.server.hosts.flask import FlaskHost
from tests.contracts.server.hosts.starlette import StarletteHost


class ContribASGIOutside(StarletteHost):
    """meshmw.asgi inside contrib's ASGI middleware, whose span it adopts."""

    own_span = False

    def build(self) -> Any:
        return ContribASGI(super().build(), tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])


class ContribASGIInside(StarletteHost):
    """meshmw.asgi outside of contrib's ASGI middleware, whose span becomes an INTERNAL child."""

    def stack(self) -> list[Middleware]:
        contrib = Middleware(ContribASGI, tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])
        return [self.ours(), contrib]


class ContribFastAPI(FastAPIHost):
    """meshmw.asgi in a FastAPI that contrib's instrumentor has instrumented, whose span it adopts."""

    own_span = False

    def build(self) -> Any:
        app = super().build()
        FastAPIInstrumentor.instrument_app(app, tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])
        return app


class ContribWSGIOutside(BareWSGI):
    """meshmw.wsgi inside contrib's WSGI middleware, whose span it adopts."""

    own_span = False

    def build(self) -> Any:
        return ContribWSGI(super().build(), tracer_provider=self.tracer_provider)


class ContribWSGIInside(BareWSGI):
    """meshmw.wsgi outside of contrib's WSGI middleware, whose span becomes an INTERNAL child."""

    def build(self) -> Any:
        app = ContribWSGI(self.application, tracer_provider=self.tracer_provider)
        return wsgi.TraceContextMiddleware(app, **self.options)


class ContribFlask(FlaskHost):
    """meshmw.flask in a Flask that contrib's instrumentor has instrumented, whose span becomes an INTERNAL child."""

    def finish(self, app: Flask) -> None:
        super().finish(app)
        FlaskInstrumentor.instrument_app(app, tracer_provider=self.tracer_provider)


HOSTS = [
    ContribASGIOutside,
    ContribASGIInside,
    ContribFastAPI,
    ContribWSGIOutside,
    ContribWSGIInside,
    ContribFlask,
]
