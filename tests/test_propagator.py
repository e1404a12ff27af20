"""MeshPropagator: what a carrier says, and what a context sends."""

import email.message
import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import grpc.aio
import pytest
import starlette.datastructures
import werkzeug.datastructures
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.propagators.textmap import Getter, Setter, default_setter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from meshmw import MeshPropagator, Settings
from meshmw._context.extraction import READ_KEY
from meshmw._otel import W3CTraceState
from meshmw._policy.words import FORMATS
from meshmw._telemetry.provider import build_provider
from meshmw.wire import TraceState as WireTraceState
from meshmw.wire.headers import B3_HEADERS

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"
LOCAL = SpanContext(int(TRACE_ID, 16), 7, False, TraceFlags(1))


@pytest.fixture
def propagator():
    return MeshPropagator(FORMATS)


def parent_of(context):
    return trace.get_current_span(context).get_span_context()


def current(span_context=LOCAL, **of_baggage):
    context = trace.set_span_in_context(NonRecordingSpan(span_context), Context())
    for key, value in of_baggage.items():
        context = baggage.set_baggage(key, value, context)
    return context


def injected(propagator, context, carrier=None):
    carrier = {} if carrier is None else carrier
    propagator.inject(carrier, context)
    return carrier


# Misuse by the programmer raises.


def test_an_unknown_format_raises():
    with pytest.raises(ValueError, match="propagators takes tracecontext, baggage, b3 or b3multi, not 'jaeger'"):
        MeshPropagator(["tracecontext", "jaeger"])


@pytest.mark.parametrize("name", ["traceparent", "TraceState", "b3", "X-B3-Flags", "baggage"])
def test_a_trace_header_cannot_be_passed_through_unchecked(name):
    with pytest.raises(ValueError, match=name.lower()):
        MeshPropagator(passthrough_headers=["x-request-id", name])


def test_a_carrier_that_is_none_raises(propagator):
    with pytest.raises(AttributeError):
        propagator.extract(None)


# Extract.


@pytest.mark.parametrize(
    "text", ["", "junk", VALID.upper(), VALID + "-", "\x00", "\ud800", "\u2028", b"junk", ["junk"], [VALID, VALID], 7]
)
def test_a_refused_traceparent_leaves_the_context_without_a_parent(propagator, text):
    context = propagator.extract({"traceparent": text, "tracestate": "a=1"})
    assert not parent_of(context).is_valid
    assert [header for header, _ in propagator.rejections.counts] == ["traceparent"]


def test_nothing_in_the_carrier_leaves_the_base_as_it_is(propagator):
    base = current()
    assert parent_of(propagator.extract({}, base)) is LOCAL
    assert parent_of(propagator.extract({"traceparent": "junk"}, base)) is LOCAL
    assert propagator.extract({}, base).items() >= base.items()
    assert not parent_of(propagator.extract({})).is_valid


def test_without_a_base_nothing_of_the_current_context_is_taken(propagator):
    token = attach(current(stale="1"))
    try:
        context = propagator.extract({})
        assert not parent_of(context).is_valid
        assert not baggage.get_all(context)
    finally:
        detach(token)


@pytest.mark.parametrize("value", [VALID, VALID.encode(), [VALID], (VALID.encode(),)])
@pytest.mark.parametrize("name", ["traceparent", "Traceparent", "TRACEPARENT"])
def test_a_mapping_may_spell_a_header_as_it_likes(propagator, name, value):
    assert parent_of(propagator.extract({name: value, "TraceState": "a=1"})).trace_state.get("a") == "1"


def test_two_spellings_of_one_header_are_two_lines(propagator):
    assert not parent_of(propagator.extract({"traceparent": VALID, "Traceparent": VALID})).is_valid
    assert propagator.rejections.counts == {("traceparent", "duplicate"): 1}
    context = propagator.extract({"baggage": "a=1", "Baggage": "b=2"})
    assert dict(baggage.get_all(context)) == {"a": "1", "b": "2"}


def test_keys_that_are_no_text_are_passed_over(propagator):
    assert not parent_of(propagator.extract({b"traceparent": VALID, None: "x", 7: "y", "traceparent": None})).is_valid
    assert propagator.rejections.counts == {}


class Pairs(Getter, Setter):
    """A carrier of another shape: a list of pairs."""

    def get(self, carrier, key):
        return [value for name, value in carrier if name == key] or None

    def keys(self, carrier):
        return [name for name, _ in carrier]

    def set(self, carrier, key, value):
        carrier.append((key, value))


