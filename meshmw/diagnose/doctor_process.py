"""What is wrong with one process, as findings.

Knows what a process has. Must not know how that was found out, nor any proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from meshmw.diagnose.doctor_export import FIRST_LINE, judge_export
from meshmw.diagnose.finding import Finding
from meshmw.diagnose.process_facts import AppFacts

_OURS: Final = ("meshmw.asgi.TraceContextMiddleware", "meshmw.wsgi.TraceContextMiddleware")
_CONTRIB: Final = ("opentelemetry.instrumentation.asgi.", "opentelemetry.instrumentation.wsgi.")
# What runs in a framework's own depth of the row, and makes no calls and no logs of its own.
_HARMLESS: Final = ("CORSMiddleware", "GZipMiddleware", "TrustedHostMiddleware", "HTTPSRedirectMiddleware")


def judge_process(facts: AppFacts) -> Iterator[Finding]:
    """Yield what is wrong with a process."""
    for check in _CHECKS:
        yield from check(facts)


def _settings(facts: AppFacts) -> Iterator[Finding]:
    if facts.settings_fault:
        yield Finding(
            "error", "settings.unusable", facts.where, facts.settings_fault.replace("\n  - ", " "),
            "meshmw.configure() raises, and the program does not start",
            "`meshmw settings` says what each variable takes",
        )  # fmt: skip


def _propagator(facts: AppFacts) -> Iterator[Finding]:
    if not facts.strict:
        yield Finding(
            "error" if facts.target else "note", "propagator.not-strict", facts.where,
            f"the global propagator is {facts.propagator}, not meshmw's",
            "of several formats the last one that is listed wins there, stale headers stay on outgoing requests, and "
            "what is malformed is passed on",
            FIRST_LINE,
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


def _middleware(facts: AppFacts) -> Iterator[Finding]:
    if not facts.framework:
        return
    ours = [index for index, name in enumerate(facts.middleware) if name in _OURS]
    if ours:
        yield from _place(facts, ours)
    else:
        yield Finding(
            "error", "middleware.missing", facts.where, "no meshmw middleware is around this application",
            "only what the framework itself does with headers is done: baggage, pass-through headers and the outcome "
            "of malformed ones are nobody's",
            "app.add_middleware(meshmw.asgi.TraceContextMiddleware) as the last of all, or meshmw.flask.init_app(app)",
        )  # fmt: skip


def _place(facts: AppFacts, ours: Sequence[int]) -> Iterator[Finding]:
    """Yield what is wrong with where meshmw's middleware stands in the row."""
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


def _duplicates(facts: AppFacts) -> Iterator[Finding]:
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


def _baggage(facts: AppFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if "*" in settings.baggage_to:
        yield Finding(
            "warning", "baggage.everywhere", facts.where, "baggage goes to every host",
            "strangers read what callers put there",
            "MESHMW_BAGGAGE_TO=mesh, or the names that need it",
        )  # fmt: skip
    if "baggage" in settings.propagators and not settings.baggage_max_members:
        yield Finding(
            "note", "baggage.none-kept", facts.where, "baggage is among the formats, and no member of it is kept",
            "baggage ends at this service", "MESHMW_BAGGAGE_MAX_MEMBERS=64, or take baggage out of MESHMW_PROPAGATORS",
        )  # fmt: skip


def _versions(facts: AppFacts) -> Iterator[Finding]:
    api, sdk = facts.versions.get("opentelemetry-api", ""), facts.versions.get("opentelemetry-sdk", "")
    if api.split(".")[:2] != sdk.split(".")[:2]:
        yield Finding(
            "warning", "versions.differ", facts.where, f"opentelemetry-api is {api}, opentelemetry-sdk is {sdk}",
            "they are made for each other's version alone", "install one version of both",
        )  # fmt: skip


_CHECKS: Final[tuple[Callable[[AppFacts], Iterator[Finding]], ...]] = (
    _settings,
    _propagator,
    _middleware,
    _duplicates,
    judge_export,
    _baggage,
    _versions,
)
