"""One trace through a service mesh: middleware, clients and a strict propagator for OpenTelemetry.

Call `configure()` first. The middleware are in `meshmw.asgi`, `meshmw.wsgi`, `meshmw.flask` and `meshmw.django`, the
clients in `meshmw.httpx`, `meshmw.httpx2`, `meshmw.requests` and `meshmw.aiohttp`, the other boundaries in modules
named after them. `import meshmw` alone reaches them all, and loads each when you first use it; `meshmw.auto` is not in
`dir(meshmw)`, for to look at it configures the process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meshmw._version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context

    # With the alias a type checker takes a module for a public name.
    from meshmw import aiohttp as aiohttp
    from meshmw import asgi as asgi
    from meshmw import auto as auto
    from meshmw import baggage as baggage
    from meshmw import celery as celery
    from meshmw import concurrency as concurrency
    from meshmw import django as django
    from meshmw import errors as errors
    from meshmw import flask as flask
    from meshmw import frames as frames
    from meshmw import grpc as grpc
    from meshmw import httpx as httpx
    from meshmw import httpx2 as httpx2
    from meshmw import kafka as kafka
    from meshmw import logs as logs
    from meshmw import propagator as propagator
    from meshmw import rabbitmq as rabbitmq
    from meshmw import requests as requests
    from meshmw import server as server
    from meshmw import settings as settings
    from meshmw import streams as streams
    from meshmw import testing as testing
    from meshmw import wire as wire
    from meshmw import wsgi as wsgi
    from meshmw._policy.trust import RequestView
    from meshmw._policy.words import Trust
    from meshmw._telemetry.configure import configure
    from meshmw._telemetry.handle import Telemetry
    from meshmw.errors import InvalidHeaderError, MeshmwError, MissingExtraError, SettingsError
    from meshmw.propagator import MeshPropagator
    from meshmw.server import server_span, set_route
    from meshmw.settings import Settings
else:
    # A type checker refuses a name that is not imported above; it would take this function as leave for any.
    def __getattr__(name: str) -> Any:
        if name in _MODULES or name == "auto":
            return import_module(f"{__name__}.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


# What `from meshmw import *` gives, and what `dir(meshmw)` shows beside the modules.
__all__ = [
    "InvalidHeaderError",
    "MeshPropagator",
    "MeshmwError",
    "MissingExtraError",
    "RequestView",
    "Settings",
    "SettingsError",
    "Telemetry",
    "Trust",
    "__version__",
    "configure",
    "extract",
    "inject",
    "server_span",
    "set_route",
]

_HOMES = {
    "InvalidHeaderError": "errors",
    "MeshPropagator": "propagator",
    "MeshmwError": "errors",
    "MissingExtraError": "errors",
    "RequestView": "_policy.trust",
    "Settings": "settings",
    "SettingsError": "errors",
    "Telemetry": "_telemetry.handle",
    "Trust": "_policy.words",
    "configure": "_telemetry.configure",
    "server_span": "server",
    "set_route": "server",
}
_MODULES = (
    "aiohttp",
    "asgi",
    "baggage",
    "celery",
    "concurrency",
    "django",
    "errors",
    "flask",
    "frames",
    "grpc",
    "httpx",
    "httpx2",
    "kafka",
    "logs",
    "propagator",
    "rabbitmq",
    "requests",
    "server",
    "settings",
    "streams",
    "testing",
    "wire",
    "wsgi",
)


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


def extract(carrier: Any, context: Context | None = None) -> Context:
    """Return a context with what a mapping of header names to values says, validated; empty where it says nothing.

    Never raises for what the headers hold.
    """
    from meshmw import _runtime

    return _runtime.current().propagator.extract(carrier, context)


def inject(carrier: Any, context: Context | None = None, *, host: str | None = None) -> None:
    """Write the trace headers of the current context into a mapping, and remove every stale one from it.

    Args:
        carrier: The headers of an outbound call, by name.
        context: The current one by default.
        host: Where the call goes, without the port: it gets what `propagate_to` and `baggage_to` let it have. Without
            a host nothing is withheld.
    """
    from meshmw import _runtime

    propagator = _runtime.current().propagator
    if host is None:
        propagator.inject(carrier, context)
    else:
        propagator.inject_for(host, carrier, context)


def _forget_unknown_context() -> None:
    """Take OTEL_PYTHON_CONTEXT out of the environment where it names nothing that is installed, and say so.

    OpenTelemetry's API reads it while it is imported, and logs a traceback that does not name it. So it is looked at
    before any module of this package imports the API; where somebody else has, the traceback is there already.
    """
    import os
    import sys

    name = os.environ.get("OTEL_PYTHON_CONTEXT", "")  # noqa: TID251  # before the settings, which import the API
    if not name or "opentelemetry.context" in sys.modules:
        return
    from importlib.metadata import entry_points

    if entry_points(group="opentelemetry_context", name=name):
        return
    del os.environ["OTEL_PYTHON_CONTEXT"]  # noqa: TID251
    from meshmw._notices import LOGGER, quoted

    if name.strip():
        LOGGER.warning(
            "OTEL_PYTHON_CONTEXT holds %s, which is ignored: no such context is installed; unset it", quoted(name)
        )


_forget_unknown_context()
