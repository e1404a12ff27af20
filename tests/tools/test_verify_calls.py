"""Several calls at one listener, as access logs show them: a retry or a second call is judged by itself."""

from __future__ import annotations

import json

import pytest

from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import LocalBackend, Watch
from meshmw._tools.verify.journey import Journey
from meshmw._tools.verify.judge import Judgement
from meshmw._tools.verify.judge_spans import silent_hops
from meshmw._tools.verify.logs import LogTail, probe_hops
from meshmw._tools.verify.probe import SYNTHETIC, ProbeAnswer, Variant, make_probe
from meshmw.testing import ReceivedSpan

URL = "http://mesh/"
OTHER = "f" * 32


def parent(span: int, trace: str = SYNTHETIC[0], flags: str = "01") -> str:
    return f"00-{trace}-{span:016x}-{flags}"


def start(listener: str, came: str | None, **more: object) -> dict[str, object]:
    return {"type": "DownstreamStart", "listener": listener, "method": "GET", "traceparent": came, **more}


def end(listener: str, went: str | None, **more: object) -> dict[str, object]:
    return {"type": "DownstreamEnd", "listener": listener, "method": "GET", "traceparent": went, **more}


def call(listener: str, came: str | None, went: str | None, **more: object) -> list[dict[str, object]]:
    return [start(listener, came, **more), end(listener, went, **more)]


@pytest.fixture
def run(tmp_path):
    """Return a function that has `verify` judge logs that nothing else writes to."""

    def run(logs: dict[str, list[dict[str, object]]], *backends: LocalBackend, variant: Variant = "w3c") -> Journey:
        for name in logs:
            (tmp_path / f"{name}.log").unlink(missing_ok=True)
        tails = [LogTail(name, tmp_path / f"{name}.log") for name in logs]
        for name, lines in logs.items():
            (tmp_path / f"{name}.log").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        watch = Watch(tails=tails, backends=backends, timeout=0, settle=0, alone=True)
        return follow(make_probe(URL, variant), ProbeAnswer(200), watch, 0)

    return run


def found(journey: Journey) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in journey.findings]


EDGE = call("edge", parent(1), parent(2))


@pytest.mark.parametrize("first", [0, 1], ids=["the second", "the first"])
def test_one_call_of_two_without_headers_is_a_break(run, first):
    calls = [call("inbound", parent(2), parent(3)), call("inbound", None, None)]
    journey = run({"edge": EDGE, "shop": [*calls[first], *calls[1 - first]]})
    where = "edge -> shop inbound" + ("" if first else " (call 2)")
    assert (journey.verdict, found(journey)) == ("broken", [("verify.lost", where)])


def test_a_retry_in_another_trace_is_a_break(run):
    calls = [*call("inbound", parent(2), parent(3)), *call("inbound", parent(9, OTHER), parent(10, OTHER))]
    journey = run({"edge": EDGE, "shop": calls})
    assert found(journey) == [("verify.restarted", "edge -> shop inbound (call 2)")]


def test_a_second_call_whose_proxy_loses_it_names_the_proxy(run):
    calls = [*call("inbound", parent(2), parent(3)), *call("inbound", parent(2), None)]
    assert found(run({"edge": EDGE, "shop": calls})) == [("verify.lost", "shop inbound (call 2)")]


def test_calls_that_are_alike_are_one_hop(run):
    failed = call("inbound", parent(2), parent(3), response_code=503, response_code_details="UF")
    journey = run({"edge": EDGE, "shop": [*failed, *call("inbound", parent(2), parent(4))]})
    assert found(journey) == []
    assert [(hop.name, hop.note) for hop in journey.hops] == [
        ("probe", ""),
        ("edge", ""),
        ("shop inbound", ""),
        ("shop application", ""),
    ]
    # The one that came through is the one that the application got.
    assert journey.hops[3].received["traceparent"] == parent(4)


def test_of_a_call_that_the_proxy_answered_and_its_repetition_the_one_that_arrived_is_shown(run):
    refused = call("inbound", parent(2), parent(3), response_code=200, response_code_details="direct_response")
    failed = call("inbound", parent(2), parent(4), response_code=500, response_code_details="via_upstream")
    for calls in ([*refused, *failed], [*failed, *refused]):
        journey = run({"edge": EDGE, "shop": calls})
        assert [hop.name for hop in journey.hops[2:]] == ["shop inbound", "shop application"]
        assert journey.hops[2].note == "answered 500 (via_upstream)"