def test_any_getter_and_setter_will_do(propagator):
    carrier = []
    propagator.inject(carrier, current(k="v"), setter=Pairs())
    assert dict(carrier).keys() >= {"traceparent", "b3", "baggage"}
    assert parent_of(propagator.extract(carrier, getter=Pairs())).trace_id == LOCAL.trace_id


def test_a_carrier_that_is_no_mapping_and_no_list_gets_the_headers_from_its_setter(propagator):
    class Attributes(Setter):
        def set(self, carrier, key, value):
            setattr(carrier, key, value)

    carrier = SimpleNamespace()
    propagator.inject(carrier, current(k="v"), setter=Attributes())
    assert vars(carrier).keys() >= {"traceparent", "b3", "baggage"}


def test_a_getter_that_cannot_decode_a_header_hurts_nobody(propagator):
    class Strict(Pairs):
        def get(self, carrier, key):
            values = super().get(carrier, key)
            return None if values is None else [value.decode("ascii") for value in values]

    context = propagator.extract([("traceparent", b"\xff"), ("baggage", b"a=1")], getter=Strict())
    assert not parent_of(context).is_valid
    assert baggage.get_all(context) == {"a": "1"}
    assert propagator.rejections.counts[("traceparent", "control")] == 1


def test_a_getter_with_a_fault_of_its_own_raises(propagator):
    class Faulty(Pairs):
        def get(self, carrier, key):
            raise LookupError(key)

    with pytest.raises(LookupError):
        propagator.extract([], getter=Faulty())


# W3C and B3 (law 7).

OTHER_B3 = {"b3": f"{'1' * 32}-{'2' * 16}-1"}
OTHER_MULTI = {"x-b3-traceid": "1" * 32, "x-b3-spanid": "2" * 16, "x-b3-sampled": "1"}


@pytest.mark.parametrize("formats", [("b3", "tracecontext"), ("tracecontext", "b3"), ("b3multi", "b3", "tracecontext")])
@pytest.mark.parametrize("b3", [OTHER_B3, OTHER_MULTI, OTHER_B3 | OTHER_MULTI])
def test_w3c_beats_b3_in_every_order_and_the_conflict_is_said(caplog, formats, b3):
    propagator = MeshPropagator(formats)
    context = propagator.extract({**b3, "traceparent": VALID, "tracestate": "a=1"})
    assert f"{parent_of(context).trace_id:032x}" == TRACE_ID
    assert parent_of(context).trace_state.get("a") == "1"
    assert propagator.rejections.counts == {("b3", "conflict"): 1}
    assert "b3 refused (conflict)" in caplog.text


def test_b3_that_agrees_is_no_conflict(propagator):
    context = propagator.extract({"traceparent": VALID, "b3": f"{TRACE_ID}-{PARENT_ID}-1"})
    assert f"{parent_of(context).span_id:016x}" == PARENT_ID
    assert propagator.rejections.counts == {}


def test_a_decision_of_b3_alone_is_no_conflict(propagator):
    context = propagator.extract({"traceparent": VALID, "b3": "0"})
    assert parent_of(context).trace_flags.sampled
    assert propagator.rejections.counts == {}


def test_the_debug_flag_of_b3_goes_on_beside_w3c(propagator):
    context = propagator.extract({"traceparent": VALID, "b3": f"{TRACE_ID}-{PARENT_ID}-d"})
    assert injected(propagator, context)["x-b3-flags"] == "1"
    assert injected(propagator, context)["b3"].endswith("-d")


def test_an_invalid_b3_never_hides_a_valid_form(propagator):
    context = propagator.extract({"b3": "junk", **OTHER_MULTI})
    assert parent_of(context).trace_id == int("1" * 32, 16)
    context = propagator.extract({**OTHER_B3, "x-b3-traceid": "junk"})
    assert parent_of(context).trace_id == int("1" * 32, 16)
    assert propagator.rejections.counts == {("b3", "sampled"): 1, ("b3", "incomplete"): 1}


