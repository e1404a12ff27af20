"""What keeps a process's spans from their backend, or from what others record, as findings.

Knows what a process has. Must not know how that was found out, nor any proxy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from meshmw.diagnose.finding import Finding
from meshmw.diagnose.process_facts import AppFacts

FIRST_LINE: Final = (
    "call meshmw.configure() before anything else, or make `import meshmw.auto` the program's first line"
)
_UNKNOWN: Final = "unknown_service"


def judge_export(facts: AppFacts) -> Iterator[Finding]:
    """Yield what keeps a process's spans from being made, exported, found and complete."""
    for check in (_collector, _destination, _provider, _resource, _sampler):
        yield from check(facts)


def _collector(facts: AppFacts) -> Iterator[Finding]:
    if facts.collector_fault:
        yield Finding(
            "error", "exporter.unreachable", facts.where,
            f"the collector at {facts.collector} cannot be reached: {facts.collector_fault}",
            "spans are made and dropped: the trace ends before this service",
            "MESHMW_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT; 4317 is gRPC, 4318 is HTTP (MESHMW_EXPORTER=otlp-http)",
        )  # fmt: skip


def _destination(facts: AppFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if settings.sdk_disabled:
        yield Finding(
            "warning", "exporter.disabled", facts.where, "the SDK is disabled",
            "headers are passed on, spans are not made", "unset MESHMW_SDK_DISABLED and OTEL_SDK_DISABLED",
        )  # fmt: skip
    elif settings.exporter in ("none", "console"):
        yield Finding(
            "warning", "exporter.nowhere", facts.where, f"spans go to {settings.exporter}",
            "this service is missing in every trace that a backend shows", "MESHMW_EXPORTER=otlp",
        )  # fmt: skip


def _provider(facts: AppFacts) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    # With a provider of somebody else's, its exporters decide and not the settings.
    if facts.target and facts.provider == "TracerProvider" and not facts.exporters and settings.exporter != "none":
        yield Finding(
            "error", "exporter.none", facts.where, "the tracer provider has no exporter",
            "spans are made and go nowhere", "let meshmw.configure() make the provider, or add a span processor to it",
        )  # fmt: skip
    if facts.target and facts.provider == "ProxyTracerProvider" and not settings.sdk_disabled:
        yield Finding(
            "error", "provider.none", facts.where, "there is no tracer provider after loading the application",
            "no spans are made, unless it is configured later than it is imported", FIRST_LINE,
        )  # fmt: skip


def _resource(facts: AppFacts) -> Iterator[Finding]:
    configured = facts.settings is not None and facts.settings.service_name
    name = facts.service_name or configured or ""
    if not name or name.startswith(_UNKNOWN):
        yield Finding(
            "warning", "resource.no-name", facts.where, f"the service has no name{f' but {name}' if name else ''}",
            "its spans stand in every backend among those of all other services without a name",
            "MESHMW_SERVICE_NAME or OTEL_SERVICE_NAME",
        )  # fmt: skip


def _sampler(facts: AppFacts) -> Iterator[Finding]:
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
