"""What this process has that concerns traces: settings, OpenTelemetry's globals, and an application loaded into it."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace

from meshmw._notices import quoted
from meshmw._otel import exporters_of, parts_of
from meshmw._telemetry.export import endpoint_of, speaks_tls
from meshmw._telemetry.remedies import remedy_for
from meshmw._tools import JsonValue
from meshmw.errors import MeshmwError, SettingsError
from meshmw.propagator import MeshPropagator
from meshmw.settings import Settings, export_seconds, sdk_disabled

# The attributes in which applications and middleware keep what they wrap.
_INNER: Final = ("app", "wsgi_app", "application", "_app", "wsgi", "asgi_app")
# An application may refer to itself, through others as well.
_MAX_DEPTH: Final = 50
_FRAMEWORKS: Final = ("fastapi.FastAPI", "starlette.Starlette", "flask.Flask")
_PACKAGES: Final = (
    "meshmw",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-instrumentation-asgi",
    "opentelemetry-instrumentation-wsgi",
)
_PORTS: Final = {"https": 443, "http": 80}
# How long a connection to the collector may take.
_SECONDS: Final = 3
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
        raise AppError(f"{quoted(target)} is not MODULE:APP, such as shop.main:app")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.removesuffix("()").split("."):
            found = getattr(found, name)
        return found() if path.endswith("()") else found
    except (Exception, SystemExit) as error:
        raise AppError(f"{target} cannot be loaded: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts(JsonValue):
    """Holds what one process has that concerns traces.

    Attributes:
        target: What was loaded, such as `shop.main:app`; empty for this process without an application.
        framework: `fastapi`, `starlette`, `flask`, `asgi or wsgi`; empty without an application.
        middleware: What wraps the application, as module and class, the outermost first.
        settings: The settings, or None where they cannot be used.
        settings_fault: Why they cannot.
        sdk_disabled: Whether OTEL_SDK_DISABLED switches spans off.
        propagator: The global propagator's class name, with its parts where it has any.
        formats: What it reads and writes, where it is meshmw's; else the fields that it writes.
        strict: Whether meshmw's propagator is the global one.
        part_of_composite: Whether it is one among others there.
        provider: The tracer provider's class name.
        exporters: Class names of its exporters.
        service_name: The resource's; empty where there is none.
        sampler: The sampler's description; empty where there is none.
        instrumented: Libraries that opentelemetry-instrumentation has patched.
        versions: Versions by package.
        collector: The collector's `host:port`; empty where there is none to reach.
        collector_fault: Why it cannot be reached; empty if it can.
        collector_tls: Whether the exporter speaks TLS to it.
        export_seconds: The seconds that one export of spans may take.
    """

    target: str = ""
    framework: str = ""
    middleware: tuple[str, ...] = ()
    settings: Settings | None = None
    settings_fault: str = ""
    sdk_disabled: bool = False
    propagator: str = ""
    formats: tuple[str, ...] = ()
    strict: bool = False
    part_of_composite: bool = False
    provider: str = ""
    exporters: tuple[str, ...] = ()
    service_name: str = ""
    sampler: str = ""
    instrumented: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    collector: str = ""
    collector_fault: str = ""
    collector_tls: bool = False
    export_seconds: float = 0.0

    @property
    def where(self) -> str:
        """Return what findings call the process."""
        return self.target or "this process"

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON values, without the settings."""
        return {name: value for name, value in JsonValue.to_json(self).items() if name != "settings"}


def look_at_process(target: str = "", app: Any = None, *, connect: bool = True) -> ProcessFacts:
    """Return what this process has, with an application or without."""
    settings, fault = _read_settings()
    disabled = sdk_disabled()
    collector, collector_fault = _try_collector(None if disabled else settings) if connect else ("", "")
    return ProcessFacts(
        target=target,
        framework=framework_of(app),
        middleware=tuple(middleware_of(app)),
        settings=settings,
        settings_fault=fault,
        sdk_disabled=disabled,
        instrumented=tuple(_instrumented_libraries()),
        versions=_installed_versions(),
        collector=collector,
        collector_fault=collector_fault,
        **_look_at_exporter(None if disabled else settings),
        **_look_at_propagator(),
        **_look_at_provider(),
    )


def framework_of(app: Any) -> str:
    """Return `fastapi`, `starlette`, `flask` or `asgi or wsgi`; empty without an application."""
    if app is None:
        return ""
    for layer in _layers(app):
        names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(layer).__mro__}
        for name in _FRAMEWORKS:
            if name in names:
                return name.partition(".")[0]
    return "asgi or wsgi"


def middleware_of(app: Any) -> Iterator[str]:
    """Yield the middleware that a request passes before the application's own code, the outermost first."""
    for layer in _layers(app):
        kept = getattr(layer, "user_middleware", None)
        if kept is not None:
            # Starlette builds them at the first request, the last one added outermost.
            yield from (_qualified_name(getattr(each, "cls", each)) for each in kept)
        elif getattr(layer, "wsgi_app", None) is None and hasattr(layer, "app"):
            yield _qualified_name(type(layer))


