"""What is wrong with a process, as findings.

To add a rule, write a function that yields findings and list it at the end of this file. The rules for proxies, and for
what does not fit between the two, are in `judge_proxy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from meshmw._tools import Finding
from meshmw._tools.doctor.process import ProcessFacts

_FIRST_LINE: Final = (
    "call meshmw.configure() before anything else, or make `import meshmw.auto` the program's first line"
)
_UNKNOWN_SERVICE: Final = "unknown_service"
_OURS: Final = ("meshmw.asgi.TraceContextMiddleware", "meshmw.wsgi.TraceContextMiddleware")
_CONTRIB: Final = ("opentelemetry.instrumentation.asgi.", "opentelemetry.instrumentation.wsgi.")
# These make no calls and write no logs, so that nothing is lost where they stand outside of ours.
_HARMLESS: Final = ("CORSMiddleware", "GZipMiddleware", "TrustedHostMiddleware", "HTTPSRedirectMiddleware")


def judge_process(facts: ProcessFacts) -> Iterator[Finding]:
    """Yield what is wrong with a process."""
    for check in _PROCESS_CHECKS:
        yield from check(facts)


def _check_settings(facts: ProcessFacts) -> Iterator[Finding]:
    if facts.settings_fault:
        yield Finding(
            "error", "settings.unusable", facts.where, facts.settings_fault.replace("\n  - ", " "),
            "meshmw.configure() raises, and the program does not start",
            "`meshmw settings` says what each variable takes",
        )  # fmt: skip


def _check_propagator(facts: ProcessFacts) -> Iterator[Finding]:
    if not facts.strict:
        yield Finding(
            "error" if facts.target else "note", "propagator.not-strict", facts.where,
            f"the global propagator is {facts.propagator}, not meshmw's",
            "of several formats the last one that is listed wins there, stale headers stay on outgoing requests, and "
            "what is malformed is passed on",
            _FIRST_LINE,
        )  # fmt: skip
    elif facts.part_of_composite:
        yield Finding(
            "warning", "propagator.composite", facts.where,
            f"meshmw's propagator is one of several: {facts.propagator}",
            "the one that is listed last decides whose trace it is, and each writes its own headers",
            "OTEL_PROPAGATORS=meshmw alone, with the formats in MESHMW_PROPAGATORS",
        )  # fmt: skip
    elif not {"tracecontext", "b3", "b3multi"} & set(facts.formats):
        yield Finding(
            "error", "propagator.no-format", facts.where, "no trace format is configured",
            "no trace header is read or written: every request starts a new trace",
            "MESHMW_PROPAGATORS=tracecontext,baggage",
        )  # fmt: skip


def _check_middleware(facts: ProcessFacts) -> Iterator[Finding]:
    if not facts.framework:
        return
    ours = [index for index, name in enumerate(facts.middleware) if name in _OURS]
    if ours:
        yield from _check_order(facts, ours)
    else:
        yield Finding(
            "error", "middleware.missing", facts.where, "no meshmw middleware is around this application",
            "only what the framework itself does with headers is done: baggage, pass-through headers and the outcome "
            "of malformed ones are nobody's",
            "app.add_middleware(meshmw.asgi.TraceContextMiddleware) as the last of all, or meshmw.flask.init_app(app)",
        )  # fmt: skip


def _check_order(facts: ProcessFacts, ours: Sequence[int]) -> Iterator[Finding]:
    if len(ours) > 1:
        yield Finding(
            "warning", "middleware.twice", facts.where, f"meshmw's middleware is there {len(ours)} times",
            "each request passes it again for nothing; only the outermost makes a span",
            "add it once",
        )  # fmt: skip
    outside = [name for name in facts.middleware[: ours[0]] if not name.endswith(_HARMLESS)]
    if outside:
        yield Finding(
            "warning", "middleware.order", facts.where, f"outside of meshmw's middleware: {', '.join(outside)}",
            "what they log, call and refuse belongs to no trace, and the span does not count their time",
            "add meshmw's middleware last: the last one that is added is the outermost",
        )  # fmt: skip


def _check_duplicates(facts: ProcessFacts) -> Iterator[Finding]:
    contrib = [name for name in facts.middleware if name.startswith(_CONTRIB)]
    ours = [name for name in facts.middleware if name in _OURS]
    if contrib and ours:
        yield Finding(
            "note", "instrumentation.twice", facts.where, f"{contrib[0]} is there beside meshmw's middleware",
            "there is still one SERVER span per request, but each request passes both",
            "take one away: meshmw's alone makes the span too",
        )  # fmt: skip
    if "httpx" in facts.instrumented:
        yield Finding(
            "note", "instrumentation.httpx", facts.where, "httpx is patched by opentelemetry-instrumentation-httpx",
            "a call through meshmw.httpx.Client gets two CLIENT spans, of which the inner one is the next hop's parent",
            "take one away: meshmw.httpx.Client, or the instrumentation",
        )  # fmt: skip


def _check_baggage(facts: ProcessFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if "*" in settings.baggage_to:
        yield Finding(
            "warning", "baggage.everywhere", facts.where, "baggage goes to every host",
            "strangers read what callers put there",
            "MESHMW_BAGGAGE_TO=mesh, or the names that need it",
        )  # fmt: skip
    if "baggage" in settings.propagators and not (settings.baggage_keys and settings.baggage_max_members):
        yield Finding(
            "note", "baggage.none-kept", facts.where, "baggage is among the formats, and no member of it is kept",
            "baggage ends at this service",
            "unset MESHMW_BAGGAGE_KEYS and MESHMW_BAGGAGE_MAX_MEMBERS, or take baggage out of MESHMW_PROPAGATORS",
        )  # fmt: skip


def _check_versions(facts: ProcessFacts) -> Iterator[Finding]:
    api, sdk = facts.versions.get("opentelemetry-api", ""), facts.versions.get("opentelemetry-sdk", "")
    if api.split(".")[:2] != sdk.split(".")[:2]:
        yield Finding(
            "warning", "versions.differ", facts.where, f"opentelemetry-api is {api}, opentelemetry-sdk is {sdk}",
            "they are made for each other's version alone", "install one version of both",
        )  # fmt: skip


def _check_collector(facts: ProcessFacts) -> Iterator[Finding]:
    if facts.collector_fault:
        yield Finding(
            "error", "exporter.unreachable", facts.where,
            f"the collector at {facts.collector} cannot be reached: {facts.collector_fault}",
            "spans are made and dropped: the trace ends before this service",
            "MESHMW_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT; 4317 is gRPC, 4318 is HTTP (MESHMW_EXPORTER=otlp-http)",
        )  # fmt: skip


def _check_destination(facts: ProcessFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if facts.sdk_disabled:
        yield Finding(
            "warning", "exporter.disabled", facts.where, "the SDK is disabled",
            "headers are passed on, spans are not made", "unset OTEL_SDK_DISABLED",
        )  # fmt: skip
    elif settings.exporter in ("none", "console"):
        yield Finding(
            "warning", "exporter.nowhere", facts.where, f"spans go to {settings.exporter}",
            "this service is missing in every trace that a backend shows", "MESHMW_EXPORTER=otlp",
        )  # fmt: skip


def _check_provider(facts: ProcessFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    # With a provider of somebody else's, its exporters decide and not the settings.
    if facts.target and facts.provider == "TracerProvider" and not facts.exporters and settings.exporter != "none":
        yield Finding(
            "error", "exporter.none", facts.where, "the tracer provider has no exporter",
            "spans are made and go nowhere", "let meshmw.configure() make the provider, or add a span processor to it",
        )  # fmt: skip
    if facts.target and facts.provider == "ProxyTracerProvider" and not facts.sdk_disabled:
        yield Finding(
            "error", "provider.none", facts.where, "there is no tracer provider after loading the application",
            "no spans are made, unless it is configured later than it is imported", _FIRST_LINE,
        )  # fmt: skip


def _check_resource(facts: ProcessFacts) -> Iterator[Finding]:
    configured = facts.settings is not None and facts.settings.service_name
    name = facts.service_name or configured or ""
    if not name or name.startswith(_UNKNOWN_SERVICE):
        yield Finding(
            "warning", "resource.no-name", facts.where, f"the service has no name{f' but {name}' if name else ''}",
            "its spans stand in every backend among those of all other services without a name",
            "MESHMW_SERVICE_NAME or OTEL_SERVICE_NAME",
        )  # fmt: skip


def _check_sampler(facts: ProcessFacts) -> Iterator[Finding]:
    if not facts.sampler or facts.sampler.startswith("ParentBased") or facts.sampler == "AlwaysOnSampler":
        return
    if facts.settings is None or facts.settings.sampling_owner != "service":
        yield Finding(
            "warning", "sampling.not-parent-based", facts.where,
            f"the sampler is {facts.sampler}, which ignores the caller's flag",
            "this service records other traces than its callers: traces with holes",
            "OTEL_TRACES_SAMPLER=parentbased_traceidratio, or MESHMW_SAMPLING_RATIO with "
            "MESHMW_SAMPLING_OWNER=service and the same ratio in every service",
        )  # fmt: skip


_PROCESS_CHECKS: Final[tuple[Callable[[ProcessFacts], Iterator[Finding]], ...]] = (
    _check_settings,
    _check_propagator,
    _check_middleware,
    _check_duplicates,
    _check_collector,
    _check_destination,
    _check_provider,
    _check_resource,
    _check_sampler,
    _check_baggage,
    _check_versions,
)
