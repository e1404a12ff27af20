"""What `verify` says of spans and branches: clocks that differ, ids that are not unique, several that are silent."""

from __future__ import annotations

import json

import pytest

from meshmw.__main__ import main
from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import LocalBackend, Watch
from meshmw._tools.verify.journey import Hop, Journey
from meshmw._tools.verify.judge import judge_hops
from meshmw._tools.verify.probe import SYNTHETIC, Echo, Probe, ProbeAnswer, echoes_of, make_probe
from meshmw.testing import ReceivedSpan
from tests.tools.planted import Fault, PlantedMesh

URL = "http://mesh/"
TRACE_ID, PARENT_ID = SYNTHETIC
OTHER = "f" * 32
NOW = 10**18
MINUTES_AGO = NOW - 120 * 10**9


def parent(span: int = 2, flags: str = "01", trace: str = TRACE_ID) -> str:
    return f"00-{trace}-{span:016x}-{flags}"


def span(number: int, below: int = 1, *, trace: str = TRACE_ID, start: int = NOW, service: str = "shop", kind="SERVER"):
    return ReceivedSpan(
        service=service, name="GET", kind=kind, trace_id=trace, span_id=f"{number:016x}",
        parent_id=f"{below:016x}" if below else "", start_ns=start, end_ns=start + 1,
    )  # fmt: skip


def journey(*spans: ReceivedSpan, probe: Probe | None = None, echoes: tuple[Echo, ...] = ()) -> Journey:
    backend = LocalBackend("memory", lambda: list(spans), everything=True)
    watch = Watch(backends=[backend], timeout=0, settle=0)
    return follow(probe or make_probe(URL), ProbeAnswer(200, echoes), watch, NOW)


def found(journey: Journey) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in journey.findings]


def judged(*hops: Hop, probe: Probe | None = None):
    probe = probe or make_probe(URL)
    judgement = judge_hops([Hop(name="probe", kind="client", sent=probe.trace_headers), *hops], probe)
    return [(finding.code, finding.where) for finding in judgement.findings]


def test_a_clock_that_is_behind_hides_no_span_of_fresh_ids():
    probe = make_probe(URL, ids=("c" * 32, PARENT_ID))
    late = journey(span(9, trace="c" * 32, start=MINUTES_AGO), probe=probe)
    assert (late.verdict, found(late), len(late.spans)) == ("one", [], 1)


def test_spans_that_seem_an_earlier_probes_are_said():
    old = journey(span(9, start=MINUTES_AGO), span(10, 9, start=MINUTES_AGO))
    assert (old.verdict, found(old), old.spans) == ("unknown", [("verify.too-old", "memory")], ())
    assert "2 spans are left out" in old.summary
    # Nothing is missing where those of this request came.
    beside = journey(span(9, start=MINUTES_AGO), span(11))
    assert (beside.verdict, [(each.severity, each.code) for each in beside.findings]) == (
        "one",
        [("note", "verify.too-old")],
    )
    assert beside.summary == "ONE trace: 1 span, all of one trace"


def test_what_hangs_together_with_the_request_is_the_requests_whatever_its_clock_says():
    # The second service's clock is behind, and the third hangs below it.
    whole = journey(span(9), span(10, 9, start=MINUTES_AGO), span(11, 10), span(12, 11, start=MINUTES_AGO))
    assert (whole.verdict, found(whole), len(whole.spans)) == ("one", [], 4)
    echo = Echo("answer", {"traceparent": parent(7)})
    named = journey(span(8, 7, start=MINUTES_AGO), span(7, start=MINUTES_AGO), echoes=(echo,))
    assert (named.verdict, found(named), len(named.spans)) == ("one", [], 2)


