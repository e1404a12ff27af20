"""Frames: what is written comes back, and nothing that arrives can raise or cost more than its bounds."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry.baggage import get_all
from opentelemetry.context import Context, get_current
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from meshmw import _runtime as runtime
from meshmw.errors import InvalidHeaderError
from meshmw.frames import (
    JSON_KEY,
    MAX_FIELDS,
    MAX_FRAME_BYTES,
    MAX_TEXT_BYTES,
    BytesGetter,
    BytesSetter,
    decode,
    encode,
    extract_json,
    format_frame,
    frame_size,
    inject_json,
    parse_frame,
    using,
)
from meshmw.propagator import MeshPropagator

pytestmark = pytest.mark.usefixtures("strict_context")

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEADERS = {"traceparent": TRACEPARENT, "tracestate": "a=1", "baggage": "user=7;secret,empty=", "x-request-id": "id-7"}
EMPTY_FRAME = b"MW\x01\x00\x00"


@pytest.fixture
def propagator():
    return MeshPropagator()


@pytest.fixture
def context(propagator):
    return propagator.extract(HEADERS)


def trace_id(context):
    return trace.get_current_span(context).get_span_context().trace_id


def headers(context):
    written = {}
    MeshPropagator().inject(written, context)
    return written


def frame(*fields, magic=b"MW", version=1, size=None):
    block = b"".join(len(name).to_bytes(1, "big") + name + len(text).to_bytes(2, "big") + text for name, text in fields)
    return magic + bytes([version]) + (len(block) if size is None else size).to_bytes(2, "big") + block


class TestFrame:
    def test_all_that_a_context_sends_comes_back_and_the_message_with_it(self, context, propagator):
        data = encode(context, propagator=propagator) + b"message"
        received, message = decode(data, propagator=propagator)
        assert headers(received) == HEADERS
        assert message == b"message"
        assert get_all(received) == {"user": "7", "empty": ""}
        assert propagator.rejections.counts == {}

    def test_the_form_is_written_down_byte_by_byte(self, propagator):
        context = propagator.extract({"traceparent": TRACEPARENT})
        assert encode(context, propagator=propagator) == b"MW\x01\x00\x45\x0btraceparent\x00\x37" + TRACEPARENT.encode()
        assert encode(Context(), propagator=propagator) == EMPTY_FRAME

    def test_the_current_context_and_the_configured_propagator_are_the_defaults(self, context, monkeypatch):
        monkeypatch.setattr(runtime, "_installed", runtime.Runtime())
        from meshmw._context.current import Current

        with Current(context):
            data = encode()
        received, rest = decode(data)
        assert (headers(received), rest) == (HEADERS, b"")

    def test_an_empty_frame_begins_a_new_trace_without_a_complaint(self, propagator):
        received, message = decode(EMPTY_FRAME + b"MW\x01", propagator=propagator)
        assert (headers(received), message) == ({}, b"MW\x01")
        assert propagator.rejections.counts == {}

    def test_what_was_in_the_context_before_stays(self, propagator):
        received, _ = decode(EMPTY_FRAME, Context({"other": 1}), propagator=propagator)
        assert received["other"] == 1

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_the_message_is_of_the_kind_that_arrived(self, kind, context, propagator):
        received, message = decode(kind(encode(context, propagator=propagator) + b"message"), propagator=propagator)
        assert type(message) is kind
        assert bytes(message) == b"message"
        assert headers(received) == HEADERS

    def test_a_view_of_larger_items_is_cut_by_bytes(self, propagator):
        _, message = decode(memoryview(EMPTY_FRAME + b"abc").cast("H"), propagator=propagator)
        assert bytes(message) == b"abc"

    @pytest.mark.parametrize("text", ["text", None, [1]])
    def test_what_is_no_bytes_is_the_programmers_mistake(self, text, propagator):
        with pytest.raises(TypeError, match=r"decode\(\) takes bytes, not "):
            decode(text, propagator=propagator)

    @pytest.mark.parametrize(
        ("data", "reason", "message"),
        [
            (b"", "magic", b""),
            (b"hello", "magic", b"hello"),
            (b"M", "magic", b"M"),
            (b"MW", "truncated", b"MW"),
            (b"MW\x01\x00", "truncated", b"MW\x01\x00"),
            (frame(version=2), "version", frame(version=2)),
            (frame(size=1), "truncated", frame(size=1)),
            (frame(size=0xFFFF), "too_long", frame(size=0xFFFF)),
            (frame((b"", b"x")) + b"message", "no_name", b"message"),
            (frame((b"n" * 65, b"x")) + b"message", "field_too_long", b"message"),
            (frame((b"n", b"x" * 8193)) + b"message", "field_too_long", b"message"),
            (frame(*[(b"n", b"x")] * 33) + b"message", "too_many_fields", b"message"),
            (b"MW\x01\x00\x01\x05" + b"message", "truncated", b"message"),
            (b"MW\x01\x00\x02\x01n" + b"message", "truncated", b"message"),
            (b"MW\x01\x00\x03\x01n\x00" + b"message", "truncated", b"message"),
            (b"MW\x01\x00\x05\x01n\x00\x02x" + b"message", "truncated", b"message"),
        ],
    )
    def test_garbage_begins_a_new_trace_and_is_counted_by_reason(self, data, reason, message, propagator):
        received, rest = decode(data, propagator=propagator)
        assert (headers(received), rest) == ({}, message)
        assert propagator.rejections.counts == {("frame", reason): 1}

    def test_what_comes_before_the_fault_is_not_trusted_either(self, propagator):
        data = frame((b"traceparent", TRACEPARENT.encode()), (b"", b""))
        assert headers(decode(data, propagator=propagator)[0]) == {}

    def test_the_propagator_judges_what_the_fields_hold(self, propagator):
        twice = [(b"TraceParent", TRACEPARENT.encode())] * 2
        received, _ = decode(frame(*twice), propagator=propagator)
        assert trace_id(received) == 0
        assert propagator.rejections.counts == {("traceparent", "duplicate"): 1}

    def test_fields_of_other_senders_are_passed_over(self, propagator):
        data = frame((b"\xff\x00", b"\xff"), (b"traceparent", TRACEPARENT.encode()))
        assert headers(decode(data, propagator=propagator)[0]) == {"traceparent": TRACEPARENT}

    @given(data=st.binary())
    @example(data=frame((b"baggage", b"\xff=\x00")))
    def test_no_bytes_can_raise(self, data):
        propagator = MeshPropagator(warn_window=1e9)
        for each in data, b"MW\x01" + data, frame((b"traceparent", data), (b"baggage", data), (b"b3", data)):
            _, message = decode(each, propagator=propagator)
            assert each.endswith(message)

    @given(
        ids=st.tuples(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)),
        flags=st.integers(0, 3),
        members=st.dictionaries(st.from_regex(r"[a-z]{1,20}", fullmatch=True), st.text(max_size=500), max_size=80),
    )
    def test_round_trip_within_bounds(self, ids, flags, members):
        propagator = MeshPropagator(baggage_max_bytes=61_440, baggage_max_members=1024, warn_window=1e9)
        context = set_span_in_context(NonRecordingSpan(SpanContext(*ids, False, TraceFlags(flags))), Context())
        for key, text in members.items():
            context = baggage.set_baggage(key, text, context)
        data = encode(context, propagator=propagator)
        assert len(data) <= MAX_FRAME_BYTES
        received, message = decode(data + b"message", propagator=propagator)
        found = trace.get_current_span(received).get_span_context()
        assert (found.trace_id, found.span_id, found.trace_flags, message) == (*ids, flags, b"message")
        if ("baggage", "frame_too_long") not in propagator.rejections.counts:
            sent, read = {}, {}
            propagator.inject(sent, context)
            propagator.inject(read, received)
            assert sent == read


class TestLimits:
    def test_a_field_that_does_not_fit_costs_only_itself_and_is_counted(self):
        propagator = MeshPropagator(baggage_max_bytes=61_440)
        context = propagator.extract({"traceparent": TRACEPARENT, "baggage": f"big={'x' * MAX_TEXT_BYTES}"})
        received, _ = decode(encode(context, propagator=propagator), propagator=propagator)
        assert headers(received) == {"traceparent": TRACEPARENT}
        assert propagator.rejections.counts == {("baggage", "frame_too_long"): 1}

    @pytest.mark.parametrize("name", ["", "n" * 65, "\u20ac"])
    def test_a_name_that_cannot_be_written_stays_out(self, name):
        assert format_frame({name: "x", "n": "y"}) == (frame((b"n", b"y")), (name,))

    def test_a_text_that_cannot_be_written_stays_out(self):
        assert format_frame({"n": "\u20ac"}) == (EMPTY_FRAME, ("n",))

    def test_no_more_fields_than_the_reader_takes(self):
        written, left_out = format_frame({str(number): "x" for number in range(MAX_FIELDS + 1)})
        assert left_out == (str(MAX_FIELDS),)
        assert len(parse_frame(written)) == MAX_FIELDS

    def test_no_more_bytes_than_the_reader_takes(self):
        rest = MAX_FRAME_BYTES - len(EMPTY_FRAME) - 2 * len(frame((b"a", b""))[5:]) - MAX_TEXT_BYTES
        written, left_out = format_frame({"a": "x" * MAX_TEXT_BYTES, "b": "y" * rest, "c": "z"})
        assert (len(written), left_out) == (MAX_FRAME_BYTES, ("c",))
        assert frame_size(memoryview(written)) == len(written)
        _, left_out = format_frame({"a": "x" * MAX_TEXT_BYTES, "b": "y" * (rest + 1), "c": "z"})
        assert left_out == ("b",)

    def test_a_fault_says_where(self):
        with pytest.raises(InvalidHeaderError, match="frame: version at character 2"):
            frame_size(memoryview(frame(version=9)))


class TestJson:
    def test_all_that_a_context_sends_comes_back_through_json(self, context, propagator):
        message = {"type": "chat", JSON_KEY: {"traceparent": "stale", "b3": "stale"}}
        inject_json(message, context, propagator=propagator)
        arrived = json.loads(json.dumps(message))
        assert arrived == {"type": "chat", "trace_context": HEADERS}
        assert headers(extract_json(arrived, propagator=propagator)) == HEADERS

    def test_with_nothing_to_write_the_stale_envelope_is_removed(self, propagator):
        message = {"type": "chat", "trace": {"traceparent": TRACEPARENT}}
        inject_json(message, Context(), key="trace", propagator=propagator)
        assert message == {"type": "chat"}

    @pytest.mark.parametrize("message", [[], "{}", None, 7])
    def test_injecting_into_what_is_no_object_is_the_programmers_mistake(self, message, propagator):
        with pytest.raises(TypeError, match=r"inject_json\(\) takes a JSON object, not "):
            inject_json(message, propagator=propagator)

    @pytest.mark.parametrize("message", [[], "{}", None, 7, {}, {JSON_KEY: None}])
    def test_a_message_without_an_envelope_is_no_fault(self, message, propagator):
        assert headers(extract_json(message, propagator=propagator)) == {}
        assert propagator.rejections.counts == {}

    @pytest.mark.parametrize("envelope", [[], TRACEPARENT, 7, True])
    def test_an_envelope_that_is_no_object_is_counted(self, envelope, propagator):
        assert headers(extract_json({JSON_KEY: envelope}, propagator=propagator)) == {}
        assert propagator.rejections.counts == {("json", "not_an_object"): 1}

    def test_what_is_no_text_is_counted_and_the_rest_kept(self, propagator):
        envelope = {"traceparent": TRACEPARENT, "baggage": {"a": 1}}
        assert headers(extract_json({JSON_KEY: envelope}, propagator=propagator)) == {"traceparent": TRACEPARENT}
        assert propagator.rejections.counts == {("baggage", "not_text"): 1}

    def test_a_malformed_traceparent_begins_a_new_trace_and_is_counted(self, propagator):
        received = extract_json({JSON_KEY: {"traceparent": "00-junk", "tracestate": "a=1"}}, propagator=propagator)
        assert headers(received) == {}
        assert [header for header, _ in propagator.rejections.counts] == ["traceparent"]

    def test_what_was_in_the_context_before_stays(self, propagator):
        received = extract_json({JSON_KEY: HEADERS}, Context({"other": 1}), propagator=propagator)
        assert received["other"] == 1

    @given(
        envelope=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(
                    st.sampled_from(["traceparent", "tracestate", "baggage", "b3", "x-request-id"]), inner
                )
            ),
        )
    )
    @example(envelope={"traceparent": "\ud800", "baggage": "a=\ud800", "x-request-id": "\ud800"})
    def test_no_json_can_raise_nor_leave_in_a_form_that_cannot_be_sent(self, envelope):
        propagator = MeshPropagator(("tracecontext", "baggage", "b3"), warn_window=1e9)
        received = extract_json({JSON_KEY: envelope}, propagator=propagator)
        encode(received, propagator=propagator)


class TestUsing:
    def test_what_a_message_brings_is_current_in_the_block_and_what_was_before_is_not(self, context, propagator):
        with using(Context({"of the connection": True})):
            before = get_current()
            message, _ = decode(encode(context, propagator=propagator), propagator=propagator)
            with using(message):
                assert trace_id(None) == trace_id(context)
                assert get_all()["user"] == "7"
                assert "of the connection" not in get_current()
            assert get_current() is before

    def test_an_exception_passes_and_leaves_nothing(self, context):
        with pytest.raises(LookupError), using(context):
            raise LookupError
        assert get_current() == {}


class TestBytesCarrier:
    def test_round_trip_through_the_carrier_of_a_binary_protocol(self, context, propagator):
        carrier = {"kind": b"\x00\xff", "TraceParent": b"stale"}
        propagator.inject(carrier, context, BytesSetter())
        assert carrier == {"kind": b"\x00\xff"} | {name: text.encode() for name, text in HEADERS.items()}
        assert headers(propagator.extract(carrier, getter=BytesGetter())) == HEADERS

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, bytes.decode])
    def test_whatever_holds_bytes_is_read(self, kind):
        assert BytesGetter().get({"a": kind(b"1")}, "a") == ["1"]

    @pytest.mark.parametrize("value", [None, 10**12, [b"1"], {}])
    def test_other_types_are_no_field(self, value):
        assert BytesGetter().get({"a": value}, "a") is None
        assert BytesGetter().keys({"a": value}) == ["a"]

    @given(value=st.binary())
    def test_no_bytes_can_raise(self, value):
        carrier = dict.fromkeys(["traceparent", "tracestate", "baggage", "x-request-id"], value)
        MeshPropagator(warn_window=1e9).extract(carrier, getter=BytesGetter())

    def test_the_json_getter_lists_its_names(self, propagator):
        from meshmw.frames import _TextGetter

        assert _TextGetter(propagator).keys({"a": 1}) == ["a"]


def test_nothing_malformed_of_any_format_stays_in_a_json_message():
    headers = {"Traceparent": "junk", "tracestate": "a=1", "b3": 7, "X-B3-Sampled": "maybe", "baggage": "a=1,=x"}
    headers["own"] = "1"
    message = {"data": 1, JSON_KEY: headers}
    assert extract_json(message, propagator=MeshPropagator()) is not None
    assert message == {"data": 1, JSON_KEY: {"baggage": "a=1", "own": "1"}}
    good = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=1", "b3": "0", "baggage": "a=1"}
    message = {JSON_KEY: good | {7: 7}}
    extract_json(message, propagator=MeshPropagator())
    assert message == {JSON_KEY: good | {7: 7}}
    extract_json({JSON_KEY: MappingProxyType({"traceparent": "junk"})}, propagator=MeshPropagator())
