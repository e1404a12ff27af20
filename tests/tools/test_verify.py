"""What became of a probe, judged from made-up headers, logs, echoes and spans; real ones are next door."""

from __future__ import annotations

import json

import pytest

from meshmw.__main__ import main
from meshmw._notices import header_shown
from meshmw._tools.verify import follow, join_hops
from meshmw._tools.verify.evidence import BackendError, HttpBackend, LocalBackend, Watch
from meshmw._tools.verify.journey import Hop, Journey, JourneySpan, journey_spans, maker_of, with_orphans
from meshmw._tools.verify.judge import judge_hops
from meshmw._tools.verify.logs import LogTail, probe_hops
from meshmw._tools.verify.probe import (
    SYNTHETIC,
    VARIANTS,
    Echo,
    ProbeAnswer,
    ProbeError,
    echoes_of,
    make_probe,
    random_ids,
    send,
)
from meshmw.testing import ReceivedSpan
from tests.tools.test_backends import otlp
from tests.tools.test_http_client import body as answer
from tests.tools.test_http_client import serving

TRACE_ID, PARENT_ID = SYNTHETIC
OTHER = "f" * 32
URL = "http://127.0.0.1:9/"


def parent(trace_id: str = TRACE_ID, span: int = 2, flags: str = "01") -> str:
    return f"00-{trace_id}-{span:016x}-{flags}"


def tp(value: str | None, **others: str | None) -> dict[str, str | None]:
    return {"traceparent": value, **others}


def hop(name: str, received=None, sent=None, kind: str = "proxy", trace_id: str = "") -> Hop:
    return Hop(name=name, kind=kind, received=received or {}, sent=sent or {}, trace_id=trace_id)  # type: ignore[arg-type]


def judge(*hops: Hop, variant: str = "w3c"):
    probe = make_probe(URL, variant)  # type: ignore[arg-type]
    return judge_hops([hop("probe", sent=probe.trace_headers, kind="client"), *hops], probe)


def codes(judgement) -> list[tuple[str, str]]:
    return [(finding.code, finding.where) for finding in judgement.findings]