def test_several_lines_of_a_traceparent_in_an_echo_are_malformed():
    (echo,) = echoes_of(json.dumps({"traceparent": [parent(), parent(3)], "baggage": ["a=1", "b=2"]}).encode())
    assert (echo.headers["traceparent"], echo.headers["baggage"]) == (f"{parent()},{parent(3)}", "a=1,b=2")
    assert echoes_of(json.dumps({"traceparent": [parent(), 7]}).encode())[0].headers["traceparent"] is None


def test_an_answer_that_redirects_is_said():
    redirected = follow(make_probe(URL), ProbeAnswer(302), Watch(timeout=0), NOW)
    (finding,) = redirected.findings
    assert (finding.code, finding.what) == ("verify.status", "the answer was 302, which leads to another URL")


def test_two_logs_of_one_name_are_refused(tmp_path, capsys):
    for folder in ("edge", "shop"):
        (tmp_path / folder).mkdir()
    logs = [f"-a{tmp_path / folder / 'access.log'}" for folder in ("edge", "shop")]
    assert main(["verify", URL, *logs]) == 2
    assert "two access logs are called 'access'" in " ".join(capsys.readouterr().err.split())


def test_each_branch_says_where_its_flag_is_cleared():
    edge = Hop(name="edge", kind="proxy", received={"traceparent": parent(1)}, sent={"traceparent": parent()}, parent=0)
    branches = [
        Hop(
            name=name,
            kind="app",
            received={"traceparent": parent()},
            sent={"traceparent": parent(number, "00")},
            parent=1,
        )
        for number, name in enumerate("ab", start=3)
    ]
    behind = Hop(name="c", kind="proxy", received={"traceparent": parent(3, "00")}, parent=2)
    assert judged(edge, *branches, behind) == [("verify.flipped", "a"), ("verify.flipped", "b")]
    again = Hop(name="d", kind="proxy", received={"traceparent": parent(3, "01")}, parent=2)
    assert judged(edge, *branches, again)[2:] == [("verify.sampled-again", "a -> d")]


def test_a_call_that_keeps_what_the_first_lost_is_not_accused():
    state = {"tracestate": "meshmw=verify"}
    app = Hop(
        name="app",
        kind="app",
        received={"traceparent": parent(), **state},
        sent={"traceparent": parent(3, "00"), "tracestate": None},
    )
    kept = {"traceparent": parent(4), **state}
    second = Hop(name="second", kind="proxy", received=kept, sent={**kept, "tracestate": None}, parent=1)
    cleared = Hop(name="third", kind="proxy", received={"traceparent": parent(5, "00"), **state}, parent=1)
    assert judged(app, second, cleared) == [
        ("verify.flipped", "app"),
        ("verify.tracestate-lost", "app"),
        ("verify.tracestate-lost", "second"),
    ]


def test_a_fresh_trace_that_is_not_sampled_has_no_flag_that_was_cleared():
    probe = make_probe(URL, "malformed")
    app = Hop(name="app", kind="app", received={"traceparent": "00-xyz"}, sent={"traceparent": parent(5, "00", OTHER)})
    behind = Hop(name="b", kind="proxy", received={"traceparent": parent(5, "00", OTHER)})
    assert judged(app, behind, probe=probe) == []
    echoes = (Echo("answer", {"traceparent": parent(5, "00", OTHER)}),)
    assert found(journey(probe=probe, echoes=echoes)) == []


def test_each_branch_says_where_its_tracestate_is_lost():
    with_state = {"tracestate": "meshmw=verify"}
    edge = Hop(name="edge", kind="proxy", sent={"traceparent": parent(), **with_state}, parent=0)
    branches = [
        Hop(
            name=name,
            kind="app",
            received={"traceparent": parent(), **with_state},
            sent={"traceparent": parent(3), "tracestate": None},
            parent=1,
        )
        for name in "ab"
    ]
    behind = Hop(name="c", kind="proxy", received={"traceparent": parent(3), "tracestate": None}, parent=2)
    lost = [("verify.tracestate-lost", "a"), ("verify.tracestate-lost", "b")]
    assert judged(edge, *branches, behind) == lost