def test_calls_at_the_same_moment_are_told_apart_by_their_trace(run):
    at = {"start_time": "2026-11-30T10:00:00.000Z", "request_id": "one"}
    lines = [
        start("inbound", parent(2), **at),
        start("inbound", None, **at),
        end("inbound", None, **at),
        end("inbound", parent(3), **at),
    ]
    journey = run({"edge": EDGE, "shop": lines})
    assert found(journey) == [("verify.lost", "edge -> shop inbound (call 2)")]
    assert [hop.change for hop in journey.hops[2:]] == ["rewritten", "unknown", "absent", "unknown"]


def test_ends_that_come_in_another_order_go_to_their_starts(run):
    first, second = {"start_time": "1"}, {"start_time": "2"}
    lines = [
        start("inbound", parent(2), **first),
        start("inbound", None, **second),
        end("inbound", parent(9, OTHER), **second),
        end("inbound", parent(3), **first),
    ]
    journey = run({"edge": EDGE, "shop": lines})
    assert [hop.change for hop in journey.hops if hop.name.startswith("shop inbound")] == ["rewritten", "started"]


def test_what_another_request_made_the_application_call_is_not_laid_at_the_first(run):
    inbound = [*call("inbound", parent(2), parent(3)), *call("inbound", None, None)]
    outbound = [*call("stock", parent(5), parent(6)), *call("stock", None, None)]
    journey = run({"edge": EDGE, "shop": [*inbound, *outbound]})
    assert found(journey) == [("verify.lost", "edge -> shop inbound (call 2)")]
    parents = {hop.name: journey.hops[hop.parent or 0].name for hop in journey.hops[1:]}
    assert parents["shop stock"] == "shop application"
    assert parents["shop stock (call 2)"] == "shop application (call 2)"


def test_an_application_that_loses_the_second_call_is_named(run):
    calls = [*call("inbound", parent(2), parent(3)), *call("stock", parent(5), parent(6)), *call("stock", None, None)]
    stock = [*call("inbound", parent(6), parent(7)), *call("inbound", None, None)]
    journey = run({"edge": EDGE, "shop": calls, "stock": stock})
    assert found(journey) == [("verify.lost", "shop application -> shop stock (call 2)")]
    parents = {hop.name: journey.hops[hop.parent or 0].name for hop in journey.hops[1:]}
    assert parents["stock inbound (call 2)"] == "shop stock (call 2)"


def test_an_application_that_loses_its_only_call_is_named(run):
    calls = [*call("inbound", parent(2), parent(3)), *call("stock", None, None)]
    assert found(run({"edge": EDGE, "shop": calls})) == [("verify.lost", "shop application")]


def test_a_parent_that_a_proxy_passes_on_is_laid_at_the_one_that_made_it(run):
    application = ReceivedSpan(
        service="shop", name="GET", kind="SERVER", trace_id=SYNTHETIC[0], span_id=f"{9:016x}", parent_id=f"{2:016x}",
        start_ns=1, end_ns=2,
    )  # fmt: skip
    logs = {"edge": EDGE, "shop": call("inbound", parent(2), parent(2))}
    journey = run(logs, LocalBackend("memory", lambda: [application]))
    assert found(journey) == [("verify.orphan", "edge")]
    assert [hop.name for hop in silent_hops(Judgement([*journey.hops], expected=SYNTHETIC[0]), journey.spans)] == [
        "edge"
    ]


def test_health_checks_connections_and_attempts_are_no_calls(run):
    lines = [
        *call("inbound", None, None, user_agent="Envoy/HC"),
        *call("inbound", None, None, user_agent="kube-probe/1.31"),
        *call("inbound", None, None, user_agent="Prometheus/2.53.0"),
        *call("inbound", None, None, user_agent="Blackbox Exporter/0.25.0"),
        *call("inbound", None, None, user_agent="Amazon-Route53-Health-Check-Service (ref 1; report http://amzn.to/x)"),
        {"type": "TcpConnectionEnd", "listener": "inbound", "response_code": 0, "traceparent": None},
        {"listener": "inbound", "method": None, "path": "-", "response_code": 400, "traceparent": None},
        *call("inbound", parent(2), parent(3)),
        {"type": "UpstreamEnd", "listener": "inbound", "method": "GET", "traceparent": None},
    ]
    journey = run({"edge": EDGE, "shop": lines})
    assert (journey.verdict, found(journey)) == ("one", [])