IDS = f"{TRACE_ID}-{PARENT_ID}"
MULTI = {"x-b3-traceid": TRACE_ID, "x-b3-spanid": PARENT_ID}
# Junk beside good ids: the headers, what remains of them, the reason, the state, what the warning shows.
JUNK = {
    "flags": (MULTI | {"x-b3-flags": "debug"}, MULTI, "flags", "", "'debug'"),
    "flags beside a state": (
        MULTI | {"x-b3-flags": "-1", "x-b3-sampled": "1"},
        MULTI | {"x-b3-sampled": "1"},
        "flags",
        "1",
        "'-1'",
    ),
    "sampled": (MULTI | {"x-b3-sampled": "yes"}, MULTI, "sampled", "", "'yes'"),
    "sampled as of the single header": (MULTI | {"x-b3-sampled": "d"}, MULTI, "sampled", "", "'d'"),
    "sampled twice": (MULTI | {"x-b3-sampled": ["1", "1"]}, MULTI, "sampled", "", "'1,1'"),
    "sampled of 64 KiB": (MULTI | {"x-b3-sampled": "true" * 16_384}, MULTI, "sampled", "", "'truetrue"),
    "sampled beside debug": (
        MULTI | {"x-b3-sampled": "no", "x-b3-flags": "1"},
        MULTI | {"x-b3-flags": "1"},
        "sampled",
        "d",
        "'no'",
    ),
    "parent": (MULTI | {"x-b3-parentspanid": "xyz"}, MULTI, "hex", "", "'xyz'"),
    "parent too short": (MULTI | {"x-b3-parentspanid": "1"}, MULTI, "length", "", "'1'"),
    "parent with a control character": (MULTI | {"x-b3-parentspanid": "1\x01"}, MULTI, "control", "", "'1\\x01'"),
    "a fourth field": ({"b3": f"{IDS}-1-xyz"}, {"b3": f"{IDS}-1"}, "hex", "1", "'xyz'"),
    "an empty fourth field": ({"b3": f"{IDS}-d-"}, {"b3": f"{IDS}-d"}, "length", "d", "''"),
    "a fifth field": ({"b3": f"{IDS}-0-{'2' * 16}-x"}, {"b3": f"{IDS}-0"}, "length", "0", f"'{'2' * 16}-x'"),
    "a third field": ({"b3": f"{IDS}-yes"}, {"b3": IDS}, "sampled", "", "'yes'"),
    "an empty third field": ({"b3": f"{IDS}-"}, {"b3": IDS}, "sampled", "", "''"),
    "a third field before a parent": ({"b3": f"{IDS}-2-{'2' * 16}"}, {"b3": IDS}, "sampled", "", "'2-2222"),
    "no third field before a parent": ({"b3": f"{IDS}--{'2' * 16}"}, {"b3": IDS}, "sampled", "", "'-2222"),
    "a newline": ({"b3": f"{IDS}-1\n"}, {"b3": IDS}, "control", "", r"'1\n'"),
    "64 KiB": ({"b3": f"{IDS}-1-{'-' * 65_536}"}, {"b3": f"{IDS}-1"}, "length", "1", "'-----"),
    "junk in the form that does not decide": (
        {"b3": f"{IDS}-1", "x-b3-sampled": "yes"},
        {"b3": f"{IDS}-1"},
        "sampled",
        "1",
        "'yes'",
    ),
    "ids in the form that does not decide": (
        {"b3": f"{IDS}-0", "x-b3-traceid": "xyz", "x-b3-spanid": PARENT_ID},
        {"b3": f"{IDS}-0"},
        "length",
        "0",
        "'xyz'",
    ),
    "the single header": ({"b3": "junk"} | MULTI, MULTI, "sampled", "", "'junk'"),
}


def line_of(value):
    return value if isinstance(value, str) else ",".join(value)


@pytest.mark.parametrize(("headers", "rest", "reason", "state", "shown"), JUNK.values(), ids=JUNK)
def test_junk_in_an_optional_header_of_b3_costs_nothing_but_itself(
    propagator, caplog, headers, rest, reason, state, shown
):
    found = propagator.read({name: [value] if isinstance(value, str) else value for name, value in headers.items()})
    assert f"{found.span_context.trace_id:032x}-{found.span_context.span_id:016x}" == IDS
    assert str(found.b3) == "-".join(filter(None, (IDS, state)))
    kept = {name: line_of(value) for name, value in headers.items() if name not in found.rewrites}
    assert kept | {name: text for name, text in found.rewrites.items() if text is not None} == rest
    assert found.refused == (("b3", reason),)
    assert propagator.rejections.counts == {("b3", reason): 1}
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"b3 refused ({reason}): {shown}" in line
    assert TRACE_ID not in line
    assert PARENT_ID not in line
    assert len(line) < 250


def test_what_is_missing_has_no_junk_to_show(propagator, caplog):
    assert propagator.read({"x-b3-traceid": [TRACE_ID], "x-b3-sampled": ["1"]}).span_context is None
    assert "b3 refused (incomplete): - no B3 context is taken" in caplog.text


