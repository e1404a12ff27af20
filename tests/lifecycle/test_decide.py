"""Whose span serves a request, as a table: every combination of what is current, what was read, and what is wanted."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

from meshmw import MeshPropagator, Trust
from meshmw._context.extraction import READ_KEY, Extraction
from meshmw._lifecycle.decide import CLAIM_KEY, REJECTED, Decision, context_below, decide
from meshmw._otel import SPAN_KEY
from meshmw._policy.words import ServerSpans

TRACER = TracerProvider().get_tracer("host")
CALLER = SpanContext(0xA1, 0xB1, True, TraceFlags(1))
STRANGER = SpanContext(0xA2, 0xB2, True, TraceFlags(1))
PROPAGATOR = MeshPropagator()

SAYS = {
    "a parent": Extraction(CALLER, {}, None, {}, {}, (), None),
    "baggage alone": Extraction(None, {"a": "1"}, None, {}, {}, (), None),
    "nothing": Extraction(None, {}, None, {}, {}, (), None),
    "a refused parent": Extraction(None, {}, None, {}, {}, (("traceparent", "hex"),), STRANGER),
}
# What a host that has read the same headers was told to believe.
HOSTS = ["has not read", "was told the same", "was told otherwise"]
AMBIENTS = [
    "no context",
    "no span",
    "remote",
    "claimed",
    "server below the caller",
    "server below a stranger",
    "server root",
    "internal below the caller",
    "marked",
    "marked, elsewhere",
    "server, read by ours",
    "internal, read by ours",
]


@dataclass
class Around:
    context: Context
    span: Span | None
    marked: Span | None = None


def around(ambient: str, read: Extraction) -> Around:
    if ambient == "no context":
        return Around(Context(), None)
    if ambient == "no span":
        return Around(Context({"key": 1}), None)
    if ambient == "remote":
        span: Span = NonRecordingSpan(CALLER)
        return Around(Context({SPAN_KEY: span}), span)
    parent = {"caller": CALLER, "stranger": STRANGER}.get(ambient.rpartition(" ")[2])
    if ambient == "marked" and read.span_context is not None:
        parent = read.span_context
    elif ambient == "marked, elsewhere":
        parent = STRANGER
    below = trace.set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
    kind = SpanKind.INTERNAL if ambient.startswith("internal") else SpanKind.SERVER
    span = TRACER.start_span("host", below, kind)
    entries: dict[str, object] = {SPAN_KEY: span}
    if ambient == "claimed":
        entries[CLAIM_KEY] = span
    if ambient.endswith("read by ours"):
        entries[READ_KEY] = read
    return Around(Context(entries), span, span if ambient.startswith("marked") else None)


def is_the_hosts(ambient: str, says: str) -> bool:
    """Say, from law 3, whether a host has opened the ambient span for this very request."""
    names_a_parent, says_something = says == "a parent", says in ("a parent", "baggage alone", "a refused parent")
    return {
        "server below the caller": names_a_parent,
        # Our propagator is not the global one here: a host with another one has read no parent, as we have.
        "server root": not names_a_parent,
        "marked": True,
        "marked, elsewhere": not names_a_parent,
        "server, read by ours": True,
        "internal, read by ours": says_something,
    }.get(ambient, False)


@pytest.mark.parametrize(("ambient", "says"), list(itertools.product(AMBIENTS, SAYS)))
def test_every_combination_is_decided_as_the_table_says(ambient, says):
    for host, trust, spans in itertools.product(HOSTS, get_args(Trust), get_args(ServerSpans)):
        if ambient.endswith("read by ours") and host == "has not read" and trust != "continue":
            continue  # whoever has made our reading current has read
        read = SAYS[says]._replace()
        trusted = read if trust == "continue" else read.trusted(trust)
        found = around(ambient, trusted)
        has_span = found.span is not None
        other = read._replace(passthrough={"x-request-id": "other"})
        host_read = {"has not read": None, "was told the same": trusted._replace(), "was told otherwise": other}[host]
        if host == "was told the same" and READ_KEY in found.context:
            found.context = Context({**found.context, READ_KEY: host_read})
        decision = decide(read, trust, found.context, PROPAGATOR, host_read, found.marked, spans)
        case = (ambient, says, host, trust, spans, decision)

        whose = {"auto": "ours", "off": "nobody", "contrib": "contrib"}[spans]
        if has_span and host == "was told otherwise":
            assert decision[1:] == (whose, None, SpanKind.INTERNAL, "host_trust"), case
            assert decision.extraction == trusted, case
        elif has_span and is_the_hosts(ambient, _as_said(trusted)):
            assert decision[1:4] == ("host", found.span, SpanKind.SERVER), case
            assert decision.notice is None, case
        else:
            is_parent = ambient == "remote" and says == "a parent"
            is_leaked = has_span and not is_parent and found.context.get(READ_KEY) is not decision.extraction
            assert decision[1:] == (whose, None, SpanKind.SERVER, "leaked_span" if is_leaked else None), case
        assert decision.extraction == trusted, case


@pytest.mark.parametrize("trust", ["restart", "ignore"])
def test_a_host_that_reads_by_itself_lends_no_span_below_a_parent_that_is_not_trusted(trust):
    read = SAYS["a parent"]
    found = around("server below the caller", read)
    decision = decide(read, trust, found.context, PROPAGATOR, None, found.span)
    assert decision[1:] == ("ours", None, SpanKind.INTERNAL, "host_trust")
    assert decision.extraction == read.trusted(trust)


def _as_said(extraction: Extraction) -> str:
    """Return which of `SAYS` remains of what was read, where the sender is trusted less."""
    if extraction.span_context is not None:
        return "a parent"
    if extraction.baggage:
        return "baggage alone"
    return "a refused parent" if extraction.refused else "nothing"


def test_a_span_of_ours_links_to_the_parent_that_is_not_trusted():
    (link,) = Decision(SAYS["a refused parent"], "ours").links
    assert (link.context, dict(link.attributes)) == (STRANGER, REJECTED)
    assert Decision(SAYS["a parent"], "ours").links is None


def test_a_host_that_read_the_same_lends_its_very_reading():
    """By the object, and not by what it says, a later host is known to be this request's."""
    read = SAYS["a parent"]
    host_read = read._replace()
    span = TRACER.start_span("host")
    decision = decide(read, "continue", Context({SPAN_KEY: span, READ_KEY: host_read}), PROPAGATOR, host_read)
    assert decision.extraction is host_read
    assert decision.whose == "host"


def test_where_our_propagator_is_the_global_one_a_root_span_is_no_proof(monkeypatch):
    """A host that reads with it would have made its reading current."""
    monkeypatch.setattr("meshmw._lifecycle.decide.is_global", lambda _: True)
    span = TRACER.start_span("host", kind=SpanKind.SERVER)
    decision = decide(SAYS["nothing"], "continue", Context({SPAN_KEY: span}), PROPAGATOR)
    assert (decision.whose, decision.notice) == ("ours", "leaked_span")


def test_below_a_host_stays_its_context_and_below_ours_nothing_of_another_request():
    read = SAYS["baggage alone"]
    mine, foreign = Context({READ_KEY: read, "key": 1}), Context({READ_KEY: SAYS["nothing"], "key": 1})
    assert context_below(Decision(read, "host"), mine) is mine
    for whose in ("host", "ours"):
        below = context_below(Decision(read, whose), foreign)
        assert below["key"] == 1
        assert READ_KEY not in below
