"""Laws 1, 2 and 9 on every host: no header hurts, a malformed one goes no further, and it is said and counted once."""

import logging

import pytest

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"

MALFORMED = {
    "empty": ("", "empty"),
    "blank": (" \t", "empty"),
    "too short": (VALID[:-1], "length"),
    "over-long": (VALID + "0" * 8000, "trailing"),
    "tail on version 00": (VALID + "-what-comes-next", "trailing"),
    "zero trace id": (f"00-{'0' * 32}-{PARENT_ID}-01", "zero_trace_id"),
    "zero parent id": (f"00-{TRACE_ID}-{'0' * 16}-01", "zero_parent_id"),
    "upper case": (VALID.upper(), "case"),
    "version ff": ("ff" + VALID[2:], "version_ff"),
    "later version": ("cc" + VALID[2:], "version"),
    "not hexadecimal": (VALID.replace("b", "x"), "hex"),
    "not ASCII": (VALID[:-2] + "\xe9\xff", "control"),
    "UTF-8": (VALID[:-2] + "\xc3\xa9", "control"),
    "a broken escape beside a byte that is no UTF-8": (VALID + "\xff\\x", "control"),
    "control character": (VALID[:10] + "\x01" + VALID[11:], "control"),
    "NUL": (VALID + "\x00", "control"),
    "newline": (VALID + "\n", "control"),
    "two joined": (f"{VALID},{VALID}", "duplicate"),
    "a forged log line": ("x\r\nERROR all is lost", "control"),
}


def malformed(text, *more):
    return [("traceparent", text), *more, ("tracestate", "vendor=1")]