def test_of_junk_alone_nothing_is_taken(propagator):
    found = propagator.read({"x-b3-flags": ["debug"], "b3": []})
    assert (found.b3, found.refused, found.rewrites["x-b3-flags"]) == (None, (("b3", "flags"),), None)
    assert propagator.read({"b3": []}).refused == ()


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (["a=1,Vendor=2,c=3"], "'Vendor=2'"),
        (["a=1", "b"], "'b'"),
        (["a=1,b=\x01"], r"'\x01'"),
        (["=1"], "'=1'"),
        ([",".join(f"k{n}=1" for n in range(33))], "'k32=1'"),
    ],
)
def test_of_a_bad_tracestate_the_member_is_shown_that_is_junk(propagator, caplog, state, shown):
    found = propagator.read({"traceparent": [VALID], "tracestate": state})
    assert found.span_context.span_id == int(PARENT_ID, 16)
    assert found.rewrites == {"tracestate": None}
    assert f"): {shown} - dropped whole" in caplog.text


# A sampling decision that comes without ids (B3, section "Sampling State").
DECISIONS = {
    "accept": ({"b3": "1"}, True, "1"),
    "deny": ({"b3": "0"}, False, "0"),
    "debug": ({"b3": "d"}, True, "d"),
    "accept, multi": ({"x-b3-sampled": "1"}, True, "1"),
    "deny, multi": ({"x-b3-sampled": "0"}, False, "0"),
    "accept, as older senders spell it": ({"x-b3-sampled": "True"}, True, "1"),
    "deny, as older senders spell it": ({"x-b3-sampled": "false"}, False, "0"),
    "debug, multi": ({"x-b3-flags": "1"}, True, "d"),
    "debug beside deny": ({"x-b3-flags": "1", "x-b3-sampled": "0"}, True, "d"),
    "accept beside flags that say nothing": ({"x-b3-flags": "0", "x-b3-sampled": "1"}, True, "1"),
    "accept beside junk": ({"x-b3-flags": "junk", "x-b3-sampled": "1"}, True, "1"),
}
IN_MULTI = {"1": {"x-b3-sampled": "1"}, "0": {"x-b3-sampled": "0"}, "d": {"x-b3-flags": "1"}}


@pytest.mark.parametrize(("headers", "sampled", "state"), DECISIONS.values(), ids=DECISIONS)
def test_a_decision_without_ids_goes_out_again_as_it_came_in(headers, sampled, state):
    for formats in (["b3"], ["b3multi"], ["tracecontext", "b3"], ["b3", "b3multi", "baggage"]):
        propagator = MeshPropagator(formats)
        context = propagator.extract(headers)
        wanted = ({"b3": state} if "b3" in formats else {}) | (IN_MULTI[state] if "b3multi" in formats else {})
        assert injected(propagator, context) == wanted


@pytest.mark.parametrize(("headers", "sampled", "state"), DECISIONS.values(), ids=DECISIONS)
@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_decision_without_ids_decides_for_the_trace_that_begins_with_it(headers, sampled, state, ratio):
    provider, _ = build_provider(Settings(exporter="none", sampling_ratio=ratio))
    propagator = MeshPropagator(["tracecontext", "b3", "b3multi"])
    context = propagator.extract(headers)
    span = provider.get_tracer("t").start_span("GET", context)
    found = span.get_span_context()
    assert (found.trace_flags.sampled, span.parent if sampled else None) == (sampled, None)
    below = trace.set_span_in_context(span, context)
    out = injected(propagator, below)
    ids = f"{found.trace_id:032x}-{found.span_id:016x}"
    assert (out["b3"], out["traceparent"]) == (f"{ids}-{state}", f"00-{ids}-{out['traceparent'][-2:]}")
    assert int(out["traceparent"][-2:], 16) & 1 == sampled
    assert {name: out.get(name) for name in ("x-b3-sampled", "x-b3-flags") if name in out} == IN_MULTI[state]
    inner = provider.get_tracer("t").start_span("inner", below).get_span_context()
    assert (inner.trace_id, inner.trace_flags.sampled) == (found.trace_id, sampled)


def test_a_decision_without_ids_is_no_decision_where_this_service_owns_it():
    provider, _ = build_provider(Settings(exporter="none", sampling_ratio=0, sampling_owner="service"))
    context = MeshPropagator(["b3"]).extract({"b3": "1"})
    assert not provider.get_tracer("t").start_span("GET", context).get_span_context().trace_flags.sampled