def test_the_probe_is_recognised_at_once():
    assert make_probe(URL).headers["traceparent"] == "00-00000000000000000000000000000001-0000000000000001-01"
    assert {variant: make_probe(URL, variant).trace_headers for variant in VARIANTS} == {
        "w3c": {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "meshmw=verify"},
        "unsampled": {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00", "tracestate": "meshmw=verify"},
        "malformed": {"traceparent": "00-xyz", "tracestate": "meshmw=verify"},
        "b3": {"b3": f"{TRACE_ID}-{PARENT_ID}-1"},
        "both": {
            "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01",
            "tracestate": "meshmw=verify",
            "b3": f"{0xB3:032x}-{PARENT_ID}-1",
        },
    }
    assert make_probe(URL, headers={"X-Request-ID": "mine"}).headers["x-request-id"] == "mine"
    trace_id, parent_id = random_ids()
    assert (len(trace_id), len(parent_id)) == (32, 16)


@pytest.mark.parametrize(
    ("hops", "found"),
    [
        ([hop("a", tp(parent()), tp(parent(span=3))), hop("b", tp(parent(span=3)))], []),
        ([hop("a", tp(parent()), tp(None)), hop("b", tp(None))], [("verify.lost", "a")]),
        ([hop("a", tp(parent()), tp(parent())), hop("b", tp(None))], [("verify.lost", "a -> b")]),
        ([hop("a", {}, tp(None))], [("verify.lost", "probe -> a")]),
        ([hop("app", tp(parent()), tp(parent(OTHER)), kind="app")], [("verify.restarted", "app")]),
        ([hop("app", tp(parent()), kind="app"), hop("b", tp(None))], [("verify.lost", "app -> b")]),
        ([hop("a", tp(parent()), tp(""))], [("verify.malformed", "a")]),
        ([hop("a", tp(parent()), tp(parent()), trace_id=OTHER)], [("verify.other-trace", "a")]),
        ([hop("a", tp(parent()), kind="app", trace_id=OTHER)], [("verify.other-trace", "a")]),
        # What comes after a loss is its consequence.
        (
            [hop("a", tp(None)), hop("b", tp(None), tp(parent(OTHER))), hop("c", tp(parent(OTHER)))],
            [("verify.lost", "probe -> a")],
        ),
        ([hop("a", tp(parent(flags="00")), tp(parent(flags="00")))], [("verify.flipped", "probe -> a")]),
        ([hop("a", tp(parent()), tp(parent(flags="00")))], [("verify.flipped", "a")]),
        (
            [hop("a", tp(parent(), tracestate="meshmw=verify"), tp(parent(), tracestate=None))],
            [("verify.tracestate-lost", "a")],
        ),
        ([hop("a", {"b3": "x"})], []),
    ],
)
def test_where_a_trace_breaks(hops, found):
    assert codes(judge(*hops)) == found


@pytest.mark.parametrize(
    ("variant", "hops", "found"),
    [
        ("unsampled", [hop("a", tp(parent(flags="00")), tp(parent()))], [("verify.sampled-again", "a")]),
        ("malformed", [hop("a", tp("00-xyz"), tp("00-xyz")), hop("app", tp("00-xyz"), tp(parent(OTHER)), "app")], []),
        ("malformed", [hop("app", tp("00-xyz"), tp("00-xyz"), "app")], [("verify.malformed-forwarded", "app")]),
        (
            "malformed",
            [hop("app", tp("00-xyz"), tp(parent(OTHER)), "app"), hop("b", tp(None))],
            [("verify.lost", "app -> b")],
        ),
        ("malformed", [hop("app", tp("00-xyz"), kind="app", trace_id=OTHER)], []),
        ("b3", [hop("a", tp(None, b3=f"{TRACE_ID}-{PARENT_ID}-1"), tp(parent()))], []),
        ("b3", [hop("a", tp(None, **{"x-b3-traceid": TRACE_ID[16:]}))], []),
        ("b3", [hop("a", tp(None, **{"x-b3-traceid": None}))], [("verify.lost", "probe -> a")]),
        ("b3", [hop("a", tp(None, b3="zz"))], [("verify.malformed", "probe -> a")]),
        ("b3", [hop("a", tp("x", b3=f"{TRACE_ID}-{PARENT_ID}"))], []),
        ("b3", [hop("a", tp(None))], []),
        ("both", [hop("a", tp(parent()), tp(parent()))], []),
        ("both", [hop("a", tp(parent()), tp(parent(f"{0xB3:032x}")))], [("verify.restarted", "a")]),
    ],
)
def test_the_variants(variant, hops, found):
    assert codes(judge(*hops, variant=variant)) == found


@pytest.mark.parametrize(
    ("came", "went", "change"),
    [
        (parent(), parent(), "kept"),
        (parent(), parent(span=3), "rewritten"),
        (parent(), parent(OTHER), "restarted"),
        (None, parent(), "started"),
        (parent(), None, "removed"),
        (None, None, "absent"),
        ("x", "x", "malformed"),
    ],
)
def test_what_each_hop_did(came, went, change):
    assert judge(hop("a", tp(came), tp(went))).hops[1].change == change


def test_values_are_shown_escaped():
    assert (header_shown(None), header_shown(""), header_shown("a\x1b")) == ("absent", "(empty)", "a\\x1b")


def test_applications_tell_what_they_got():
    headers = {"Host": "a", "User-Agent": "b", "traceparent": parent()}
    nested = {"headers": headers, "trace_id": TRACE_ID, "downstream": {"headers": {"host": "x", "user-agent": "y"}}}
    first, second = echoes_of(json.dumps(nested).encode())
    assert (first.where, first.trace_id, first.headers["traceparent"]) == ("answer", TRACE_ID, parent())
    assert (second.where, second.trace_id, second.headers["traceparent"]) == ("answer.downstream", "", None)
    assert echoes_of(json.dumps([{"traceparent": [parent()]}]).encode())[0].headers["traceparent"] == parent()
    assert echoes_of(b'{"traceparent": 7, "trace_id": "x"}') == (Echo("answer", dict.fromkeys(first.headers), ""),)
    for body in (b"", b"<html>", b'"x"', b'{"a": 1}', b'{"host": "a"}', b"[" * 100_000):
        assert echoes_of(body) == ()
    deep = {"traceparent": "x"}
    for _ in range(30):
        deep = {"a": deep}
    assert echoes_of(json.dumps(deep).encode()) == ()
    assert len(echoes_of(json.dumps([{"traceparent": "x"}] * 100).encode())) == 50


def test_the_way_is_put_together():
    probe = make_probe(URL)
    proxies = [hop("edge"), hop("shop application", kind="app"), hop("late application", kind="app")]
    echoes = [Echo("answer", tp(parent()), TRACE_ID)]
    found = join_hops(probe, proxies, echoes)
    assert [(each.name, each.trace_id) for each in found] == [
        ("probe", ""),
        ("edge", ""),
        ("shop application", TRACE_ID),
        ("late application", ""),
    ]
    assert join_hops(probe, [], echoes)[1].name == "application (answer)"


def span(span_id: str, parent_id: str = PARENT_ID, *, trace_id: str = TRACE_ID, **fields) -> ReceivedSpan:
    return ReceivedSpan(
        service="shop",
        name="GET",
        kind="SERVER",
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        start_ns=1,
        **fields,
    )


def journey(*spans: ReceivedSpan, variant: str = "w3c", echo: str | None = None, status: int = 200, **watch) -> Journey:
    probe = make_probe(URL, variant)  # type: ignore[arg-type]
    backend = LocalBackend("memory", lambda: list(spans), everything=True)
    echoes = () if echo is None else (Echo("answer", tp(echo)),)
    options = {"backends": [backend], "timeout": 0.05, "settle": 0.0, **watch}
    return follow(probe, ProbeAnswer(status, echoes, OTHER), Watch(**options), 0)


def test_spans_decide_as_well():
    fine = journey(span("a" * 16), span("b" * 16, "a" * 16), echo=parent(span=1))
    assert (fine.verdict, fine.findings) == ("one", ())
    assert "2 spans" in fine.summary
    assert [found.code for found in journey(echo=parent()).findings] == ["verify.no-spans"]
    orphan = journey(span("a" * 16), span("b" * 16, "c" * 16))
    assert ([found.code for found in orphan.findings], orphan.verdict) == (["verify.orphan"], "broken")
    split = journey(span("a" * 16), span("b" * 16, "", trace_id=OTHER))
    assert [found.code for found in split.findings] == ["verify.split"]
    recorded = journey(span("a" * 16), variant="unsampled")
    assert [found.code for found in recorded.findings] == ["verify.recorded-unsampled"]
    assert journey(variant="unsampled", echo=parent(flags="00")).findings == ()
    watch = Watch(backends=[LocalBackend("m", lambda: [span("a" * 16)])], timeout=0)
    old = follow(make_probe(URL), ProbeAnswer(200), watch, 10**18)
    assert old.spans == ()


def test_what_is_not_known_is_said():
    blind = journey(backends=[])
    assert blind.verdict == "unknown"
    assert blind.summary.startswith("UNKNOWN")
    refused = journey(backends=[], echo=parent(), status=503)
    assert [found.code for found in refused.findings] == ["verify.status"]
    assert refused.verdict == "one"


def test_a_backend_that_fails_is_said_until_it_answers():
    class Broken:
        name = "jaeger"
        failures = 10**6

        def spans(self, trace_ids):
            self.failures -= 1
            if self.failures >= 0:
                raise BackendError("jaeger cannot be reached: no")
            return journey_spans([span("a" * 16)])

    broken = journey(backends=[Broken()], echo=parent())
    assert [found.code for found in broken.findings] == ["verify.backend"]
    recovering = Broken()
    recovering.failures = 1
    assert journey(backends=[recovering], echo=parent(span=1), timeout=5.0).findings == ()


def test_logs_are_read_from_where_they_ended(tmp_path):
    path = tmp_path / "edge.log"
    old = f'{{"listener":"edge","traceparent":"{parent(OTHER)}"}}\n'
    path.write_text(old * 3)
    tail, missing = LogTail("edge", path), LogTail("gone", tmp_path / "gone.log")
    assert (tail.lines, tail.sides_without("traceparent"), missing.lines, missing.printed) == ([], [], [], {})
    with path.open("a") as file:
        file.write(
            f'{{"listener":"edge","traceparent":"{parent()}","response_code":503,"response_code_details":"UF"}}\n"ha'
        )
    (hop_found,) = probe_hops([tail, missing], make_probe(URL))
    assert (hop_found.name, hop_found.note) == ("edge", "answered 503 (UF)")
    watch = Watch(tails=[tail, missing], timeout=0.0)
    found = follow(make_probe(URL), ProbeAnswer(200), watch, 0)
    assert [(each.code, each.where) for each in found.findings] == [("verify.no-log", "gone")]


def test_lines_are_the_probes_by_any_id_that_leads_to_it(tmp_path):
    path = tmp_path / "a.log"
    tail, probe = LogTail("a", path), make_probe(URL)
    lines = [
        {
            "listener": "inbound",
            "type": "DownstreamStart",
            "user_agent": probe.agent,
            "request_id": "r1",
            "tp": parent(),
        },
        {"listener": "calls", "type": "DownstreamStart", "request_id": "r1", "user_agent": "curl", "tp": None},
        {"listener": "calls", "type": "DownstreamPeriodic", "request_id": "r1"},
        {"listener": "calls", "request_id": "r1", "tp": parent(OTHER), "trace_id": OTHER},
        {"listener": "inbound", "user_agent": "app/1", "request_id": "r2", "tp": parent("e" * 32)},
        {"listener": "inbound", "user_agent": "curl", "request_id": "r3", "tp": parent("d" * 32)},
        {"listener": "inbound", "user_agent": probe.agent, "request_id": "r1", "tp": parent(), "trace_id": "-"},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    inbound, application, calls = probe_hops([tail], probe)
    assert (application.kind, application.sent) == ("app", {"traceparent": None})
    assert application.received == inbound.sent == {"traceparent": parent()}
    assert (calls.name, calls.trace_id, calls.note) == ("a calls", OTHER, "")
    alone = LogTail("b", tmp_path / "b.log")
    (tmp_path / "b.log").write_text('{"tp":null,"listener":"inbound"}\n')
    assert [each.name for each in probe_hops([alone], probe)] == []
    assert [each.name for each in probe_hops([alone], probe, alone=True)] == ["b inbound", "b application"]


def test_a_log_whose_name_begins_like_anothers_is_not_taken_for_it(tmp_path):
    tails = [LogTail(name, tmp_path / name) for name in ("shop", "shop-2")]
    (tmp_path / "shop").touch()
    (tmp_path / "shop-2").write_text(json.dumps({"traceparent": parent(), "listener": "inbound"}) + "\n")
    journey = follow(make_probe(URL), ProbeAnswer(200), Watch(tails=tails, timeout=0, settle=0), 0)
    assert [(finding.code, finding.where) for finding in journey.findings] == [("verify.not-logged", "shop")]
    assert journey.sources[1:] == ("access log shop: 0 hops", "access log shop-2: 1 hop")


def test_a_backend_is_asked_for_trace_ids_alone(tmp_path):
    class Backend:
        name = "jaeger"
        asked: list[str] = []

        def spans(self, trace_ids):
            self.asked += trace_ids
            return []

    backend, tail = Backend(), LogTail("edge", tmp_path / "edge.log")
    line = {"listener": "edge", "traceparent": parent(), "trace_id": f"../../{'f' * 26}"}
    (tmp_path / "edge.log").write_text(json.dumps(line) + "\n")
    follow(make_probe(URL), ProbeAnswer(200), Watch(tails=[tail], backends=[backend], timeout=0.0), 0)
    assert backend.asked == [TRACE_ID]


def test_a_log_without_traceparent_is_said(tmp_path):
    path = tmp_path / "edge.log"
    path.write_text('[t] "GET / HTTP/1.1" 200 - 0 1 1 0 "-" "a" "r" "s" "1.1.1.1:1"\n' * 2)
    found = follow(make_probe(URL), ProbeAnswer(200), Watch(tails=[LogTail("edge", path)], timeout=0.0), 0)
    assert [each.code for each in found.findings] == ["access-log.not-logged"]


def test_an_answer_that_does_not_come_is_said():
    with pytest.raises(ProbeError, match=r"http://127\.0\.0\.1:9/ did not answer: "):
        send(make_probe(URL), timeout=1.0)
    with pytest.raises(ProbeError, match="did not answer"):
        send(make_probe("http://[", "w3c"))


@pytest.mark.parametrize(
    ("headers", "trace_id"),
    [
        ({"traceresponse": f"00-{OTHER}-{'a' * 16}-01"}, OTHER),
        ({"server-timing": f'traceparent;desc="00-{OTHER}-{"a" * 16}-01"'}, OTHER),
        ({"x-trace-id": OTHER}, OTHER),
        ({"x-trace-id": "nonsense"}, ""),
    ],
)
def test_an_answers_headers_name_the_trace(headers, trace_id):
    lines = [f"{name}: {value}" for name, value in headers.items()]
    with serving(answer(b"x" * (3 << 20), *lines)) as (url, _):
        assert send(make_probe(url)).trace_id == trace_id


def test_a_journey_survives_its_json():
    found = journey(span("a" * 16), span("b" * 16, "c" * 16), echo=parent())
    again = Journey.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert again.trace_ids == (TRACE_ID,)
    assert [each.span_id for each in again.roots] == ["a" * 16, "b" * 16]
    assert list(again.in_order()) == [(root, 0) for root in again.roots]


def test_proxies_and_applications_are_distinguished():
    assert maker_of("envoy", {}) == "proxy"
    assert maker_of("", {"guid:x-request-id": "x"}) == "proxy"
    assert maker_of("", {"component": "proxy"}) == "proxy"
    assert maker_of("meshmw", {}) == "app"
    assert with_orphans([JourneySpan(trace_id="a", span_id="b", parent_id="")])[0].orphan is False


def test_a_key_of_a_megabyte_names_no_hop(capsys):
    document = {
        "k" * 900_000: {"below": {"headers": {"traceparent": parent(), "host": "a"}}},
        "b": {"traceparent": "x"},
    }
    with serving(answer(json.dumps(document).encode())) as (url, _):
        main(["verify", url])
        assert len(capsys.readouterr().out) < 10_000
        assert max(len(echo.where) for echo in send(make_probe(url)).echoes) < 100


def test_the_trace_that_a_header_of_ones_own_names_is_the_one_looked_for():
    mine = f"00-{OTHER}-{7:016x}"
    found = {flags: make_probe(URL, headers={"Traceparent": f"{mine}-{flags}"}) for flags in ("01", "00")}
    assert [(each.variant, each.trace_id, each.parent_id) for each in found.values()] == [
        ("w3c", OTHER, f"{7:016x}"),
        ("unsampled", OTHER, f"{7:016x}"),
    ]
    assert make_probe(URL, headers={"traceparent": "00-xyz"}).variant == "malformed"


def test_a_tracestate_of_ones_own_is_the_one_looked_for():
    probe = make_probe(URL, headers={"tracestate": "a=1,b=2"})
    first = hop("probe", sent=probe.trace_headers, kind="client")
    lost = ["verify.tracestate-lost"]
    for state, found in (("c=3,b=9,a=1", []), ("meshmw=verify", lost), ("", lost)):
        judged = judge_hops([first, hop("a", tp(parent(), tracestate=state))], probe)
        assert [code for code, _ in codes(judged)] == found


@pytest.mark.parametrize("product", ["nginx", "", "envoy"])
def test_who_clears_the_flag_is_said_in_the_words_of_its_product(product):
    proxy = Hop(name="a", kind="proxy", received=tp(parent()), sent=tp(parent(flags="00")), product=product)
    (finding,) = judge(proxy).findings
    assert ("this nginx decides anew" in finding.why) == (product == "nginx")
    assert ("otel_trace_context" in finding.fix) == (product == "nginx")
    assert ("Istio" in finding.fix) == (product == "")


def test_of_a_trace_that_came_in_part_nothing_is_said_to_be_missing():
    orphan = otlp("1" * 32, "a" * 16, "b" * 16, 2, 0)
    document = {"trace": {"resourceSpans": [orphan]}, "status": "PARTIAL", "message": "too large"}
    with serving(answer(json.dumps(document).encode())) as (url, _):
        probe = make_probe(URL, ids=("1" * 32, "c" * 16))
        watch = Watch(backends=[HttpBackend("tempo", url)], timeout=0, settle=0)
        found = follow(probe, ProbeAnswer(200), watch, 0)
    assert [each.code for each in found.findings] == ["verify.partial"]
    assert found.verdict == "one"
    assert found.summary.endswith(f"as far as is known: nothing more of tempo at {url}")


def test_spans_are_one_or_many():
    assert "1 span hangs below" in journey(span("a" * 16), span("b" * 16, "c" * 16)).findings[0].what
    several = journey(span("a" * 16), span("b" * 16, "c" * 16), span("d" * 16, "c" * 16))
    assert "2 spans hang below" in several.findings[0].what


def test_where_an_application_or_its_proxy_may_have_cleared_the_flag_both_are_said():
    app = hop("shop application", tp(parent()), kind="app")
    outbound = Hop(name="shop outbound", kind="proxy", sent=tp(parent(flags="00")), product="istio")
    (finding,) = judge(app, outbound).findings
    assert finding.where == "shop application -> shop outbound"
    assert "randomSamplingPercentage" in finding.fix
    assert "random_sampling" not in finding.fix
    assert "OTEL_TRACES_SAMPLER" in finding.fix
    received = Hop(name="shop outbound", kind="proxy", received=tp(parent(flags="00")), product="istio")
    (finding,) = judge(app, received).findings
    assert finding.where == "shop application -> shop outbound"
    assert "Envoy" not in finding.why
    assert "randomSamplingPercentage" not in finding.fix