@pytest.mark.parametrize(("text", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_traceparent_starts_a_new_trace_and_goes_no_further(host, caplog, text, reason):
    reply = host.get(headers=malformed(text))
    assert (reply.status, reply.error) == (200, None)
    assert host.server_span.parent is None
    assert host.server_span.context.trace_id != int(TRACE_ID, 16)
    assert "traceparent" not in host.seen.headers
    assert "tracestate" not in host.seen.headers
    assert host.seen.outbound["traceparent"].startswith(f"00-{host.server_span.context.trace_id:032x}-")
    assert "tracestate" not in host.seen.outbound
    assert host.refusals == {("traceparent", reason): 1}
    (warning,) = [record for record in caplog.records if record.name == "meshmw"]
    assert warning.levelno == logging.WARNING
    assert f"traceparent refused ({reason})" in warning.getMessage()
    assert warning.getMessage().isascii()
    assert warning.getMessage().isprintable()
    assert len(warning.getMessage()) < 250


@pytest.mark.parametrize("second", [VALID, VALID.replace("b7-01", "b8-01"), ""], ids=["equal", "other", "empty"])
def test_two_traceparent_lines_are_none(host, second):
    host.get(headers=malformed(VALID, ("traceparent", second)))
    assert host.server_span.parent is None
    assert host.seen.headers.keys().isdisjoint({"traceparent", "tracestate"})
    assert host.refusals == {("traceparent", "duplicate"): 1}


def test_the_same_fault_is_counted_each_time_and_said_once(host, caplog):
    for _ in range(5):
        host.get(headers=malformed("junk"))
    host.get(headers=malformed("ff" + VALID[2:]))
    assert host.refusals == {("traceparent", "hex"): 5, ("traceparent", "version_ff"): 1}
    assert len([record for record in caplog.records if record.name == "meshmw"]) == 2


def test_spaces_around_a_traceparent_are_no_fault(host):
    host.get(headers=[("traceparent", f" \t{VALID}\t ")])
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert host.refusals == {}


def test_tracestate_without_traceparent_is_dropped(host):
    host.get(headers=[("tracestate", "vendor=1")])
    assert "tracestate" not in host.seen.headers
    assert "tracestate" not in host.seen.outbound
    assert host.server_span.parent is None


@pytest.mark.parametrize(
    "state",
    ["Vendor=1", "a=1,b", "a=", "a=1,=2", "a=\x01", "a=\xff", ",".join(f"k{n}=1" for n in range(33)), "k" * 70000],
    ids=["key", "member", "value", "no key", "control", "not ASCII", "33 members", "huge"],
)
def test_a_bad_tracestate_is_dropped_whole_and_the_traceparent_kept(host, state):
    host.get(headers=[("traceparent", VALID), ("tracestate", state)])
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert "tracestate" not in host.seen.headers
    assert host.seen.headers["traceparent"] == [VALID]
    assert "tracestate" not in host.seen.outbound
    assert [(header, count) for (header, _), count in host.refusals.items()] == [("tracestate", 1)]


def test_tracestate_lines_go_on_in_order_without_their_duplicates(host):
    state = [("tracestate", "b=2,a=1"), ("tracestate", ""), ("tracestate", "tenant/9@shop=x , b=3")]
    host.get(headers=[("traceparent", VALID), *state])
    assert host.seen.outbound["tracestate"] == "b=2,a=1,tenant/9@shop=x"


def test_bad_baggage_members_are_dropped_and_the_rest_goes_on_as_it_came(host):
    members = "k=v;p=1,=no-key,a=%20b%20,c=1+1,d=\xff,\x01=x,none"
    host.get(headers=[("traceparent", VALID), ("baggage", members), ("baggage", "last=1,bad key=2")])
    assert host.seen.baggage == {"k": "v", "a": " b ", "c": "1+1", "last": "1"}
    assert host.seen.outbound["baggage"] == "k=v;p=1,a=%20b%20,c=1+1,last=1"
    assert host.seen.headers["baggage"] == ["k=v;p=1,a=%20b%20,c=1+1,last=1"]
    assert set(host.refusals.values()) == {1}


def test_good_baggage_stays_as_it_came(host):
    host.get(headers=[("traceparent", VALID), ("baggage", "k=v;p=1"), ("baggage", "a=%20b%20")])
    assert ",".join(host.seen.headers["baggage"]) == "k=v;p=1,a=%20b%20"
    assert host.seen.outbound["baggage"] == "k=v;p=1,a=%20b%20"
    assert host.refusals == {}


def test_baggage_beyond_the_limits_is_dropped_by_whole_members(host):
    host.get(headers=[("traceparent", VALID), ("baggage", ",".join(f"k{n}=v" for n in range(100)))])
    assert list(host.seen.baggage) == [f"k{n}" for n in range(64)]
    assert host.refusals == {("baggage", "too_many_members"): 1}


def test_a_malformed_b3_beside_a_valid_traceparent_costs_nothing_but_itself(host):
    host.get(headers=[("traceparent", VALID), ("b3", "junk"), ("x-b3-traceid", "0" * 32), ("x-b3-spanid", "x")])
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert not [name for name in host.seen.headers if "b3" in name]
    assert list(host.refusals.values()) == [1]


B3_IDS = f"{TRACE_ID}-{PARENT_ID}"


@pytest.mark.parametrize(
    ("headers", "seen"),
    [
        ([("b3", "junk")], {}),
        ([("b3", f"{B3_IDS}-1-xyz")], {"b3": [f"{B3_IDS}-1"]}),
        ([("b3", B3_IDS.upper())], {}),
        ([("x-b3-traceid", "0" * 32), ("x-b3-spanid", PARENT_ID), ("x-b3-sampled", "1")], {}),
        ([("x-b3-sampled", "1"), ("x-b3-flags", "debug")], {"x-b3-sampled": ["1"]}),
        ([("b3", "1"), ("x-b3-parentspanid", "xyz")], {"b3": ["1"]}),
    ],
)
@pytest.mark.parametrize("traceparent", [[], [("traceparent", VALID)]], ids=["alone", "beside a traceparent"])
def test_malformed_b3_is_gone_where_it_is_no_format(new_host, headers, seen, traceparent):
    host = new_host(formats=("tracecontext", "baggage"))
    host.get(headers=[*headers, *traceparent])
    assert {name: lines for name, lines in host.seen.headers.items() if "b3" in name} == seen
    assert not [name for name in host.seen.outbound if "b3" in name]
    assert (host.server_span.parent is None) == (not traceparent)
    assert list(host.refusals.values()) == [1]


def test_good_b3_is_left_alone_where_it_is_no_format(new_host):
    host = new_host(formats=("tracecontext", "baggage"))
    host.get(headers=[("traceparent", VALID), ("b3", f"{B3_IDS}-1"), ("x-b3-sampled", "1")])
    assert (host.seen.headers["b3"], host.seen.headers["x-b3-sampled"]) == ([f"{B3_IDS}-1"], ["1"])
    assert host.refusals == {}


@pytest.mark.parametrize("formats", [("b3",), ()])
def test_malformed_w3c_headers_are_gone_where_they_are_no_format(new_host, formats):
    host = new_host(formats=formats)
    host.get(headers=malformed(VALID.upper(), ("baggage", "=,a=1")))
    assert host.seen.headers.keys().isdisjoint({"traceparent", "tracestate"})
    assert host.seen.headers["baggage"] == ["a=1"]
    assert host.seen.baggage == {}
    assert host.server_span.parent is None
    assert host.server_span.links == ()
    assert host.refusals == {("traceparent", "case"): 1, ("baggage", "key"): 1}


@pytest.mark.parametrize("formats", [("b3",), ()])
def test_good_w3c_headers_are_left_alone_where_they_are_no_format(new_host, formats):
    host = new_host(formats=formats)
    host.get(headers=[("traceparent", VALID), ("tracestate", "a=1"), ("baggage", "a=1")])
    seen = {name: host.seen.headers[name] for name in ("traceparent", "tracestate", "baggage")}
    assert seen == {"traceparent": [VALID], "tracestate": ["a=1"], "baggage": ["a=1"]}
    assert host.server_span.parent is None
    assert host.refusals == {}


@pytest.mark.parametrize(
    "junk",
    [
        [("x-b3-flags", "debug"), ("x-b3-traceid", TRACE_ID), ("x-b3-spanid", PARENT_ID)],
        [("x-b3-parentspanid", "xyz"), ("x-b3-traceid", TRACE_ID), ("x-b3-spanid", PARENT_ID)],
        [("x-b3-sampled", "yes"), ("x-b3-traceid", TRACE_ID), ("x-b3-spanid", PARENT_ID)],
        [("b3", f"{B3_IDS}-1-xyz")],
    ],
    ids=["flags", "parent", "sampled", "fourth field"],
)
def test_junk_beside_the_ids_of_b3_costs_nothing_but_itself(host, junk):
    host.get(headers=junk)
    assert host.seen.trace_id == int(TRACE_ID, 16)
    assert {name: lines for name, lines in host.seen.headers.items() if "b3" in name} == (
        {"b3": [f"{B3_IDS}-1"]} if junk[0][0] == "b3" else {"x-b3-traceid": [TRACE_ID], "x-b3-spanid": [PARENT_ID]}
    )
    assert list(host.refusals.values()) == [1]


def test_a_malformed_traceparent_falls_back_to_b3(host):
    host.get(headers=malformed("junk", ("b3", f"{TRACE_ID}-{PARENT_ID}-1")))
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert host.seen.headers.keys().isdisjoint({"traceparent", "tracestate"})


@pytest.mark.parametrize("formats", [("b3", "tracecontext"), ("tracecontext", "b3multi"), ("b3multi", "tracecontext")])
def test_w3c_beats_b3_in_every_order_and_the_conflict_is_counted_once(new_host, caplog, formats):
    host = new_host(formats=formats)
    host.get(headers=[("b3", f"{'1' * 32}-{'2' * 16}-0"), ("traceparent", VALID)])
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert host.seen.sampled
    assert host.refusals == {("b3", "conflict"): 1}
    assert len([record for record in caplog.records if record.name == "meshmw"]) == 1


def test_headers_named_like_ours_are_left_alone(host):
    headers = [("traceparent-extra", "x"), ("x-baggage", "=")]
    host.get(headers=headers)
    assert {"traceparent-extra", "x-baggage"} <= host.seen.headers.keys()
    assert host.refusals == {}