def test_a_decision_without_ids_is_that_of_a_caller_to_a_rule():
    provider, _ = build_provider(Settings(exporter="none", sampling_rules=["/health=0", "/half=0.0001"]))
    context = MeshPropagator(["b3"]).extract({"b3": "1"})
    for path, sampled in (("/health", False), ("/half", True)):
        span = provider.get_tracer("t").start_span("GET", context, trace.SpanKind.SERVER, {"url.path": path})
        assert span.get_span_context().trace_flags.sampled is (sampled if path == "/half" else False)


@pytest.mark.parametrize("trust", ["restart", "ignore"])
def test_the_decision_of_a_stranger_is_none(trust):
    propagator = MeshPropagator(["b3"], trust=trust)
    assert injected(propagator, propagator.extract({"b3": "d"})) == {}


def test_a_decision_of_an_earlier_request_is_none_for_a_parent_that_came_after_it(propagator):
    earlier = propagator.extract({"b3": "d"})
    later = propagator.extract({"traceparent": f"{VALID[:-2]}00"}, earlier)
    assert injected(propagator, later)["b3"] == f"{IDS}-0"


def test_two_b3_lines_are_none(propagator):
    assert not parent_of(propagator.extract({"b3": [OTHER_B3["b3"], OTHER_B3["b3"]]})).is_valid
    assert [header for header, _ in propagator.rejections.counts] == ["b3"]


def test_b3_is_not_read_where_it_is_no_format():
    propagator = MeshPropagator()
    assert not parent_of(propagator.extract({**OTHER_B3, **OTHER_MULTI})).is_valid
    assert propagator.rejections.counts == {}


def test_w3c_is_not_read_where_it_is_no_format():
    propagator = MeshPropagator(["b3"])
    assert not parent_of(propagator.extract({"traceparent": VALID, "baggage": "a=1"})).is_valid
    assert not baggage.get_all(propagator.extract({"baggage": "a=1"}))


def test_a_deferred_decision_of_b3_goes_on_as_deferred(propagator):
    inbound = propagator.extract({"b3": f"{TRACE_ID}-{PARENT_ID}"})
    assert injected(propagator, inbound)["b3"] == f"{TRACE_ID}-{PARENT_ID}"
    assert "x-b3-sampled" not in injected(propagator, inbound)


def test_a_span_of_ours_decides_what_b3_deferred(propagator):
    inbound = propagator.extract({"b3": f"{TRACE_ID}-{PARENT_ID}"})
    decided = trace.set_span_in_context(NonRecordingSpan(LOCAL), inbound)
    assert injected(propagator, decided)["b3"] == f"{TRACE_ID}-{7:016x}-1"


def test_the_debug_flag_does_not_go_over_to_another_trace(propagator):
    inbound = propagator.extract({"b3": f"{TRACE_ID}-{PARENT_ID}-d"})
    other = trace.set_span_in_context(NonRecordingSpan(SpanContext(5, 6, False, TraceFlags(0))), inbound)
    assert injected(propagator, other)["b3"].endswith("-0")


def test_a_64_bit_trace_id_of_b3_is_padded(propagator):
    context = propagator.extract({"b3": f"{'a' * 16}-{PARENT_ID}-1"})
    assert injected(propagator, context)["traceparent"] == f"00-{'0' * 16}{'a' * 16}-{PARENT_ID}-01"


# Inject.


def test_inject_takes_the_current_context(propagator):
    token = attach(current())
    try:
        carrier = {}
        propagator.inject(carrier)
    finally:
        detach(token)
    assert carrier["traceparent"] == f"00-{TRACE_ID}-{7:016x}-01"


def test_a_context_with_nothing_to_send_writes_nothing(propagator):
    assert injected(propagator, Context()) == {}
    assert injected(propagator, trace.set_span_in_context(trace.INVALID_SPAN, Context())) == {}


def test_a_dictionary_with_a_way_of_its_own_to_take_a_header_keeps_it(propagator):
    class Raised(dict):
        def __setitem__(self, name, value):
            super().__setitem__(name.upper(), value)

    carrier = Raised()
    propagator.inject(carrier, propagator.extract({"traceparent": VALID}))
    assert carrier["TRACEPARENT"] == VALID
    assert all(map(str.isupper, carrier))


def test_fields_are_the_headers_that_inject_writes():
    assert MeshPropagator().fields == {"traceparent", "tracestate", "baggage"}
    assert MeshPropagator(["b3multi"]).fields == {"x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags"}
    assert MeshPropagator(["b3"]).fields == {"b3"}