@pytest.mark.parametrize(
    ("code", "details", "arrived"),
    [
        (403, "rbac_access_denied_matched_policy[none]", False),
        (503, "upstream_reset_before_response_started{remote_connection_failure,delayed_connect_error:_111}", False),
        (503, "no_healthy_upstream", False),
        (503, "via_upstream", True),
        (504, "upstream_response_timeout", True),
        (503, "upstream_reset_before_response_started{connection_termination}", True),
        (503, "upstream_reset_before_response_started{overflow}", False),
        (200, "direct_response", False),
        (301, "direct_response", False),
        (403, "csrf_origin_mismatch", False),
        (503, "maintenance_mode", False),
        (500, "ext_proc_error_gRPC_error_14", False),
        (400, "missing_host_header", False),
        (413, "request_payload_too_large", False),
        (404, "direct_response_timeout", False),
        (0, "downstream_remote_disconnect", True),
        (200, None, True),
        (503, "-", True),
    ],
)
def test_an_application_that_got_nothing_is_not_missed(run, code, details, arrived):
    answer = {"response_code": code, "response_code_details": details}
    journey = run({"edge": EDGE, "shop": call("inbound", parent(2), parent(3), **answer)})
    assert ("shop application" in {hop.name for hop in journey.hops}) == arrived


@pytest.mark.parametrize(
    ("own", "codes"),
    [
        ("9" * 32, ["verify.other-trace"]),
        ("9" * 16, ["verify.other-trace"]),
        ("AB" * 8, []),
        ("CD" * 8 + "AB" * 8, []),
        ("1-5759e988-bd862e3fe1be46a994272793", []),
        ("../../x", []),
    ],
)
def test_a_proxys_own_trace_id_is_compared_as_far_as_it_goes(tmp_path, own, codes):
    trace = "cd" * 8 + "ab" * 8
    tail = LogTail("edge", tmp_path / "edge.log")
    line = end("edge", parent(2, trace), trace_id=own)
    (tmp_path / "edge.log").write_text(json.dumps(line) + "\n")
    probe = make_probe(URL, ids=(trace, "1" * 16))
    found = follow(probe, ProbeAnswer(200), Watch(tails=[tail], timeout=0, settle=0, alone=True), 0)
    assert [finding.code for finding in found.findings] == codes


def test_lines_of_attempts_alone_are_looked_at(run):
    lines = [{"type": "UpstreamEnd", "listener": "edge", "method": "GET", "traceparent": None}]
    assert found(run({"edge": lines})) == [("verify.lost", "probe -> edge")]


def test_so_many_calls_that_differ_are_looked_at(run):
    lines = [line for number in range(40) for line in call("edge", parent(1), f"junk-{number}")]
    journey = run({"edge": lines})
    assert len(journey.hops) == 17
    assert journey.hops[-1].note == "24 further calls are not looked at"
    assert {code for code, _ in found(journey)} == {"verify.malformed", "verify.too-many-calls"}


def test_of_calls_that_are_too_many_the_one_in_no_trace_is_looked_at(run):
    lines = [
        line
        for number in range(40)
        for line in call("inbound", parent(2), parent(3), tracestate=f"meshmw=verify,k{number}=1")
    ]
    journey = run({"edge": EDGE, "shop": [*lines, *call("inbound", parent(2), None, tracestate="meshmw=verify")]})
    last = "shop inbound (call 16)"
    assert found(journey) == [("verify.lost", last), ("verify.too-many-calls", last)]
    assert [hop.note for hop in journey.hops if hop.name == last] == ["25 further calls are not looked at"]
    doubted = run({"edge": EDGE, "shop": lines})
    assert (doubted.verdict, found(doubted)) == ("one", [("verify.too-many-calls", last)])
    assert doubted.summary.endswith(f"as far as is known: nothing more of {last}")


def test_states_that_differ_in_a_vendors_values_alone_are_alike(run):
    calls = [
        *call("inbound", parent(2), parent(3), tracestate="meshmw=verify,dd=p:1"),
        *call("inbound", parent(2), parent(4), tracestate="meshmw=verify,dd=p:2"),
    ]
    assert len(run({"edge": EDGE, "shop": calls}).hops) == 4


def test_a_log_without_a_place_for_the_header_is_not_broken(run):
    journey = run({"edge": [{"listener": "edge", "method": "GET", "path": "/"}]})
    assert (journey.verdict, found(journey)) == ("unknown", [("access-log.not-logged", "edge")])
    why = "its format has no place for it, or nothing was sent (omit_empty_values)"
    assert journey.summary == f"UNKNOWN: edge: no line of this log has traceparent: {why}"
    assert journey.hops[1].received == journey.hops[1].sent == {}


