"""What is wrong with a process, with a proxy, and between the two, as findings.

The rules for proxies were measured on Envoy 1.36 to 1.40. To add a rule, write a function that yields findings and list
it at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from meshmw._tools import Finding
from meshmw._tools.doctor.process import ProcessFacts
from meshmw._tools.doctor.proxy import ProxyConfig, ProxyListener

_FIRST_LINE: Final = (
    "call meshmw.configure() before anything else, or make `import meshmw.auto` the program's first line"
)
_UNKNOWN_SERVICE: Final = "unknown_service"
_OURS: Final = ("meshmw.asgi.TraceContextMiddleware", "meshmw.wsgi.TraceContextMiddleware")
_CONTRIB: Final = ("opentelemetry.instrumentation.asgi.", "opentelemetry.instrumentation.wsgi.")
# These make no calls and write no logs, so that nothing is lost where they stand outside of ours.
_HARMLESS: Final = ("CORSMiddleware", "GZipMiddleware", "TrustedHostMiddleware", "HTTPSRedirectMiddleware")
# Since this version a proxy clears the flag of a sampled parent at its own rate.
_CLEARS_FLAGS: Final = (1, 39)
_KEEP_FLAG: Final = (
    "Istio's Telemetry: randomSamplingPercentage: 100, or useRequestIdForTraceSampling: false; Envoy: random_sampling "
    "100, or use_request_id_for_trace_sampling: false in the request id extension"
)
# What a proxy calls each format that meshmw knows.
_FORMATS: Final = {"tracecontext": "w3c", "b3": "b3", "b3multi": "b3"}


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


def judge_proxy(proxy: ProxyConfig) -> Iterator[Finding]:
    """Yield what is wrong with a proxy by itself."""
    if not proxy.listeners:
        yield Finding(
            "warning", "proxy.no-http", proxy.where, "it has no HTTP listener",
            "it forwards bytes: it neither reads nor writes trace headers, and makes no spans",
            "ask the proxy in the way",
        )  # fmt: skip
    for listener in proxy.listeners:
        for check in _PROXY_CHECKS:
            yield from check(proxy, listener)
    reading = {listener.formats for listener in proxy.listeners if listener.formats}
    if len(reading) > 1:
        yield Finding(
            "warning", "proxy.mixed-formats", proxy.where, "its listeners read and write different formats",
            "a trace that comes in by one format goes out by another",
            "give all listeners one tracer: OpenTelemetry's, or Zipkin's with USE_B3_WITH_W3C_PROPAGATION",
        )  # fmt: skip


def judge_both(facts: ProcessFacts, proxy: ProxyConfig) -> Iterator[Finding]:
    """Yield what does not fit between a process and its proxy."""
    for listener in proxy.listeners:
        for check in _CHECKS_OF_BOTH:
            yield from check(facts, proxy, listener)


def _check_tracer(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if not listener.tracer:
        yield Finding(
            "note", "proxy.no-tracing", proxy.where_of(listener),
            "it traces nothing, and passes trace headers on untouched",
            "it is missing in every trace, which breaks none",
            "Istio's Telemetry, or tracing in the connection manager",
        )  # fmt: skip
    elif not listener.formats:
        yield Finding(
            "warning", "proxy.other-tracer", proxy.where_of(listener),
            f"its tracer is {listener.tracer}, whose headers are not W3C's nor B3",
            "its spans are in traces of their own", "use the OpenTelemetry tracer",
        )  # fmt: skip
    if listener.writes_nothing:
        yield Finding(
            "warning", "proxy.injects-nothing", proxy.where_of(listener),
            "no_context_propagation is set (disableContextPropagation)",
            "it exports spans and sends no headers of its own: what lies behind it hangs beside its spans, not below",
            "take it away",
        )  # fmt: skip


def _check_sampling(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if not listener.tracer or not listener.uses_request_id:
        return
    clears = listener.tracer == "opentelemetry" and (not proxy.version or proxy.version >= _CLEARS_FLAGS)
    if listener.random_sampling < 100 and clears and listener.sampler in ("", "parent_based"):
        yield Finding(
            "warning", "sampling.proxy-clears-the-flag", proxy.where_of(listener),
            f"random_sampling is {listener.random_sampling:g} %, and Envoy since 1.39 clears the sampled flag of the "
            f"other {100 - listener.random_sampling:g} % of requests, whatever their caller decided",
            "a trace that the caller records ends here: everything behind it is unsampled", _KEEP_FLAG,
        )  # fmt: skip
    if not listener.makes_request_id:
        yield Finding(
            "error" if clears else "warning", "request-id.not-made", proxy.where_of(listener),
            "it makes no x-request-id, and samples by it",
            "a request without one, or with one that is no UUID, is never sampled",
            "generate_request_id: true, or use_request_id_for_trace_sampling: false",
        )  # fmt: skip


def _check_removal(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    trace = [name for name in listener.removes if name != "x-request-id"]
    if listener.removes_early:
        yield Finding(
            "error", "headers.removed-early", proxy.where_of(listener),
            f"it removes {', '.join(listener.removes_early)} before its tracer looks",
            "the caller's trace ends here, and another one begins", "take the early_header_mutation away",
        )  # fmt: skip
    if trace and listener.tracer and not {"baggage", "b3"} & set(trace):
        yield Finding(
            "note", "headers.removed-in-vain", proxy.where_of(listener), f"its routes remove {', '.join(trace)}",
            "its tracer writes them again afterwards: the trace goes on, the removal does nothing",
            "take request_headers_to_remove away, or remove early at an edge that must not believe strangers",
        )  # fmt: skip
    elif trace:
        yield Finding(
            "error", "headers.removed", proxy.where_of(listener), f"its routes remove {', '.join(trace)}",
            "what lies behind it never sees the caller's headers", "take request_headers_to_remove away",
        )  # fmt: skip
    if "x-request-id" in listener.removes or "x-request-id" in listener.removes_early:
        yield Finding(
            "warning", "request-id.removed", proxy.where_of(listener), "it removes x-request-id",
            "each hop behind it decides anew what is sampled, and logs cannot be joined", "leave the header alone",
        )  # fmt: skip


def _check_zipkin(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if listener.short_ids:
        yield Finding(
            "warning", "zipkin.short-ids", proxy.where_of(listener), "its tracer makes trace ids of 64 bits",
            "in traceparent they are filled with zeros, which samplers by trace id take for another number",
            "trace_id_128bit: true",
        )  # fmt: skip
    if listener.shared_spans:
        yield Finding(
            "note", "zipkin.shared-spans", proxy.where_of(listener), "its SERVER span has the span id of its client",
            "two spans with one id: OpenTelemetry backends show one of them, or both at a wrong place",
            "shared_span_context: false, as Istio has it",
        )  # fmt: skip


def _check_log(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if not listener.logs_traceparent:
        missing = (
            "it writes no access log"
            if listener.logs_traceparent is None
            else "its access log does not print traceparent"
        )
        yield Finding(
            "note", "access-log.not-logged", proxy.where_of(listener), missing,
            "where a trace ends cannot be seen afterwards",
            "`meshmw mesh-config envoy` or `istio` prints a format that does",
        )  # fmt: skip


def _check_proxy_collector(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if listener.collector and listener.collector in proxy.failing:
        yield Finding(
            "error", "exporter.proxy-unreachable", proxy.where_of(listener),
            f"its collector, {listener.collector}, refuses connections",
            "the proxy's spans are lost; nothing else says so, not even its own log",
            "mend the cluster's address, its port, and whether it needs HTTP/2 (gRPC does)",
        )  # fmt: skip


def _formats_of(facts: ProcessFacts) -> set[str]:
    """Return the formats of a process by a proxy's names; by the settings, where another propagator is in force."""
    names = facts.formats if facts.strict else ()
    formats = {_FORMATS[name] for name in names if name in _FORMATS}
    if not formats and facts.settings is not None:
        formats = {_FORMATS[name] for name in facts.settings.propagators if name in _FORMATS}
    return formats