@pytest.mark.parametrize("formats", [["tracecontext"], ["b3"], ["b3multi"]])
def test_every_stale_header_in_every_format_and_case_is_removed(formats):
    propagator = MeshPropagator(formats)
    names = {"traceparent", "tracestate", *B3_HEADERS}
    stale = {variant(name): value for name in names for variant in (str.lower, str.upper, str.title) for value in ["x"]}
    carrier = injected(propagator, current(), {**stale, "x-own": "kept"})
    assert {name for name in carrier if name.lower() in names} <= propagator.fields
    assert "x" not in carrier.values()
    assert carrier["x-own"] == "kept"


def test_baggage_that_the_application_wrote_is_replaced_by_what_the_context_holds_and_by_nothing(propagator):
    assert injected(propagator, current(own="1"), {"Baggage": "stale=1"})["baggage"] == "own=1"
    assert {"baggage", "Baggage"}.isdisjoint(injected(propagator, current(), {"Baggage": "app=1"}))
    assert injected(propagator, Context(), {"Baggage": "app=1"})["Baggage"] == "app=1"


@pytest.mark.parametrize("value", ["junk", b"junk", ["junk"], [VALID, VALID]])
def test_a_malformed_header_on_the_carrier_is_removed_with_its_tracestate(propagator, value):
    assert injected(propagator, Context(), {"Traceparent": value, "tracestate": "a=1", "x": "y"}) == {"x": "y"}


class Appending(Setter):
    """Writes as contrib's setters for messages do."""

    def set(self, carrier, key, value):
        carrier.append((key, value.encode()))


CARRIERS = {
    "werkzeug": (werkzeug.datastructures.Headers, default_setter),
    "starlette": (starlette.datastructures.MutableHeaders, default_setter),
    "email": (lambda lines: message_of(lines), default_setter),
    "metadata of grpc.aio": (lambda lines: grpc.aio.Metadata(*lines.items()), default_setter),
    "bytes": (lambda lines: {name.encode(): value.encode() for name, value in lines.items()}, default_setter),
    "pairs": (lambda lines: [(name, value.encode()) for name, value in lines.items()], Appending()),
    "pairs of bytes": (lambda lines: [[name.encode(), value.encode()] for name, value in lines.items()], Appending()),
}


def message_of(lines):
    message = email.message.Message()
    for name, value in lines.items():
        message[name] = value
        message[name] = value
    return message


def only(value):
    (value,) = value if isinstance(value, list) else [value]
    return value


@pytest.mark.parametrize("name", CARRIERS)
@pytest.mark.parametrize("context", [Context(), current()], ids=["no trace", "a trace"])
def test_stale_headers_are_removed_from_whatever_lets_them(propagator, name, context):
    make, setter = CARRIERS[name]
    stale = {"traceparent": "stale", "tracestate": "stale=1", "b3": "stale", "x-b3-flags": "stale", "own": "1"}
    carrier = make({**stale, "x-meshmw-sent": "stale", "baggage": "=stale"})
    propagator.inject(carrier, context, setter)
    pairs = carrier if isinstance(carrier, list) else carrier.items()
    text = [[each.decode() if isinstance(each, bytes) else each for each in map(only, pair)] for pair in pairs]
    assert dict(text) == {"own": "1", **propagator.write(context)}
    assert "stale" not in str(text)


def test_a_list_holds_whatever_it_likes_beside_pairs(propagator):
    carrier = [7, None, (1, 2), ("traceparent",), ("traceparent", b"stale"), "b3"]
    propagator.inject(carrier, current(), Appending())
    assert [each for each in carrier if not isinstance(each, tuple) or each[0] == 1] == [7, None, (1, 2), "b3"]
    assert ("traceparent", b"stale") not in carrier


def test_a_valid_header_on_the_carrier_stays_where_there_is_nothing_to_send(propagator):
    carrier = {"traceparent": VALID, "tracestate": "a=1", "b3": f"{TRACE_ID}-{PARENT_ID}-1"}
    assert injected(propagator, Context(), dict(carrier)) == carrier


def test_only_known_flags_go_out(propagator):
    carrier = injected(propagator, current(SpanContext(1, 2, False, TraceFlags(0xFF))))
    assert carrier["traceparent"].endswith("-03")


def test_a_foreign_tracestate_goes_out_only_if_it_follows_the_grammar(propagator):
    foreign = TraceState([("a", "1"), ("b", "2")])
    carrier = injected(propagator, current(SpanContext(1, 2, False, TraceFlags(1), foreign)))
    assert carrier["tracestate"] == "a=1,b=2"

    class Broken(TraceState):
        def to_header(self):
            return "Bad Key=1"

    broken = Broken([("a", "1")])
    assert "tracestate" not in injected(propagator, current(SpanContext(1, 2, False, TraceFlags(1), broken)))


