"""What `verify` reads of access logs as they lie on machines: wrapped, rotated, of other programs, not there."""

from __future__ import annotations

import json

import pytest

from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import Watch
from meshmw._tools.verify.logs import LogTail, probe_hops
from meshmw._tools.verify.probe import SYNTHETIC, ProbeAnswer, make_probe

PROBE = make_probe("http://mesh/")
PARENT = f"00-{SYNTHETIC[0]}-{2:016x}-01"
TIME = "2026-11-30T10:00:00.000000000Z"


def line(parent: str | None = PARENT, **more: object) -> str:
    return json.dumps({"method": "GET", "path": "/", "response_code": 200, "traceparent": parent, **more})


def docker(text: str) -> str:
    return json.dumps({"log": f"{text}\n", "stream": "stdout", "time": TIME})


WRAPPED = {
    "plain": lambda text: text,
    "CRI": lambda text: f"{TIME} stdout F {text}",
    "CRI in two parts": lambda text: f"{TIME} stdout P {text[:40]}\n{TIME} stdout F {text[40:]}",
    "Docker": docker,
    "stern": lambda text: f"shop-6d8-x istio-proxy {text}",
    "kubectl logs --prefix": lambda text: f"[pod/shop-6d8/istio-proxy] {text}",
}


def hops(tail: LogTail) -> list[tuple[str, object]]:
    return [(hop.name, hop.sent.get("traceparent")) for hop in probe_hops([tail], PROBE)]


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("known", [True, False], ids=["seen before", "new"])
def test_wrappers_are_taken_off(tmp_path, wrap, known):
    path = tmp_path / "shop.log"
    path.write_text(f"{wrap(line(None))}\n" * 3 if known else "")
    tail = LogTail("shop", path)
    assert hops(tail) == []
    for _ in range(2):
        with path.open("a") as file:
            file.write(f"{wrap(line())}\n")
        assert hops(tail) == [("shop", PARENT)]
    assert len(tail.lines) == 2
    assert tail.sides_without("traceparent") == []


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_log_without_the_header_is_said(tmp_path, wrap):
    path = tmp_path / "shop.log"
    path.write_text(f"{wrap(json.dumps({'method': 'GET', 'path': '/', 'response_code': 200}))}\n" * 3)
    found = follow(PROBE, ProbeAnswer(200), Watch(tails=[LogTail("shop", path)], timeout=0), 0)
    assert [each.code for each in found.findings] == ["access-log.not-logged"]


def test_a_log_that_is_rotated_or_emptied_is_read_on(tmp_path):
    path = tmp_path / "edge.log"
    path.write_text(f"{line(None)}\n" * 9)
    tail = LogTail("edge", path)
    path.rename(tmp_path / "edge.log.1")
    assert tail.lines == []
    path.write_text(f"{line()}\n")
    assert hops(tail) == [("edge", PARENT)]
    path.write_text("")
    assert len(tail.lines) == 1
    path.write_text(f"{line()}\n")
    assert len(tail.lines) == 2


def test_what_another_program_says_first_decides_nothing(tmp_path):
    path = tmp_path / "shop.log"
    path.write_text("starting\n" * 9)
    tail = LogTail("shop", path)
    with path.open("a") as file:
        file.write("listening\n")
    assert (tail.lines, tail.is_unreadable) == ([], True)
    with path.open("a") as file:
        file.write(f"{line()}\n")
    assert hops(tail) == [("shop", PARENT)]
    assert not tail.is_unreadable


def test_lines_in_no_format_are_said(tmp_path):
    path = tmp_path / "shop.log"
    tail = LogTail("shop", path)
    path.write_text("what\nis this\n")
    found = follow(PROBE, ProbeAnswer(200), Watch(tails=[tail], timeout=0), 0)
    assert [each.code for each in found.findings] == ["verify.unknown-format"]
    assert found.verdict == "unknown"


def test_the_calls_of_an_istio_sidecar_are_told_apart_by_whom_they_reach(tmp_path):
    path = tmp_path / "shop.log"
    tail = LogTail("shop", path)
    inbound = line(upstream_cluster="inbound|8000||", request_id="a")
    calls = [line(upstream_cluster=f"outbound|80||{name}.ns.svc.cluster.local", request_id="a") for name in ("b", "c")]
    path.write_text("\n".join([inbound, calls[0], ""]))
    assert [hop.name for hop in probe_hops([tail], PROBE)] == ["shop inbound", "shop application", "shop outbound"]
    path.write_text("\n".join([inbound, *calls, ""]))
    names = ["shop inbound", "shop application", "shop outbound b", "shop outbound c"]
    assert [hop.name for hop in probe_hops([tail], PROBE)] == names
    assert {hop.product for hop in probe_hops([tail], PROBE) if hop.kind == "proxy"} == {"istio"}


def test_nginx_is_known_by_its_variables(tmp_path):
    from meshmw._tools.access_log.formats import format_of

    path = tmp_path / "nginx.log"
    tail = LogTail("nginx", path, format_of('$remote_addr "$request" $status "$http_traceparent"'))
    path.write_text(f'127.0.0.1 "GET / HTTP/1.1" 200 "{PARENT}"\n')
    (hop,) = probe_hops([tail], PROBE)
    assert (hop.product, hop.sent["traceparent"]) == ("nginx", PARENT)
