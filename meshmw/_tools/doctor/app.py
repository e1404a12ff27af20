"""This process looked at: settings, OpenTelemetry's globals, and an application that is loaded into it."""

from __future__ import annotations

import importlib
import importlib.metadata
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace

from meshmw._otel import exporters_of, parts_of
from meshmw._telemetry.export import endpoint_of
from meshmw._tools.doctor.process import AppFacts
from meshmw.errors import MeshmwError, SettingsError
from meshmw.settings import Settings, sdk_disabled

# An application and what is wrapped around it: its framework, and its middleware from the outside in.


_INNER: Final = ("app", "wsgi_app", "application", "_app", "wsgi", "asgi_app")
# The longest row of middleware that is looked at: an application may refer to itself.
_MAX_DEPTH: Final = 50


def framework_of(app: Any) -> str:
    """Return `fastapi`, `starlette`, `flask` or `asgi or wsgi`; empty without an application."""
    if app is None:
        return ""
    for layer in _layers(app):
        names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(layer).__mro__}
        for name in ("fastapi.FastAPI", "starlette.Starlette", "flask.Flask"):
            if name in names:
                return name.partition(".")[0]
    return "asgi or wsgi"


def _layers(app: Any) -> Iterator[Any]:
    """Yield an application and what it wraps, from the outside in."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen and len(seen) < _MAX_DEPTH:
        seen.add(id(app))
        yield app
        app = (
            next((found for name in _INNER if callable(found := vars(app).get(name))), None) if _has_vars(app) else None
        )


def _has_vars(value: Any) -> bool:
    return hasattr(value, "__dict__")


def middleware_of(app: Any) -> Iterator[str]:
    """Yield what a request passes before the application's own code, from the outside in."""
    for layer in _layers(app):
        kept = getattr(layer, "user_middleware", None)
        if kept is not None:
            # Starlette builds them at the first request, the last one added outermost.
            yield from (_name(getattr(each, "cls", each)) for each in kept)
        elif getattr(layer, "wsgi_app", None) is None and hasattr(layer, "app"):
            yield _name(type(layer))


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__name__)}"


_PACKAGES: Final = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-grpc")
_INSTRUMENTORS: Final = {
    "httpx": ("opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor"),
    "fastapi": ("opentelemetry.instrumentation.fastapi", "FastAPIInstrumentor"),
    "flask": ("opentelemetry.instrumentation.flask", "FlaskInstrumentor"),
    "starlette": ("opentelemetry.instrumentation.starlette", "StarletteInstrumentor"),
}


class AppError(MeshmwError):
    """Says in one line why an application cannot be loaded."""


def load_app(target: str) -> Any:
    """Import an application, as `uvicorn module:app` does.

    Raises:
        AppError: There is no such module or attribute, or importing it raised.
    """
    module_name, colon, path = target.partition(":")
    if not (colon and module_name and path):
        raise AppError(f"{target!r} is not MODULE:APP, such as shop.main:app")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.removesuffix("()").split("."):
            found = getattr(found, name)
        return found() if path.endswith("()") else found
    except (Exception, SystemExit) as error:
        raise AppError(f"{target} cannot be loaded: {type(error).__name__}: {error}") from error


def look_at_process(target: str = "", app: Any = None, *, connect: bool = True) -> AppFacts:
    """Return what this process has, with an application or without.

    Args:
        target: What the application was loaded from.
        app: The application.
        connect: Whether to try a connection to the collector.
    """
    settings, fault = _settings()
    propagator = _propagator()
    ours = [part for part in (propagator, *parts_of(propagator)) if type(part).__name__ == "MeshPropagator"]
    provider = trace.get_tracer_provider()
    resource = getattr(provider, "resource", None)
    disabled = sdk_disabled()
    collector, collector_fault = _collector(None if disabled else settings) if connect else ("", "")
    return AppFacts(
        target=target,
        framework=framework_of(app),
        middleware=tuple(middleware_of(app)),
        settings=settings,
        settings_fault=fault,
        sdk_disabled=disabled,
        propagator=_shown(propagator),
        formats=tuple(ours[0].formats) if ours else tuple(sorted(getattr(propagator, "fields", ()))),
        strict=bool(ours),
        part_of_composite=bool(ours) and ours[0] is not propagator and len(parts_of(propagator)) > 1,
        provider=type(provider).__name__,
        exporters=tuple(_exporters(provider)),
        service_name=str(resource.attributes.get("service.name", "")) if resource is not None else "",
        sampler=_sampler(provider),
        instrumented=tuple(_instrumented()),
        versions=_versions(),
        collector=collector,
        collector_fault=collector_fault,
    )


def _settings() -> tuple[Settings | None, str]:
    try:
        return Settings(), ""
    except SettingsError as error:
        return None, str(error)


def _propagator() -> Any:
    try:
        from opentelemetry import propagate
    except Exception as error:
        # OTEL_PROPAGATORS names a package that is not installed, and OpenTelemetry raises on import.
        return error
    return propagate.get_global_textmap()


def _shown(propagator: Any) -> str:
    name, parts = type(propagator).__name__, [type(part).__name__ for part in parts_of(propagator)]
    return f"{name}({', '.join(parts)})" if parts else name


def _exporters(provider: Any) -> Iterator[str]:
    for exporter in exporters_of(provider):
        # What this package puts around an exporter is not what the reader chose.
        inner = getattr(exporter, "_exporter", None) if type(exporter).__module__.startswith("meshmw.") else None
        yield type(inner or exporter).__name__


def _sampler(provider: Any) -> str:
    sampler = getattr(provider, "sampler", None)
    return "" if sampler is None else str(sampler.get_description())


def _instrumented() -> Iterator[str]:
    for library, (module_name, class_name) in _INSTRUMENTORS.items():
        # What nobody imported has patched nothing.
        instrumentor = getattr(sys.modules.get(module_name), class_name, None)
        if instrumentor is not None and instrumentor().is_instrumented_by_opentelemetry:
            yield library


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    contrib: Iterable[str] = ("opentelemetry-instrumentation-asgi", "opentelemetry-instrumentation-wsgi")
    for package in ("meshmw", *_PACKAGES, *contrib):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _collector(settings: Settings | None) -> tuple[str, str]:
    endpoint = endpoint_of(settings) if settings is not None else None
    if endpoint is None:
        return "", ""
    parts = urlsplit(endpoint)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 4317)
    address = f"{parts.hostname}:{port}"
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return address, ""
    except OSError as error:
        return address, str(error.strerror or error)