@pytest.mark.parametrize("found", ["nonsense", Mock(), MagicMock(), trace.Span, SpanContext(1, 2, False)])
def test_what_is_no_span_or_no_baggage_is_not_sent(propagator, found):
    keys = {**current(), **baggage.set_baggage("a", "1", Context())}
    assert injected(propagator, Context(dict.fromkeys(keys, found))) == {}


def test_unusable_baggage_is_left_out_and_said(propagator, caplog):
    carrier = injected(propagator, current(**{"bad key": "1", "ok": "1"}))
    assert carrier["baggage"] == "ok=1"
    assert propagator.rejections.counts == {("baggage", "key"): 1}
    assert "are not sent" in caplog.text
    assert "baggage" not in injected(propagator, current(**{"bad key": "1"}))


def test_baggage_is_bounded_in_both_directions():
    propagator = MeshPropagator()
    members = {f"k{n}": "v" for n in range(70)}
    assert injected(propagator, current(**members))["baggage"].count("=") == 64
    assert len(baggage.get_all(propagator.extract({"baggage": ",".join(f"{k}=v" for k in members)}))) == 64
    huge = {f"k{n}": "v" * 1000 for n in range(9)}
    text = ",".join(f"{k}={v}" for k, v in huge.items())
    assert len(injected(propagator, current(**huge))["baggage"]) <= 8192
    assert len(baggage.get_all(propagator.extract({"baggage": text}))) == 8
    assert len(baggage.get_all(propagator.extract({"baggage": text.split(",")}))) == 8


def test_the_limits_are_options():
    propagator = MeshPropagator(baggage_max_members=1, baggage_max_bytes=5)
    assert baggage.get_all(propagator.extract({"baggage": "a=1,b=2"})) == {"a": "1"}
    assert injected(propagator, current(a="1", b="2"))["baggage"] == "a=1"
    assert not baggage.get_all(propagator.extract({"baggage": "abc=12"}))


def test_headers_that_are_passed_through_go_out_as_they_came():
    propagator = MeshPropagator(passthrough_headers=["X-Request-ID", "x-tenant"])
    context = propagator.extract({"X-Request-Id": "7", "x-tenant": "acme"})
    assert injected(propagator, context) == {"x-request-id": "7", "x-tenant": "acme"}
    assert injected(propagator, context, {"X-Tenant": "own"}) == {"X-Tenant": "own", "x-request-id": "7"}


@pytest.mark.parametrize("value", ["", "x" * 1025, "caf\xe9", "a\r\nset-cookie: b", "a\x00"])
def test_a_header_that_could_hurt_is_not_passed_through(value):
    propagator = MeshPropagator()
    assert injected(propagator, propagator.extract({"x-request-id": value})) == {}


def test_nothing_is_passed_through_where_nothing_is_wanted():
    propagator = MeshPropagator(passthrough_headers=[])
    assert injected(propagator, propagator.extract({"x-request-id": "1"})) == {}


def test_later_versions_are_read_where_the_policy_asks():
    later = "cc" + VALID[2:] + "-what-comes-next"
    assert not parent_of(MeshPropagator().extract({"traceparent": later})).is_valid
    propagator = MeshPropagator(traceparent_policy="w3c")
    assert injected(propagator, propagator.extract({"traceparent": later}))["traceparent"] == VALID


def test_headers_that_came_without_a_traceparent_are_said_to_be_stripped(propagator, caplog):
    propagator.extract({"tracestate": "a=1"})
    propagator.extract({"baggage": "a=1"})
    propagator.extract({"tracestate": ""})
    assert propagator.rejections.counts == {("traceparent", "missing"): 2}
    assert "stripped" in caplog.text


def test_a_flood_of_bad_requests_is_a_line_per_reason(propagator, caplog):
    with caplog.at_level(logging.DEBUG):
        for _ in range(1000):
            propagator.extract({"traceparent": "junk", "b3": "junk"})
    assert len(caplog.records) == 2
    assert set(propagator.rejections.counts.values()) == {1000}


# The tracestate in process.


def state(text="a=1,b=2"):
    return W3CTraceState(WireTraceState.parse(text))


def test_a_tracestate_is_a_mapping_like_opentelemetrys_own():
    assert dict(state()) == {"a": "1", "b": "2"}
    assert (len(state()), "a" in state(), state()["b"], state().get("x")) == (2, True, "2", None)
    assert state().to_header() == "a=1,b=2"
    assert isinstance(state(), TraceState)