def test_of_a_b3_probe_a_log_that_prints_b3_shows_enough(tmp_path):
    tail, probe = LogTail("edge", tmp_path / "edge.log"), make_probe(URL, "b3")
    line = {"method": "GET", "path": "/", "user_agent": probe.agent, "b3": probe.headers["b3"]}
    (tmp_path / "edge.log").write_text(f"{json.dumps(line)}\n")
    journey = follow(probe, ProbeAnswer(200), Watch(tails=[tail], timeout=0, settle=0), 0)
    assert (journey.verdict, found(journey)) == ("one", [])


@pytest.mark.parametrize(
    ("came", "codes"),
    [
        (None, ["access-log.not-logged"]),
        ("00-xyz", ["access-log.not-logged", "verify.malformed"]),
        (parent(2), []),
    ],
)
def test_of_a_b3_probe_a_log_that_prints_traceparent_alone_shows_enough_where_there_is_one(run, came, codes):
    journey = run({"edge": [end("edge", came)]}, variant="b3")
    assert sorted(code for code, _ in found(journey)) == codes
    if came is None:
        what = "UNKNOWN: edge: no line of this log has a B3 header or a valid traceparent: "
        assert (journey.verdict, journey.summary.startswith(what)) == ("unknown", True)


def test_of_a_b3_probe_that_a_log_did_not_see_it_is_not_said_what_it_prints(tmp_path):
    tail = LogTail("edge", tmp_path / "edge.log")
    (tmp_path / "edge.log").write_text(f"{json.dumps(end('edge', None))}\n")
    journey = follow(make_probe(URL, "b3"), ProbeAnswer(200), Watch(tails=[tail], timeout=0, settle=0), 0)
    assert found(journey) == [("verify.not-logged", "edge")]


def test_one_listener_of_a_log_that_has_no_place_for_the_header_is_named(run):
    lines = [*call("inbound", parent(2), parent(3)), {"listener": "calls", "method": "GET", "path": "/"}]
    journey = run({"edge": EDGE, "shop": lines})
    assert (journey.verdict, found(journey)) == ("one", [("access-log.not-logged", "shop calls")])
    assert journey.summary.endswith("as far as is known: nothing more of shop calls")


@pytest.mark.parametrize(
    ("listener", "where"),
    [("shop", "shop"), ("", "shop"), ("out", None), ("outbound", "shop outbound")],
    ids=["named like its log", "without a name", "named like the beginning of another", "outbound"],
)
def test_the_listener_without_a_place_for_the_header_is_named_and_no_other(run, listener, where):
    bare = {"listener": listener, "method": "GET", "path": "/"}
    lines = [*call("inbound", parent(2), parent(3))]
    if where is None:
        # No request: it passed no call of the probe's.
        lines += [{**bare, "user_agent": "kube-probe/1"}, *call("outbound", parent(5), parent(6))]
    else:
        lines.append(bare)
    journey = run({"edge": EDGE, "shop": lines})
    assert found(journey) == ([] if where is None else [("access-log.not-logged", where)])


def test_a_listener_without_a_place_for_the_header_is_known_behind_each_callee(run):
    bare = [
        {"method": "GET", "path": "/", "upstream_cluster": f"outbound|80||{name}.svc"} for name in ("stock", "price")
    ]
    journey = run({"edge": EDGE, "shop": [*call("inbound", parent(2), parent(3)), *bare]})
    assert found(journey) == [("access-log.not-logged", "shop outbound")]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [("verify.lost", "shop application -> shop outbound")]),
        ({"path": "/"}, [("access-log.not-logged", "shop outbound")]),
    ],
    ids=["one format", "another format"],
)
def test_what_both_directions_have_a_place_for_is_lost_where_it_is_left_out(run, more, expected):
    inbound = {"method": "GET", "upstream_cluster": "inbound|80||", "traceparent": parent(2)}
    outbound = {"method": "GET", "upstream_cluster": "outbound|80||stock.ns", **more}
    assert found(run({"edge": EDGE, "shop": [inbound, outbound]})) == expected


def test_a_key_that_is_left_out_where_it_has_no_value_is_one_that_was_looked_at(tmp_path):
    path = tmp_path / "edge.log"
    before = json.dumps({"method": "GET", "path": "/", "traceparent": parent(9, OTHER)})
    path.write_text(f"{before}\n")
    tail, probe = LogTail("edge", path), make_probe(URL)
    with path.open("a") as file:
        file.write(json.dumps({"method": "GET", "path": "/", "user_agent": probe.agent}) + "\n")
    (hop,) = probe_hops([tail], probe)
    assert hop.sent == {"traceparent": None}
