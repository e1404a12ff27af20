"""One trace through a service mesh: middleware, clients and a strict propagator for OpenTelemetry.

`configure()` is the first act of the process; the middleware are in `meshmw.asgi`, `meshmw.wsgi` and `meshmw.flask`,
the clients in `meshmw.httpx` and `meshmw.httpx2`. This module imports no optional dependency.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.context import Context

from meshmw import runtime
from meshmw.bootstrap import configure
from meshmw.errors import InvalidHeaderError, MeshmwError, MissingExtraError, SettingsError
from meshmw.propagator import MeshPropagator
from meshmw.settings import Settings
from meshmw.telemetry.handle import Telemetry

__version__ = "0.1.0"

__all__ = [
    "InvalidHeaderError",
    "MeshPropagator",
    "MeshmwError",
    "MissingExtraError",
    "Settings",
    "SettingsError",
    "Telemetry",
    "configure",
    "extract",
    "inject",
]


def extract(carrier: Any, context: Context | None = None) -> Context:
    """Return a context with what a mapping of header names to values says, validated; empty where it says nothing.

    Never raises for what the headers hold.
    """
    return runtime.current().propagator.extract(carrier, context)


def inject(carrier: Any, context: Context | None = None) -> None:
    """Write the trace headers of the current context into a mapping, and remove every stale one from it."""
    runtime.current().propagator.inject(carrier, context)