def test_each_service_that_is_silent_is_named(tmp_path):
    silent = frozenset({"edge", "shop application", "price inbound", "stock application"})
    planted = PlantedMesh(tmp_path, Fault(silent=silent)).run()
    assert sorted(found(planted)) == [
        ("verify.not-exported", "stock application"),
        ("verify.orphan", "edge"),
        ("verify.orphan", "price inbound"),
        ("verify.orphan", "shop application"),
    ]


def test_parents_that_nobody_is_known_to_have_made_are_said_by_who_hangs_below_them():
    parted = journey(span(9), span(20, 99, service="a"), span(21, 98, service="b"), span(22, 97, service="b"))
    assert found(parted) == [("verify.orphan", "a SERVER"), ("verify.orphan", "b SERVER")]
    assert parted.findings[1].what.startswith("2 spans hang below")
    many = journey(span(9), *(span(100 + number, 999 + number, service=f"s{number}") for number in range(30)))
    assert len(many.findings) == 20
    assert "at 10 further places it is the same" in many.findings[0].what


def test_one_id_of_two_services_is_said():
    twins = journey(span(9, service="a"), span(9, service="b"), span(10, 9))
    assert ([each.service for each in twins.spans], found(twins)) == (["a", "b", "shop"], [("verify.same-id", "a, b")])
    forked = journey(span(9), span(9, start=NOW + 5000), span(10), span(10, start=NOW + 5000))
    assert found(forked) == [("verify.same-id", "shop")]
    assert "1 more ids" in forked.findings[0].what
    # Zipkin's client and server share one, and a span that two backends have is one.
    assert found(journey(span(9, kind="CLIENT"), span(9, service="b"))) == []
    assert len(journey(span(9), span(9)).spans) == 1


def test_one_span_of_two_backends_is_one_however_they_spell_it():
    def seen(*answers: list[ReceivedSpan]) -> Journey:
        backends = [LocalBackend(f"memory {number}", lambda spans=each: spans) for number, each in enumerate(answers)]
        return follow(make_probe(URL), ProbeAnswer(200), Watch(backends=backends, timeout=0, settle=0), NOW)

    jaeger = span(9, kind="INTERNAL", service="OTLPResourceNoServiceName", start=NOW - 5000)
    tempo = span(9, kind="UNSPECIFIED", service="")
    for answers in ([jaeger], [tempo]), ([tempo], [jaeger]):
        one = seen(*answers)
        assert (one.verdict, found(one), [each.kind for each in one.spans]) == ("one", [], ["INTERNAL"])
    # Of a client and its server that share an id, each backend may have one; of twins, one may have both.
    shared = seen([span(9, kind="CLIENT")], [span(9, service="b")])
    assert (found(shared), len(shared.spans)) == ([], 2)
    assert found(seen([span(9)], [span(9), span(9, service="b")])) == [("verify.same-id", "shop, b")]


@pytest.mark.parametrize("probe", [make_probe(URL, "malformed"), make_probe(URL, "b3", headers={"x-b3-sampled": "1"})])
def test_a_trace_whose_id_nobody_knows_is_not_missed_where_ids_are_asked_for(probe):
    def seen(*, everything: bool) -> Journey:
        backend = LocalBackend("memory", list, everything=everything)
        return follow(probe, ProbeAnswer(200), Watch(backends=[backend], timeout=0, settle=0), NOW)

    assert (seen(everything=False).verdict, found(seen(everything=False))) == ("unknown", [])
    # One that holds all that there is would hold it.
    assert found(seen(everything=True)) == [("verify.no-spans", "memory")]