def _layers(app: Any) -> Iterator[Any]:
    """Yield an application and what it wraps, from the outside in."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen and len(seen) < _MAX_DEPTH:
        seen.add(id(app))
        yield app
        attributes = getattr(app, "__dict__", {})
        app = next((inner for name in _INNER if callable(inner := attributes.get(name))), None)


def _qualified_name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__name__)}"


def _read_settings() -> tuple[Settings | None, str]:
    try:
        return Settings(), ""
    except SettingsError as error:
        return None, str(error)


def _look_at_propagator() -> dict[str, Any]:
    propagator = _global_propagator()
    parts = parts_of(propagator)
    ours = [each for each in (propagator, *parts) if isinstance(each, MeshPropagator)]
    name, names = type(propagator).__name__, [type(each).__name__ for each in parts]
    return {
        "propagator": f"{name}({', '.join(names)})" if names else name,
        "formats": tuple(ours[0].formats if ours else sorted(getattr(propagator, "fields", ()))),
        "strict": bool(ours),
        "part_of_composite": bool(ours) and ours[0] is not propagator and len(parts) > 1,
    }


def _global_propagator() -> Any:
    try:
        from opentelemetry import propagate
    except Exception as error:
        # OTEL_PROPAGATORS names a package that is not installed, and OpenTelemetry raises on import.
        return error
    return propagate.get_global_textmap()


def _look_at_provider() -> dict[str, Any]:
    provider = trace.get_tracer_provider()
    resource, sampler = getattr(provider, "resource", None), getattr(provider, "sampler", None)
    return {
        "provider": type(provider).__name__,
        "exporters": tuple(_exporter_names(provider)),
        "service_name": "" if resource is None else str(resource.attributes.get("service.name", "")),
        "sampler": "" if sampler is None else str(sampler.get_description()),
    }


def _exporter_names(provider: Any) -> Iterator[str]:
    for exporter in exporters_of(provider):
        # The name is that of the exporter that the user chose, not of the wrapper that meshmw puts around it.
        inner = getattr(exporter, "_exporter", None) if type(exporter).__module__.startswith("meshmw.") else None
        yield type(inner or exporter).__name__


def _instrumented_libraries() -> Iterator[str]:
    for library, (module_name, class_name) in _INSTRUMENTORS.items():
        # An instrumentor whose module nobody imported has patched nothing.
        instrumentor = getattr(sys.modules.get(module_name), class_name, None)
        if instrumentor is not None and instrumentor().is_instrumented_by_opentelemetry:
            yield library


def _installed_versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _look_at_exporter(settings: Settings | None) -> dict[str, Any]:
    endpoint = endpoint_of(settings) if settings is not None else None
    if settings is None or endpoint is None:
        return {}
    seconds = export_seconds("TRACES", http=settings.exporter == "otlp-http")
    return {"collector_tls": speaks_tls(endpoint, "TRACES"), "export_seconds": seconds}


def _try_collector(settings: Settings | None) -> tuple[str, str]:
    """Return the collector's address, and why it cannot be reached."""
    endpoint = endpoint_of(settings) if settings is not None else None
    if endpoint is None:
        return "", ""
    address, connect = _way_to(endpoint)
    try:
        with connect() as connection:
            return address, _fault_of_handshake(connection, endpoint) if speaks_tls(endpoint, "TRACES") else ""
    except OSError as error:
        return address, str(error.strerror or error)


def _way_to(endpoint: str) -> tuple[str, Callable[[], socket.socket]]:
    """Return what to call a collector's address, and a function that connects to it."""
    scheme, _, rest = endpoint.partition(":")
    if scheme == "unix":
        path = rest.removeprefix("//")
        return path, lambda: _connect_to_file(path)
    # gRPC's own addresses, such as `dns:///host:4317`, end in host and port.
    is_url = scheme in _PORTS
    parts = urlsplit(endpoint if is_url else f"//{rest.rpartition('/')[2].partition(',')[0]}")
    host, port = parts.hostname or "", parts.port or _PORTS.get(scheme, 443)
    return f"{host}:{port}", lambda: socket.create_connection((host, port), _SECONDS)


def _connect_to_file(path: str) -> socket.socket:
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError(errno.EAFNOSUPPORT, "this Python has no Unix sockets")
    connection = socket.socket(family)
    connection.settimeout(_SECONDS)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _fault_of_handshake(connection: socket.socket, endpoint: str) -> str:
    """Return why a collector does not speak TLS; whether its certificate is trusted is the exporter's to say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with context.wrap_socket(connection, server_hostname=urlsplit(endpoint).hostname):
            return ""
    except ssl.SSLError as error:
        return remedy_for(endpoint, f"handshake: {error}") or str(error)