def _check_formats(facts: ProcessFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    formats = _formats_of(facts)
    if not listener.formats or not formats or formats & set(listener.formats):
        return
    yield Finding(
        "error", "formats.differ", proxy.where_of(listener),
        f"its tracer reads and writes {' and '.join(listener.formats)} alone, the application "
        f"{', '.join(sorted(formats))}",
        "neither reads what the other writes: three traces of one request",
        "USE_B3_WITH_W3C_PROPAGATION for a Zipkin tracer, the OpenTelemetry tracer, or for the application "
        f"MESHMW_PROPAGATORS={'tracecontext' if 'w3c' in listener.formats else 'b3multi'},baggage",
    )  # fmt: skip


def _check_budget(facts: ProcessFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    most_bytes, most_headers = settings.header_budget
    if most_bytes > listener.max_kb * 1024:
        yield Finding(
            "warning", "limits.bytes", proxy.where_of(listener),
            f"it accepts {listener.max_kb} KiB of request headers, the application sends up to "
            f"{most_bytes:,} bytes",
            "a request with much baggage is answered 431, and nothing behind the proxy sees it",
            f"MESHMW_HEADER_BUDGET={listener.max_kb * 1024}/{most_headers}, or a larger max_request_headers_kb",
        )  # fmt: skip
    if most_headers > listener.max_count:
        yield Finding(
            "warning", "limits.count", proxy.where_of(listener),
            f"it accepts {listener.max_count} request headers, the application sends up to {most_headers}",
            "a request with many headers is answered 431, and nothing behind the proxy sees it",
            f"MESHMW_HEADER_BUDGET={most_bytes}/{listener.max_count}, or a larger max_headers_count",
        )  # fmt: skip


def _check_request_id(facts: ProcessFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None or "x-request-id" in settings.passthrough_headers:
        return
    if listener.tracer and listener.uses_request_id and listener.random_sampling < 100:
        yield Finding(
            "warning", "request-id.not-passed-on", proxy.where_of(listener),
            "it samples by x-request-id, which the application does not pass on",
            "each hop throws its own dice", "MESHMW_PASSTHROUGH_HEADERS=x-request-id",
        )  # fmt: skip


def _check_rates(facts: ProcessFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None or settings.sampling_ratio is None or not listener.tracer:
        return
    percent = settings.sampling_ratio * 100
    if settings.sampling_owner == "parent" and listener.direction != "OUTBOUND" and percent != listener.random_sampling:
        yield Finding(
            "note", "sampling.rates-differ", proxy.where_of(listener),
            f"the proxy starts {listener.random_sampling:g} % of traces sampled, the application {percent:g} %",
            "behind this proxy every request has a parent, so the application's ratio decides nothing",
            "set the rate at the proxy, or MESHMW_SAMPLING_OWNER=service to let the application decide",
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
_PROXY_CHECKS: Final[tuple[Callable[[ProxyConfig, ProxyListener], Iterator[Finding]], ...]] = (
    _check_tracer,
    _check_sampling,
    _check_removal,
    _check_zipkin,
    _check_log,
    _check_proxy_collector,
)
_CHECKS_OF_BOTH: Final[tuple[Callable[[ProcessFacts, ProxyConfig, ProxyListener], Iterator[Finding]], ...]] = (
    _check_formats,
    _check_budget,
    _check_request_id,
    _check_rates,
)
