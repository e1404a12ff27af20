"""What is wrong with one process, as findings.

Knows what a process has. Must not know how that was found out, nor any proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from meshmw.diagnose.doctor_app import CONTRIB, OURS, AppFacts
from meshmw.diagnose.finding import Finding, Severity

_UNKNOWN: Final = "unknown_service"
# What runs in a framework's own depth of the row, and makes no calls and no logs of its own.
_HARMLESS: Final = ("CORSMiddleware", "GZipMiddleware", "TrustedHostMiddleware", "HTTPSRedirectMiddleware")
_FIRST_LINE: Final = (
    "call meshmw.configure() before anything else, or make `import meshmw.auto` the program's first line"
)


def judge_process(facts: AppFacts) -> Iterator[Finding]:
    """Yield what is wrong with a process."""
    for check in _CHECKS:
        yield from check(facts)


def _where(facts: AppFacts) -> str:
    return facts.target or "this process"


def _finding(facts: AppFacts, severity: Severity, code: str, what: str, why: str, fix: str) -> Finding:
    return Finding(severity, code, _where(facts), what, why, fix)


def _settings(facts: AppFacts) -> Iterator[Finding]:
    if facts.settings_fault:
        yield _finding(
            facts, "error", "settings.unusable", facts.settings_fault.replace("\n  - ", " "),
            "meshmw.configure() raises, and the program does not start",
            "`meshmw settings` says what each variable takes",
        )  # fmt: skip


def _propagator(facts: AppFacts) -> Iterator[Finding]:
    if not facts.strict:
        yield _finding(
            facts, "error" if facts.target else "note", "propagator.not-strict",
            f"the global propagator is {facts.propagator}, not meshmw's",
            "of several formats the last one that is listed wins there, stale headers stay on outgoing "
            "requests, and what is "
            "malformed is passed on",
            _FIRST_LINE,
        )  # fmt: skip
    elif facts.part_of_composite:
        yield _finding(
            facts, "warning", "propagator.composite",
            f"meshmw's propagator is one of several: {facts.propagator}",
            "the one that is listed last decides whose trace it is, and each writes its own headers",
            "OTEL_PROPAGATORS=meshmw alone, with the formats in MESHMW_PROPAGATORS",
        )  # fmt: skip
    elif not {"tracecontext", "b3", "b3multi"} & set(facts.formats):
        yield _finding(
            facts, "error", "propagator.no-format", "no trace format is configured",
            "no trace header is read or written: every request starts a new trace",
            "MESHMW_PROPAGATORS=tracecontext,baggage",
        )  # fmt: skip


def _middleware(facts: AppFacts) -> Iterator[Finding]:
    if not facts.framework:
        return
    ours = [index for index, name in enumerate(facts.middleware) if name in OURS]
    if not ours:
        yield _finding(
            facts, "error", "middleware.missing", "no meshmw middleware is around this application",
            "only what the framework itself does with headers is done: baggage, pass-through headers and "
            "the outcome of "
            "malformed ones are nobody's",
            "app.add_middleware(meshmw.asgi.TraceContextMiddleware) as the last of all, or meshmw.flask.init_app(app)",
        )  # fmt: skip
        return
    if len(ours) > 1:
        yield _finding(
            facts, "warning", "middleware.twice", f"meshmw's middleware is there {len(ours)} times",
            "each request passes it again for nothing; only the outermost makes a span",
            "add it once",
        )  # fmt: skip
    outside = [name for name in facts.middleware[: ours[0]] if not name.endswith(_HARMLESS)]
    if outside:
        yield _finding(
            facts, "warning", "middleware.order", f"outside of meshmw's middleware: {', '.join(outside)}",
            "what they log, call and refuse belongs to no trace, and the span does not count their time",
            "add meshmw's middleware last: the last one that is added is the outermost",
        )  # fmt: skip


def _duplicates(facts: AppFacts) -> Iterator[Finding]:
    contrib = [name for name in facts.middleware if name.startswith(CONTRIB)]
    ours = [name for name in facts.middleware if name in OURS]
    if contrib and ours:
        yield _finding(
            facts, "note", "instrumentation.twice", f"{contrib[0]} is there beside meshmw's middleware",
            "there is still one SERVER span per request, but each request passes both",
            "take one away: meshmw's alone makes the span too",
        )  # fmt: skip
    if "httpx" in facts.instrumented:
        yield _finding(
            facts, "note", "instrumentation.httpx", "httpx is patched by opentelemetry-instrumentation-httpx",
            "a call through meshmw.httpx.Client gets two CLIENT spans, of which the inner one is the next hop's parent",
            "take one away: meshmw.httpx.Client, or the instrumentation",
        )  # fmt: skip


def _exporter(facts: AppFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if facts.collector_fault:
        yield _finding(
            facts, "error", "exporter.unreachable",
            f"the collector at {facts.collector} cannot be reached: {facts.collector_fault}",
            "spans are made and dropped: the trace ends before this service",
            "MESHMW_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT; 4317 is gRPC, 4318 is HTTP (MESHMW_EXPORTER=otlp-http)",
        )  # fmt: skip
    if settings.sdk_disabled:
        yield _finding(
            facts, "warning", "exporter.disabled", "the SDK is disabled", "headers are passed on, spans are not made",
            "unset MESHMW_SDK_DISABLED and OTEL_SDK_DISABLED",
        )  # fmt: skip
    elif settings.exporter in ("none", "console"):
        yield _finding(
            facts, "warning", "exporter.nowhere", f"spans go to {settings.exporter}",
            "this service is missing in every trace that a backend shows", "MESHMW_EXPORTER=otlp",
        )  # fmt: skip
    # With a provider of somebody else's, its exporters decide and not the settings.
    if facts.target and facts.provider == "TracerProvider" and not facts.exporters and settings.exporter != "none":
        yield _finding(
            facts, "error", "exporter.none", "the tracer provider has no exporter",
            "spans are made and go nowhere", "let meshmw.configure() make the provider, or add a span processor to it",
        )  # fmt: skip
    if facts.target and facts.provider == "ProxyTracerProvider" and not settings.sdk_disabled:
        yield _finding(
            facts, "error", "provider.none", "there is no tracer provider after loading the application",
            "no spans are made, unless it is configured later than it is imported", _FIRST_LINE,
        )  # fmt: skip


def _resource(facts: AppFacts) -> Iterator[Finding]:
    configured = facts.settings is not None and facts.settings.service_name
    name = facts.service_name or configured or ""
    if not name or name.startswith(_UNKNOWN):
        yield _finding(
            facts, "warning", "resource.no-name", f"the service has no name{f' but {name}' if name else ''}",
            "its spans stand in every backend among those of all other services without a name",
            "MESHMW_SERVICE_NAME or OTEL_SERVICE_NAME",
        )  # fmt: skip


def _sampler(facts: AppFacts) -> Iterator[Finding]:
    description = facts.sampler
    if description and not description.startswith("ParentBased"):
        owned = facts.settings is not None and facts.settings.sampling_owner == "service"
        if not owned and description != "AlwaysOnSampler":
            yield _finding(
                facts, "warning", "sampling.not-parent-based", f"the sampler is {description}, which "
                                                               f"ignores the caller's flag",
                "this service records other traces than its callers: traces with holes",
                "OTEL_TRACES_SAMPLER=parentbased_traceidratio, or MESHMW_SAMPLING_RATIO with "
                "MESHMW_SAMPLING_OWNER=service "
                "and the same ratio in every service",
            )  # fmt: skip


def _baggage(facts: AppFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if "*" in settings.baggage_to:
        yield _finding(
            facts, "warning", "baggage.everywhere", "baggage goes to every host",
            "strangers read what callers put there",
            "MESHMW_BAGGAGE_TO=mesh, or the names that need it",
        )  # fmt: skip
    if "baggage" in settings.propagators and not settings.baggage_max_members:
        yield _finding(
            facts, "note", "baggage.none-kept", "baggage is among the formats, and no member of it is kept",
            "baggage ends at this service", "MESHMW_BAGGAGE_MAX_MEMBERS=64, or take baggage out of MESHMW_PROPAGATORS",
        )  # fmt: skip


def _versions(facts: AppFacts) -> Iterator[Finding]:
    api, sdk = facts.versions.get("opentelemetry-api", ""), facts.versions.get("opentelemetry-sdk", "")
    if api.split(".")[:2] != sdk.split(".")[:2]:
        yield _finding(
            facts, "warning", "versions.differ", f"opentelemetry-api is {api}, opentelemetry-sdk is {sdk}",
            "they are made for each other's version alone", "install one version of both",
        )  # fmt: skip


_CHECKS: Final[tuple[Callable[[AppFacts], Iterator[Finding]], ...]] = (
    _settings,
    _propagator,
    _middleware,
    _duplicates,
    _exporter,
    _resource,
    _sampler,
    _baggage,
    _versions,
)
