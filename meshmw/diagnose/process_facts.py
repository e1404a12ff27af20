"""What one process has, as values: settings, OpenTelemetry's globals, middleware, a collector.

Must not know how that was found out, nor what is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from meshmw.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class AppFacts:
    """Is what one process has.

    Attributes:
        target: What was loaded, such as `shop.main:app`; empty for this process without an application.
        framework: `fastapi`, `starlette`, `flask`, `asgi or wsgi`; empty without an application.
        middleware: What wraps the application, as module and class, the outermost first.
        settings: The settings, or None where they cannot be used.
        settings_fault: Why they cannot.
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
        collector: The endpoint and what came of a connection to it; empty where there is none to reach.
        collector_fault: Why it cannot be reached; empty if it can.
    """

    target: str = ""
    framework: str = ""
    middleware: tuple[str, ...] = ()
    settings: Settings | None = None
    settings_fault: str = ""
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

    @property
    def where(self) -> str:
        """What findings call the process."""
        return self.target or "this process"

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain JSON values, without the settings."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "settings"}