def test_an_unsampled_probe_beside_a_stray_trace_is_a_split():
    stray = journey(span(9, 0, trace="d" * 32), probe=make_probe(URL, "unsampled"))
    assert (stray.verdict, found(stray)) == ("broken", [("verify.split", "shop SERVER")])
    both = journey(span(9), span(9, 0, trace="d" * 32), probe=make_probe(URL, "unsampled"))
    assert found(both) == [("verify.split", "shop SERVER"), ("verify.recorded-unsampled", "shop")]


B3 = f"{OTHER}-{'a' * 16}"


@pytest.mark.parametrize(
    ("headers", "trace_id", "sampled"),
    [
        ({"b3": f"{B3}-1"}, OTHER, True),
        ({"B3": f"{B3}-0"}, OTHER, False),
        ({"b3": B3}, OTHER, None),
        ({"b3": "0"}, "", False),
        ({"b3": "junk"}, "", None),
        ({"X-B3-TraceId": OTHER, "x-b3-spanid": "a" * 16, "x-b3-sampled": "1"}, OTHER, True),
        ({"x-b3-sampled": "0"}, "", False),
        ({"traceparent": parent(7, trace=OTHER)}, OTHER, True),
    ],
)
def test_a_b3_of_ones_own_is_the_one_looked_for(headers, trace_id, sampled):
    probe = make_probe(URL, "b3", headers=headers)
    assert (probe.trace_id, probe.sampled) == (trace_id, sampled)
    # None of the probe's own stands beside it.
    assert set(probe.headers) - {"user-agent", "x-request-id"} == {name.lower() for name in headers}


def test_other_headers_of_ones_own_win_and_keep_the_trace():
    probe = make_probe(URL, headers={"x-request-id": "mine", "user-agent": "me/1", "b3": f"{B3}-1"})
    assert (probe.request_id, probe.agent, probe.trace_id) == ("mine", "me/1", TRACE_ID)
    assert make_probe(URL, "both", headers={"b3": f"{B3}-1"}).trace_id == TRACE_ID


@pytest.mark.parametrize(
    ("came", "said"),
    [
        ({"traceparent": None, "b3": "0"}, "no trace: its b3 holds the decision not to record, and no ids"),
        ({"b3": "d"}, "no trace: its b3 holds the decision to record, and no ids"),
        ({"x-b3-traceid": "junk", "b3": None}, "a malformed B3 header"),
        ({"b3": f"{'0' * 32}-{'a' * 16}-1"}, "a malformed B3 header"),
        ({"traceparent": None, "b3": None}, "no B3 header"),
        ({"b3": f"{OTHER}-{'a' * 16}-0"}, f"another trace ({OTHER})"),
    ],
)
def test_what_b3_says_without_the_trace(came, said):
    probe = make_probe(URL, "b3")
    hops = [Hop(name="probe", kind="client", sent=probe.trace_headers), Hop(name="a", kind="proxy", received=came)]
    (finding,) = judge_hops(hops, probe).findings
    assert finding.what == f"probe had the trace, and a received {said}"


@pytest.mark.parametrize("came", [{"b3": "junk", "x-b3-traceid": TRACE_ID}, {"x-b3-traceid": TRACE_ID[16:]}])
def test_junk_in_one_form_of_b3_hides_no_trace_in_the_other(came):
    assert judged(Hop(name="a", kind="proxy", received=came), probe=make_probe(URL, "b3")) == []


def test_of_a_b3_without_ids_the_trace_that_is_begun_is_the_one_looked_for():
    probe = make_probe(URL, "b3", headers={"b3": "0", "tracestate": "a=1"})
    app = Hop(name="a", kind="app", received={"b3": "0"}, sent={"traceparent": parent(5, "00", OTHER)})
    assert judged(app, Hop(name="b", kind="proxy", received={"traceparent": None, "b3": None}), probe=probe) == [
        ("verify.lost", "a -> b")
    ]
    blind = journey(probe=probe, echoes=(Echo("answer", {"b3": "0"}),))
    assert blind.summary.startswith("UNKNOWN: no trace was sent, and nothing shows the trace that was begun")
