"""What does not fit between a process and its proxy, as findings.

Knows what both have. Must not know how that was found out, nor what is wrong with either by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from meshmw.diagnose.finding import Finding
from meshmw.diagnose.process_facts import AppFacts
from meshmw.diagnose.proxy_config import ProxyConfig, ProxyListener

_APP_FORMATS: Final = {"tracecontext": "w3c", "b3": "b3", "b3multi": "b3"}


def judge_both(facts: AppFacts, proxy: ProxyConfig) -> Iterator[Finding]:
    """Yield what does not fit between a process and its proxy."""
    formats = {_APP_FORMATS[name] for name in facts.formats if name in _APP_FORMATS} if facts.strict else set()
    if not formats and facts.settings is not None:
        formats = {_APP_FORMATS[name] for name in facts.settings.propagators if name in _APP_FORMATS}
    for listener in proxy.listeners:
        yield from _formats(facts, proxy, listener, formats)
        yield from _budget(facts, proxy, listener)
        yield from _request_id(facts, proxy, listener)
        yield from _rates(facts, proxy, listener)


def _formats(facts: AppFacts, proxy: ProxyConfig, listener: ProxyListener, formats: set[str]) -> Iterator[Finding]:
    if not listener.formats or not formats or formats & set(listener.formats) == set(listener.formats):
        return
    names = ", ".join(sorted(formats))
    if not formats & set(listener.formats):
        yield Finding(
            "error", "formats.differ", proxy.where_of(listener),
            f"its tracer reads and writes {' and '.join(listener.formats)} alone, the application {names}",
            "neither reads what the other writes: three traces of one request",
            "USE_B3_WITH_W3C_PROPAGATION for a Zipkin tracer, the OpenTelemetry tracer, or for the application "
            f"MESHMW_PROPAGATORS={'tracecontext' if 'w3c' in listener.formats else 'b3multi'},baggage",
        )  # fmt: skip


def _budget(facts: AppFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None:
        return
    if settings.header_budget_bytes > listener.max_kb * 1024:
        yield Finding(
            "warning", "limits.bytes", proxy.where_of(listener),
            f"it accepts {listener.max_kb} KiB of request headers, the application sends up to "
            f"{settings.header_budget_bytes:,} bytes",
            "a request with much baggage is answered 431, and nothing behind the proxy sees it",
            f"MESHMW_HEADER_BUDGET_BYTES={listener.max_kb * 1024}, or a larger max_request_headers_kb",
        )  # fmt: skip
    if settings.header_budget_count > listener.max_count:
        yield Finding(
            "warning", "limits.count", proxy.where_of(listener),
            f"it accepts {listener.max_count} request headers, the application sends up to "
            f"{settings.header_budget_count}",
            "a request with many headers is answered 431, and nothing behind the proxy sees it",
            f"MESHMW_HEADER_BUDGET_COUNT={listener.max_count}, or a larger max_headers_count",
        )  # fmt: skip


def _request_id(facts: AppFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
    settings = facts.settings
    if settings is None or "x-request-id" in settings.passthrough_headers:
        return
    if listener.tracer and listener.uses_request_id and listener.random_sampling < 100:
        yield Finding(
            "warning", "request-id.not-passed-on", proxy.where_of(listener),
            "it samples by x-request-id, which the application does not pass on",
            "each hop throws its own dice", "MESHMW_PASSTHROUGH_HEADERS=x-request-id",
        )  # fmt: skip


def _rates(facts: AppFacts, proxy: ProxyConfig, listener: ProxyListener) -> Iterator[Finding]:
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
