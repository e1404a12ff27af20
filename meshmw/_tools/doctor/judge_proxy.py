"""What is wrong with a proxy, and between a proxy and a process, as findings.

The rules were measured on Envoy 1.36 to 1.40; `tests/tools/test_doctor_oracle.py` holds them against a real one. To add
a rule, write a function that yields findings and list it at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from meshmw._notices import escaped
from meshmw._tools import SEVERITIES, Finding, Severity
from meshmw._tools.doctor.filters import FOREIGN_HEADERS
from meshmw._tools.doctor.headers import Effect, HeaderChange
from meshmw._tools.doctor.process import ProcessFacts
from meshmw._tools.doctor.proxy import ProxyConfig, ProxyListener
from meshmw._tools.doctor.tracers import share_a_format
from meshmw._tools.doctor.versions import OLDEST, Product, is_too_old, lacking
from meshmw.wire.headers import B3_HEADERS

# Since this version a proxy clears the flag of a sampled parent at its own rate.
_CLEARS_FLAGS: Final = (1, 39)
# Samplers of Envoy's OpenTelemetry tracer that are known here.
_SAMPLERS: Final = ("", "parent_based")
# These ask nobody; the second one keeps all here, for less is another finding.
_SAMPLES_ALL: Final = ("always_on", "trace_id_ratio_based")
_KEEP_FLAG: Final = (
    "Istio's Telemetry: randomSamplingPercentage: 100, or useRequestIdForTraceSampling: false; Contour: "
    'overallSampling: "100"; Envoy: 100 in both, or use_request_id_for_trace_sampling: false in the request id '
    "extension"
)
# What a proxy calls each format that meshmw knows.
_FORMATS: Final = {"tracecontext": "w3c", "b3": "b3", "b3multi": "b3"}
# Codes that begin so say what cannot be judged.
UNJUDGED: Final = "unjudged."
_WHOLE_DUMP: Final = "give the whole /config_dump, without ?resource= and ?mask=; or ask the proxy with --envoy-admin"


def judge_proxy(proxy: ProxyConfig) -> Iterator[Finding]:
    """Yield what is wrong with a proxy by itself."""
    yield from _check_parts(proxy)
    yield from _check_versions(proxy)
    for listener in proxy.listeners:
        for check in _PROXY_CHECKS:
            yield from check(proxy, listener)
    if not share_a_format([listener.formats for listener in proxy.listeners if listener.formats]):
        yield Finding(
            "warning", "proxy.mixed-formats", proxy.where, "its listeners read and write different formats",
            "a trace that comes in by one format goes out by another",
            "give all listeners one tracer: OpenTelemetry's, or Zipkin's with USE_B3_WITH_W3C_PROPAGATION",
        )  # fmt: skip


def _check_parts(proxy: ProxyConfig) -> Iterator[Finding]:
    for name, details in proxy.refused:
        yield Finding(
            "error", "proxy.refused-listener", f"{proxy.node or proxy.where} {name}",
            f"it refused this listener: {escaped(details, 300)}",
            "what it does is what it had before, or nothing at all; the control plane says so in its log alone",
            "mend what it names; an unknown cluster is often the collector's, whose namespace a Sidecar's egress.hosts "
            "leaves out",
        )  # fmt: skip
    if "listeners" in proxy.missing:
        yield Finding(
            "warning", "unjudged.listeners", proxy.where,
            "listeners that it gets from elsewhere are not in this configuration",
            "whether they trace, and what they do with trace headers, cannot be judged", _WHOLE_DUMP,
        )  # fmt: skip
    elif not proxy.listeners and not proxy.refused:
        yield Finding(
            "warning", "proxy.no-http", proxy.where, "it has no HTTP listener",
            "it forwards bytes: it neither reads nor writes trace headers, and makes no spans",
            "ask the proxy in the way",
        )  # fmt: skip
    if "clusters" in proxy.missing:
        yield Finding(
            "note", "unjudged.clusters", proxy.where, "its clusters are not in this configuration",
            "filters of a cluster may change what the tracer has written", _WHOLE_DUMP,
        )  # fmt: skip


def _check_versions(proxy: ProxyConfig) -> Iterator[Finding]:
    # An Istio that says its version has the Envoy of that version.
    product: Product = "Istio" if proxy.istio else "Envoy"
    version = proxy.istio or proxy.version
    if not version or not (lacks := lacking(product, version)):
        return
    old = is_too_old(product, version)
    oldest = ".".join(map(str, OLDEST[product]))
    yield Finding(
        "warning" if old else "note", "proxy.too-old" if old else "proxy.lacks", proxy.where,
        f"it is {product} {'.'.join(map(str, version))}, and lacks {', '.join(lacks)}",
        f"meshmw is for {product} {oldest} and later" if old else "a fix below may need a newer one",
        f"update it{'' if old else ' where a fix needs it'}; where its tracer knows B3 alone, "
        "MESHMW_PROPAGATORS=b3multi,tracecontext,baggage",
    )  # fmt: skip


def judge_both(facts: ProcessFacts, proxy: ProxyConfig) -> Iterator[Finding]:
    """Yield what does not fit between a process and its proxy."""
    for listener in proxy.listeners:
        for check in _CHECKS_OF_BOTH:
            yield from check(facts, proxy, listener)


def _check_tracer(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    where = proxy.where_of(listener)
    if listener.missing:
        yield Finding(
            "warning", "unjudged.tracer", where,
            "it traces by the bootstrap's tracer, which is not in this configuration",
            "which headers it reads and writes cannot be judged", _WHOLE_DUMP,
        )  # fmt: skip
    elif not listener.tracer:
        touched = listener.changes or listener.unjudged or listener.missing_routes
        yield Finding(
            "note", "proxy.no-tracing", where,
            "it traces nothing" if touched else "it traces nothing, and passes trace headers on untouched",
            "it is missing in every trace, which by itself breaks none",
            "Istio's Telemetry, or tracing in the connection manager",
        )  # fmt: skip
    elif not {"w3c", "b3"} & set(listener.formats):
        yield Finding(
            "warning", "proxy.other-tracer", where,
            f"its tracer is {listener.tracer}, whose headers are not W3C's nor B3",
            "its spans are in traces of their own", "use the OpenTelemetry tracer",
        )  # fmt: skip
    if listener.writes_nothing:
        yield Finding(
            "warning", "proxy.injects-nothing", where,
            "no_context_propagation is set (disableContextPropagation)",
            "it exports spans and sends no headers of its own: what lies behind it hangs beside its spans, not below",
            "take it away",
        )  # fmt: skip


def _check_unjudged(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    where = proxy.where_of(listener)
    if listener.missing_routes:
        yield Finding(
            "warning", "unjudged.routes", where,
            f"its routes are not in this configuration: {_some(listener.missing_routes)}",
            "routes can remove and overwrite trace headers, and sample less", _WHOLE_DUMP,
        )  # fmt: skip
    for severity, places in _by_suspicion(listener.unjudged):
        yield Finding(
            severity, "unjudged.filter", where,
            f"whether it changes trace headers is not in its configuration: {_some(places)}",
            "what runs code or asks another service can remove and overwrite any header",
            "look into it, or send a request through it: `meshmw verify URL` names the place where a trace ends",
        )  # fmt: skip


def _by_suspicion(places: Sequence[str]) -> Iterator[tuple[Severity, Sequence[str]]]:
    named = [place for place in places if ", which " in place]
    if named:
        yield "warning", named
    if others := [place for place in places if place not in named]:
        yield "note", others


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return f"{', '.join(texts[:3])}{more}"


# For each effect: the code, what is done, why that breaks traces, and what to do.
_CHANGES: Final[Mapping[Effect, tuple[str, str, str, str]]] = {
    "removed": (
        "headers.removed", "removed", "what lies behind it never sees the caller's headers", "take it away",
    ),
    "restarted": (
        "headers.removed-early", "removed before its tracer looks",
        "the caller's trace ends here, and another one begins", "take it away",
    ),
    "overwritten": (
        "headers.overwritten", "overwritten",
        "the caller's trace ends here, and all requests seem to belong to one", "take it away",
    ),
    "doubled": (
        "headers.doubled", "added beside the caller's",
        "two lines are malformed: applications take the first, the last, or none", "take it away",
    ),
    "added": (
        "headers.added", "added where it is missing",
        "all requests without a trace seem to belong to one", "take it away: who starts a trace makes a new id",
    ),
    "in vain": (
        "headers.removed-in-vain", "removed or set",
        "its tracer writes it again afterwards: the trace goes on, the change does nothing",
        "take it away, or remove early at an edge that must not believe strangers",
    ),
}  # fmt: skip


def _check_changes(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    groups: dict[tuple[Effect, str], list[HeaderChange]] = {}
    for change in listener.changes:
        if change.header == "x-request-id":
            yield _of_request_id(proxy.where_of(listener), change)
        else:
            groups.setdefault((change.effect, change.place), []).append(change)
    for (effect, place), changes in groups.items():
        code, done, why, fix = _CHANGES[effect]
        headers = ", ".join(change.header for change in changes)
        severity = min((_weight(change, listener) for change in changes), key=SEVERITIES.index)
        yield Finding(severity, code, proxy.where_of(listener), f"{headers} {done}: {place}", why, fix)


def _of_request_id(where: str, change: HeaderChange) -> Finding:
    code = "request-id.removed" if change.effect == "removed" else "request-id.changed"
    return Finding(
        "warning", code, where, f"x-request-id {_CHANGES[change.effect][1]}: {change.place}",
        "each hop behind it decides anew what is sampled, and logs cannot be joined", "leave the header alone",
    )  # fmt: skip


def _weight(change: HeaderChange, listener: ProxyListener) -> Severity:
    # A tracer that is not there may write it again.
    if change.effect == "in vain" or listener.missing:
        return "note"
    if change.header == "traceparent":
        return "error"
    # To remove what neither this tracer nor a W3C application uses is to tidy up.
    if change.header in FOREIGN_HEADERS and change.header not in listener.reads:
        return "note"
    if change.header in B3_HEADERS:
        return "note" if listener.formats and "b3" not in listener.formats else "error"
    return "warning"


def _check_redirects(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if listener.redirects and _clears_flags(proxy, listener):
        yield Finding(
            "warning", "sampling.proxy-clears-the-flag", proxy.where_of(listener),
            f"it follows redirects itself, and clears the sampled flag when it does: {_some(listener.redirects)}",
            "what lies behind a redirect is unsampled, at whatever rate", "let callers follow redirects themselves",
        )  # fmt: skip


def _clears_flags(proxy: ProxyConfig, listener: ProxyListener) -> bool:
    return listener.tracer == "opentelemetry" and (not proxy.version or proxy.version >= _CLEARS_FLAGS)


def _check_sampler(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if listener.sampler_rate < 100:
        yield Finding(
            "warning", "sampling.proxy-clears-the-flag", proxy.where_of(listener),
            f"its sampler, {listener.sampler}, keeps {listener.sampler_rate:g} % of traces by their ids, and clears "
            "the sampled flag of the others, whatever their caller decided",
            "a trace that the caller records ends here: everything behind it is unsampled",
            "put it into Envoy's parent_based sampler, as its wrapped_sampler",
        )  # fmt: skip
    elif listener.sampler in _SAMPLES_ALL:
        yield Finding(
            "note", "sampling.proxy-sets-the-flag", proxy.where_of(listener),
            f"its sampler, {listener.sampler}, samples each request that it is asked of, whatever its caller decided",
            "a trace that the caller leaves unsampled begins here, and what lies before it is missing",
            "put it into Envoy's parent_based sampler, as its wrapped_sampler",
        )  # fmt: skip
    elif listener.sampler not in _SAMPLERS:
        yield Finding(
            "note", "unjudged.sampler", proxy.where_of(listener),
            f"its sampler is {listener.sampler}, and decides by itself",
            "whether it keeps the caller's sampled flag cannot be judged",
            "put it into Envoy's parent_based sampler, as its wrapped_sampler",
        )  # fmt: skip


def _check_sampling(proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    if not listener.tracer or not listener.uses_request_id:
        return
    clears = _clears_flags(proxy, listener)
    low = [(place, rate) for place, rate in listener.rates or (("", listener.random_sampling),) if rate < 100]
    if low and clears:
        rate = min(rate for _, rate in low)
        places = [place for place, _ in low if place]
        yield Finding(
            "warning", "sampling.proxy-clears-the-flag", proxy.where_of(listener),
            f"the smaller one of random_sampling and overall_sampling{f' of {_some(places)}' if places else ''} is "
            f"{rate:g} %, and Envoy since 1.39 clears the sampled flag of {_the_others(rate)}, whatever their caller "
            "decided",
            "a trace that the caller records ends here: everything behind it is unsampled", _KEEP_FLAG,
        )  # fmt: skip
    if not listener.makes_request_id:
        yield Finding(
            "error" if clears else "warning", "request-id.not-made", proxy.where_of(listener),
            "it makes no x-request-id, and samples by it",
            "a request without one, or with one that is no UUID, is never sampled",
            "generate_request_id: true, or use_request_id_for_trace_sampling: false",
        )  # fmt: skip


def _the_others(percent: float) -> str:
    return f"the other {100 - percent:g} % of requests" if percent > 0 else "every request"


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
    if listener.exports_nothing:
        yield Finding(
            "warning", "exporter.proxy-none", proxy.where_of(listener),
            "its tracer has no collector: neither grpc_service nor http_service is there",
            "it writes headers, and its own spans go nowhere: what lies behind hangs below spans that never come; "
            "Envoy 1.40 refuses such a configuration",
            "name the collector's cluster in grpc_service or http_service",
        )  # fmt: skip
    if listener.collector and listener.collector in proxy.failing:
        yield Finding(
            "error", "exporter.proxy-unreachable", proxy.where_of(listener),
            f"its collector, {listener.collector}, refuses connections",
            "the proxy's spans are lost; nothing else says so, not even its own log",
            "mend the cluster's address, its port, and whether it needs HTTP/2 (gRPC does)",
        )  # fmt: skip
    if listener.collector in proxy.unknown:
        yield Finding(
            "error", "exporter.proxy-no-cluster", proxy.where_of(listener),
            f"its tracer sends to the cluster {listener.collector}, which this proxy does not have",
            "the proxy's spans are lost; nothing else says so",
            "in Istio, a Sidecar object's egress.hosts must have the collector's namespace; elsewhere, add the "
            "cluster; where the control plane has it, the proxy refused it, and its log says `config rejected`",
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


_PROXY_CHECKS: Final[tuple[Callable[[ProxyConfig, ProxyListener], Iterator[Finding]], ...]] = (
    _check_tracer,
    _check_unjudged,
    _check_changes,
    _check_sampler,
    _check_sampling,
    _check_redirects,
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
