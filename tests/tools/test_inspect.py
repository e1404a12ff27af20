"""What headers say, and the place of the fault where they say nothing."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw.__main__ import main
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


REQUEST = f"""GET /api HTTP/1.1
> Host: shop.example
accept: */*
authorization: Bearer geheim
:authority: shop
traceparent: {VALID}
user-agent: a=1,b=2
uber-trace-id: 1:2:0:1
uberctx-tenant: geheim
sw8: 1-x
sw8-correlation: x
x-datadog-trace-id: 1
x-datadog-sampling-priority: 1
X-Amzn-Trace-Id: Root=1-5759e988-bd862e3fe1be46a994272793
X-Cloud-Trace-Context: 105445aa7843bc8bf206b12000100000/1;o=1
< tracestate: a=1
x-b3-traceid: {"a" * 32}
cookie: traceparent=1
""".replace("\n", "\r\n")


def test_of_a_whole_request_only_trace_headers_are_shown(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(REQUEST.encode())))
    assert main(["inspect", "-", "--json"]) == 0
    found = {each["header"]: each for each in json.loads(capsys.readouterr().out)}
    assert list(found) == [
        "traceparent",
        "uber-trace-id",
        "uberctx-tenant",
        "sw8",
        "sw8-correlation",
        "x-datadog-trace-id",
        "x-datadog-sampling-priority",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "tracestate",
        "x-b3-traceid",
    ]
    assert "SkyWalking" in found["sw8-correlation"]["system"]
    assert "Datadog" in found["x-datadog-trace-id"]["system"]
    assert "AWS X-Ray" in found["x-amzn-trace-id"]["system"]
    assert "Google" in found["x-cloud-trace-context"]["system"]
    assert found["traceparent"]["system"] == found["x-b3-traceid"]["system"] == ""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(REQUEST.encode())))
    assert main(["inspect", "-"]) == 0
    out = capsys.readouterr().out
    assert "uber-trace-id: of another system" in out
    assert "It belongs to Jaeger's own clients" in out
    assert "Bearer" not in out


CURL = f"""  % Total    % Received % Xferd  Average Speed   Time    Time     Time  Current
                                 Dload  Upload   Total   Spent    Left  Speed
  0     0    0     0    0     0      0      0 --:--:-- --:--:-- --:--:--     0* Host shop:80 was resolved.
* IPv6: (none)
*   Trying 127.0.0.1:80...
* [HTTP/2] [1] [traceparent: 00-x]
> GET /api HTTP/1.1
> Host: shop
> traceparent: {VALID}
>\x20
* Request completely sent off
{{ [5 bytes data]
< HTTP/1.1 200 OK
< traceresponse: {VALID}
< uber-trace-id: 1:2:0:1
<
{{ [5 bytes data]
traceparent: of the body
hello world
<html>
100     5  100     5    0     0   1234      0 --:--:-- --:--:-- --:--:--  1250
* Connection #0 to host shop left intact
"""
TRACE = """== Info:   Trying 127.0.0.1:80...
=> Send header, 83 bytes (0x53)
0000: GET / HTTP/1.1
0010: Host: shop
001c: tracestate: a=1
0030:
<= Recv header, 17 bytes (0x11)
0000: HTTP/1.1 200 OK
0010: b3: 0
"""
ANSWER = f"""HTTP/1.1 200 OK
traceparent: {VALID}

hello

HTTP/1.1 100 Continue
b3: 0
"""


JSON = f"""{{
  "Host": "shop",
  "Traceparent": "{VALID}",
  "b3": "0"
}},
"""
LOGGED = f"""{{'traceparent': '{VALID}'}}
traceparent={VALID}
tracestate="a=1"
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "headers"),
    [
        (CURL, ["traceparent", "traceresponse", "uber-trace-id"]),
        (TRACE, ["tracestate", "b3"]),
        (ANSWER, ["traceparent", "b3"]),
        (f"* traceparent: {VALID}\n<html>\n<\n> \n", ["traceparent"]),
        (f"{VALID}\n\na=1,b=2\n", ["traceparent", "tracestate"]),
        (JSON, ["traceparent", "b3"]),
        (LOGGED, ["traceparent", "traceparent", "tracestate"]),
    ],
    ids=["curl -v", "curl --trace-ascii", "curl -i", "marks alone", "values", "JSON", "Python and a log"],
)
def test_what_stands_around_the_headers_is_left_out(monkeypatch, capsys, text, headers, end):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.replace("\n", end).encode())))
    assert main(["inspect", "-", "--json"]) == 0
    assert [each["header"] for each in json.loads(capsys.readouterr().out)] == headers


HEAD = f"GET / HTTP/1.1\ntraceparent: {VALID}\n\n"


@pytest.mark.parametrize("first", [":method: GET", ":path: /", "> :method: GET"])
def test_a_second_block_of_headers_is_looked_at(monkeypatch, capsys, first):
    text = f"{HEAD}{first}\n:scheme: http\ntraceparent: 00-xyz\n\nhello\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["inspect", "-", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [each["valid"] for each in json.loads(out)] == [True, False]
    assert err == ""


@pytest.mark.parametrize(("body", "said"), [("", "1 line of bodies"), ("hello\n", "2 lines of bodies")])
def test_a_body_that_holds_what_looks_like_a_header_is_said(monkeypatch, capsys, body, said):
    text = f"{HEAD}{body}traceparent: 00-xyz"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["inspect", "-", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1
    assert said in " ".join(err.split())


def test_headers_that_are_none_of_ours_alone_are_said(capsys):
    assert main(["inspect", "host: shop", "accept:*/*", "HTTP/1.1 200 OK"]) == 2
    assert "none of 3 lines is a trace header" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("abc:def:0:1", "uber-trace-id"),
        ("a=1:2", "tracestate"),
        ("00-xyz", "traceparent"),
        (f"> traceparent: {VALID}", "traceparent"),
        ("sw80: x", "traceparent"),
    ],
)
def test_a_value_alone_is_not_taken_for_a_header(text, header):
    assert inspect(text).header == header


def test_a_name_that_nobody_knows_is_said_to_be_so():
    found = inspect("x", header="x-unknown")
    assert (found.valid, found.system) == (True, "nobody that is known here")