def test_changes_of_a_tracestate_go_to_its_left():
    assert state().add("c", "3").to_header() == "c=3,a=1,b=2"
    assert state().update("b", "9").to_header() == "b=9,a=1"
    assert state().delete("a").to_header() == "b=2"
    assert state().delete("x").to_header() == "a=1,b=2"


@pytest.mark.parametrize(
    ("key", "value"), [("A", "1"), ("", "1"), ("c", ""), ("c", "a,b"), ("c", "x "), ("c" * 257, "1")]
)
def test_a_change_that_is_not_valid_changes_nothing(key, value):
    assert state().add(key, value).to_header() == "a=1,b=2"
    assert state().update(key, value).to_header() == "a=1,b=2"


def test_add_does_not_replace():
    assert state().add("a", "9").to_header() == "a=1,b=2"


def test_the_rightmost_member_makes_room_at_32():
    full = state(",".join(f"k{n}=1" for n in range(32)))
    assert len(full.add("new", "1")) == 32
    assert "k31" not in full.add("new", "1")


def test_a_sampler_can_write_into_the_tracestate(propagator):
    context = propagator.extract({"traceparent": VALID, "tracestate": "tenant/9@shop=1"})
    changed = parent_of(context).trace_state.update("mesh", "2")
    sent = injected(propagator, current(SpanContext(1, 2, False, TraceFlags(1), changed)))
    assert sent["tracestate"] == "mesh=2,tenant/9@shop=1"


def test_the_sdk_takes_the_parent_over(propagator):
    context = propagator.extract({"traceparent": VALID, "tracestate": "a=1"})
    span = TracerProvider().get_tracer("t").start_span("work", context)
    sent = injected(propagator, trace.set_span_in_context(span, context))
    assert sent["traceparent"] == f"00-{TRACE_ID}-{span.get_span_context().span_id:016x}-01"
    assert sent["tracestate"] == "a=1"


# As OTEL_PROPAGATORS names it.

BY_NAME = f"""
from opentelemetry import propagate
from meshmw import MeshPropagator, _runtime as runtime
assert propagate.extract({{"traceparent": "{VALID.upper()}"}}) is not None
(found,) = propagate.get_global_textmap()._propagators
assert type(found) is MeshPropagator, found
assert found.rejections.counts == {{("traceparent", "case"): 1}}
assert runtime.current().propagator is found
assert runtime.is_global(found) and not runtime.is_global(MeshPropagator())
import meshmw
carrier = {{}}
meshmw.inject(carrier, meshmw.extract({{"Traceparent": "{VALID}"}}))
assert carrier == {{"traceparent": "{VALID}"}}
"""


@pytest.mark.parametrize("first", ["import meshmw", "import meshmw.propagator", "import opentelemetry.propagate"])
def test_otel_propagators_may_name_it(first):
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{BY_NAME}"],
        env={**os.environ, "OTEL_PROPAGATORS": "meshmw", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "before it was configured" not in done.stderr


def test_nothing_stays_current_after_extract(propagator):
    before = get_current()
    propagator.extract({"traceparent": VALID})
    assert get_current() == before


PARENT_LINE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("by_host", "lines", "is_same"),
    [
        ({}, {}, True),
        ({"baggage": "a=1"}, {"baggage": ["a=1"]}, True),
        ({"baggage": "a=1"}, {"baggage": ["a=1"], "host": ["a"], "user-agent": ["b"]}, True),
        ({"baggage": "a=1,b=2"}, {"baggage": ["a=1", "b=2"]}, True),
        ({"x-request-id": "caf\xe9"}, {"x-request-id": ["caf\ufffd"]}, True),
        ({}, {"baggage": ["a=1"]}, False),
        ({"baggage": "a=1"}, {}, False),
        ({"baggage": "a=1"}, {"tracestate": ["a=1"]}, False),
        ({"baggage": "a=1"}, {"baggage": ["a=2"]}, False),
        ({"baggage": "a=1"}, {"baggage": ["a=2"], "tracestate": ["a=1"]}, False),
        ({"x-request-id": "1"}, {"x-request-id": ["2"], "host": ["a"]}, False),
    ],
)
def test_what_a_host_has_read_is_taken_only_for_the_very_same_request(propagator, by_host, lines, is_same):
    read = propagator.extract({"traceparent": PARENT_LINE, **by_host})[READ_KEY]
    lines = {"traceparent": [PARENT_LINE], **lines}
    extraction, trusted = propagator.read_once(lines)
    assert (extraction is read, trusted is read) == (is_same, is_same)
    # And only once: what comes next is another request, however alike it looks.
    extraction, trusted = propagator.read_once(lines)
    assert (extraction is read, trusted) == (False, None)
