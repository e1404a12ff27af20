"""One trace through a service mesh: middleware, clients and a strict propagator for OpenTelemetry.

`configure()` is the first act of the process; the middleware are in `meshmw.asgi`, `meshmw.wsgi` and `meshmw.flask`,
the clients in `meshmw.httpx` and `meshmw.httpx2`. This module imports no optional dependency, and nothing at all before
a name is used: the pytest plugin loads it in runs that never touch it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meshmw.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from meshmw.bootstrap import configure
    from meshmw.errors import InvalidHeaderError, MeshmwError, MissingExtraError, SettingsError
    from meshmw.propagator import MeshPropagator
    from meshmw.settings import Settings
    from meshmw.telemetry.handle import Telemetry

__all__ = [
    "InvalidHeaderError",
    "MeshPropagator",
    "MeshmwError",
    "MissingExtraError",
    "Settings",
    "SettingsError",
    "Telemetry",
    "__version__",
    "configure",
    "extract",
    "inject",
]

_HOMES = {
    "InvalidHeaderError": "errors",
    "MeshPropagator": "propagator",
    "MeshmwError": "errors",
    "MissingExtraError": "errors",
    "Settings": "settings",
    "SettingsError": "errors",
    "Telemetry": "telemetry.handle",
    "configure": "bootstrap",
}
# So that `import meshmw` is enough, as in `meshmw.wsgi.TraceContextMiddleware`.
_MODULES = (
    "asgi",
    "baggage",
    "baggage_filter",
    "django",
    "flask",
    "grpc",
    "httpx",
    "httpx2",
    "kafka",
    "rabbitmq",
    "testing",
    "wsgi",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]


def extract(carrier: Any, context: Context | None = None) -> Context:
    """Return a context with what a mapping of header names to values says, validated; empty where it says nothing.

    Never raises for what the headers hold.
    """
    from meshmw import runtime

    return runtime.current().propagator.extract(carrier, context)


def inject(carrier: Any, context: Context | None = None, *, host: str | None = None) -> None:
    """Write the trace headers of the current context into a mapping, and remove every stale one from it.

    Args:
        carrier: The headers of an outbound call, by name.
        context: The current one by default.
        host: Where the call goes, without the port: it gets what `propagate_to` and `baggage_to` let it have. Without
            a host nothing is withheld.
    """
    from meshmw import runtime

    propagator = runtime.current().propagator
    if host is None:
        propagator.inject(carrier, context)
    else:
        propagator.inject_for(host, carrier, context)
