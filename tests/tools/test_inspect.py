"""What headers say, and the place of the fault where they say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._notices import shown, without_secrets
from meshmw._tools import Finding, by_severity
from meshmw._tools.inspect import escaped_with_offsets
from meshmw._tools.inspect import inspect_header as inspect
from meshmw.wire import REASONS

VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"


def values(inspection):
    return {field.name: field.value for field in inspection.fields}


def test_traceparent_field_by_field():
    found = inspect(f" traceparent: {VALID} ")
    assert found.valid
    assert values(found) == {
        "version": "00",
        "trace-id": "0af7651916cd43dd8448eb211c80319c",
        "parent-id": "b7ad6b7169203331",
        "trace-flags": "03",
    }
    assert found.fields[3].meaning == "sampled: the caller may have recorded its span; the trace-id is random (Level 2)"
    assert inspect(VALID[:-2] + "00").fields[3].meaning == "not sampled"


@pytest.mark.parametrize(
    ("text", "header", "reason", "under"),
    [
        ("00-xyz", "traceparent", "hex", "x"),
        (VALID.upper(), "traceparent", "case", "A"),
        ("  00-xyz", "traceparent", "hex", "x"),
        (f"traceparent: {VALID},{VALID}", "traceparent", "duplicate", ","),
        ("tracestate: a=1, C=3", "tracestate", "key", "C"),
        ("tracestate:  a=1,b=\x01", "tracestate", "value", "\\"),
        ("baggage: a=1, b", "baggage", "member", ""),
        ("a=1;p,b c=2", "baggage", "key", "b"),
        ("b3: 1-2", "b3", "length", "-"),
        ("x-b3-traceid: zz", "x-b3-traceid", "length", ""),
        ("X-B3-Sampled: maybe", "x-b3-sampled", "sampled", None),
        ("", "traceparent", "empty", ""),
        ("caf\u00e9-", "traceparent", "control", "\\"),
    ],
)
def test_the_place_of_the_fault(text, header, reason, under):
    found = inspect(text)
    assert found.header == header
    (fault,) = found.faults
    assert fault.reason == reason
    assert (None if fault.column is None else found.shown[fault.column : fault.column + 1]) == under
    assert not found.valid
    assert found.to_json()["faults"][0]["reason"] == reason


def test_lists_and_b3():
    state = inspect("tracestate: a=1,fw529a3039@dt=FfFf")
    assert values(state) == {"a": "1", "fw529a3039@dt": "FfFf"}
    assert state.fields[1].meaning == "of dt, tenant fw529a3039"
    assert inspect("a=1,b=2").header == "tracestate"
    assert inspect("a=1%20,b=2").header == "baggage"
    baggage = inspect("baggage: a=%1b1;x=1,,b=2")
    assert values(baggage) == {"a": "\\x1b1", "b": "2"}
    assert baggage.fields[0].meaning == "properties x=1"
    too_many = inspect("baggage: " + ",".join(f"k{n}=1" for n in range(65)))
    assert [fault.reason for fault in too_many.faults] == ["too_many_members"]
    assert too_many.faults[0].position is None
    single = inspect(f"b3: {'0' * 16}{'a' * 16}-{'b' * 16}-1")
    assert [field.meaning for field in single.fields] == ["64 bits, or 128 with zeros", "", ""]
    assert values(inspect(f"b3: {'a' * 32}-{'b' * 16}"))["sampling"] == "deferred"
    assert values(inspect("d", header="B3"))["sampling"] == "debug"
    assert values(inspect("0")) == {"sampling": "not sampled"}
    assert inspect("x-b3-flags: debug").consequence.startswith("is ignored")
    assert inspect("x-b3-spanid: x").consequence.startswith("makes all")
    junk = inspect(f"b3: {'a' * 32}-{'b' * 16}-1-xyz")
    assert (junk.valid, junk.consequence) == (False, f"counts as {'a' * 32}-{'b' * 16}-1; the rest is ignored")
    assert inspect("b3: junk").consequence.startswith("is refused")
    assert inspect("x-b3-parentspanid: x").consequence.startswith("is not read")
    assert inspect(f"x-b3-spanid: {'b' * 16}").valid
    assert inspect("x", header="x-unknown").valid


@given(st.text(max_size=80), st.sampled_from(["", *REASONS, "x-b3-traceid", "x-b3-flags"]))
def test_no_text_raises_and_every_caret_lies_under_the_text(text, header):
    found = inspect(text, header or None)
    assert found.shown.isascii()
    assert found.shown.isprintable()
    for fault in found.faults:
        assert fault.column is None or 0 <= fault.column <= len(found.shown)
    assert bool(found.faults) != found.valid


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_nothing_that_is_shown_moves_a_cursor(text):
    found = shown(text)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in found)
    found.encode()


def test_what_is_shown_is_cut_and_escaped():
    assert shown("a" * 300, 10) == "aaaaaaaaaa..."
    assert shown(b"\x1b[31m\xff") == "\\x1b[31m\\xff"
    assert shown("\u202e\U000e0001") == "\\u202e\U000e0001"
    assert escaped_with_offsets("a\U0001f600") == ("a\\U0001f600", [0, 1, 11])


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("http://mesh/a", "http://mesh/a"),
        ("https://user:pass@mesh:8443/a/b?token=x", "https://mesh:8443/a/b?..."),
        ("http://u:p@mesh?token=x", "http://mesh"),
        ("http://u:p@ss@mesh/", "http://mesh/"),
        ("mesh", "mesh"),
    ],
)
def test_no_secret_of_a_url_is_printed(url, printed):
    assert without_secrets(url) == printed


def test_findings_come_worst_first_and_once():
    note, error = (Finding(severity, "c", "w", "x", "y", "f") for severity in ("note", "error"))
    assert by_severity([note, error, note]) == (error, note)
    assert error.is_fault
    assert not note.is_fault
    assert error.to_json()["code"] == "c"
