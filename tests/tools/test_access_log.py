"""Counts and hops of access logs, in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import threading
from pathlib import Path

import pytest

from meshmw._tools.access_log import MAX_LINE, Analysis, Source, open_source, side_of
from meshmw._tools.access_log.command import judge_access_logs
from meshmw._tools.access_log.counts import Places, classify, route_of, upstream_of
from meshmw._tools.access_log.formats import format_of
from meshmw._tools.access_log.joins import JoinedLogs, Sample

FORMAT = "%REQ(X-REQUEST-ID)% %REQ(:METHOD)% %REQ(:PATH)% %ACCESS_LOG_TYPE% %REQ(BAGGAGE)% %REQ(TRACEPARENT)%"


def parent(trace: int, flags: str = "01") -> str:
    return f"00-{trace:032x}-{1:016x}-{flags}"


def source(name: str, *lines: str) -> Source:
    return Source(name, io.BytesIO("".join(f"{line}\n" for line in lines).encode()))


def line(
    traceparent: str, *, rid: str = "-", path: str = "/a", method: str = "GET", kind: str = "-", bag: str = "-"
) -> str:
    return f"{rid} {method} {path} {kind} {bag} {traceparent}"


def read(*logs: list[str], **options: int):
    analysis = Analysis(**options)
    for index, lines in enumerate(logs):
        analysis.read(source(f"hop{index}", *lines), format_of(FORMAT))
    return analysis.report()


def codes(report, max_missing: float = 1.0) -> list[str]:
    return [finding.code for finding in judge_access_logs(report, max_missing)]


def test_each_kind_is_counted_by_route_and_upstream():
    report = read(
        [
            line(parent(1)),
            line(parent(2, "00"), path="/a?x=1"),
            line("-"),
            line("-", bag="user=a"),
            line(""),
            line("00-xyz"),
            line(parent(0xABC).upper(), path="/orders/17"),
            line("-", path="-", method="-"),
            "something else",
        ]
    )
    (hop,) = report.hops
    total = hop.places.total
    assert dict(total.kinds) == {"valid": 2, "missing": 2, "empty": 1, "malformed": 2, "refused": 1}
    assert (total.unsampled, total.stripped, hop.lines, hop.broken) == (1, 1, 9, 1)
    assert {route for route, _ in hop.places.places} == {"GET /a", "GET /orders/*", "- -"}
    assert dict(hop.places.reasons) == {"hex": 1, "case": 1}
    assert set(codes(report)) == {
        "access-log.malformed",
        "access-log.empty",
        "access-log.stripped",
        "access-log.broken",
    }
    assert "access-log.missing" in codes(report, 0.1)
    found = report.to_json()["hops"][0]
    assert found["total"]["shares"]["valid"] == 0.25
    assert found["routes"][0]["route"] == "GET /a"


def test_a_format_without_traceparent_is_said():
    analysis = Analysis()
    analysis.read(source("edge", "/a"), format_of("%REQ(:PATH)%"))
    assert codes(analysis.report()) == ["access-log.not-logged"]


def test_the_first_place_where_a_trace_is_lost_is_named_by_request_id():
    report = read(
        [line(parent(n), rid=f"r{n}") for n in range(1, 5)],
        [line(parent(n), rid=f"r{n}") for n in range(1, 5)],
        [line(parent(n + 100), rid=f"r{n}") for n in range(1, 4)] + [line("-", rid="r4")],
        [line(parent(n + 100), rid=f"r{n}") for n in range(1, 4)],
    )
    loss = report.first_loss
    assert loss is not None
    assert (loss.sender, loss.receiver, loss.joined, loss.lost) == ("hop1", "hop2", 4, 4)
    assert loss.example == (f"{1:032x}", f"{101:032x}", "r1")
    (finding,) = [each for each in judge_access_logs(report) if each.code == "access-log.lost"]
    assert finding.where == "hop1 -> hop2"
    assert report.to_json()["first_loss"]["lost"] == 4


def test_without_request_ids_a_trace_that_never_arrives_is_lost():
    report = read([line(parent(1))], [line(parent(2))])
    assert report.first_loss is not None
    assert "none of 1 trace ids" in judge_access_logs(report)[0].what
    assert read([line(parent(1)), line(parent(2))], [line(parent(2))]).first_loss is None


def test_a_proxy_that_strips_is_seen_in_its_own_log():
    report = read(
        [
            line(parent(1), rid="r", kind="DownstreamStart"),
            line(parent(1), rid="r", kind="DownstreamPeriodic"),
            line("-", rid="r", kind="DownstreamEnd"),
        ]
    )
    assert report.hops[0].places.total.total == 1
    assert report.first_loss is not None
    assert (report.first_loss.sender, report.first_loss.receiver) == ("hop0 (in)", "hop0 (out)")
    assert report.first_loss.example[1] == "nothing"


def test_a_cleared_flag_is_said():
    report = read([line(parent(1)), line(parent(2))], [line(parent(1, "00")), line(parent(2))])
    assert codes(report) == ["access-log.flipped"]
    assert judge_access_logs(report)[0].what == "1 request sampled at hop0 arrived unsampled at hop1"


def test_retries_of_one_request_are_joined_and_bounded():
    logs = JoinedLogs()
    for station in ((0, 0, 1), (1, 0, 1)):
        logs.stations[station] += 1
        for trace in [*"abcdefgh", "a"]:
            logs.add(station, b"r", trace.encode(), True)
    (crossing,) = logs.crossings({(0, 0): "x", (1, 0): "y"})
    assert (crossing.joined, crossing.lost) == (1, 0)


def test_listeners_of_one_log_are_told_apart():
    assert side_of({"listener": "in"}) == "in"
    assert side_of({"cluster": "outbound|80||svc"}) == "outbound"
    assert side_of({"cluster": "svc"}) == ""
    analysis = Analysis()
    lines = [f'{{"listener":"l{n}","tp":"{parent(n + 1)}"}}' for n in range(60)]
    analysis.read(source("a", *lines))
    found = analysis.report()
    assert len(found.crossings) == 48
    assert found.first_loss is None


def test_one_log_is_joined_as_soon_as_it_has_two_kinds_of_lines(monkeypatch):
    from meshmw._tools import access_log

    def read_alone(*lines: str):
        analysis = Analysis(alone=True)
        analysis.read(source("a", *lines), format_of("json"))
        return analysis.report()

    def of(side: str, trace: int, path: str = "/") -> str:
        return f'{{"upstream_cluster":"{side}|80||a","path":"{path}","tp":"{parent(trace)}","request_id":"r{trace}"}}'

    several = "/" + "x" * 2000
    inbound = [of("inbound", trace, several) for trace in range(1, 101)]
    assert read_alone(*inbound).crossings == ()
    for places in (10_000, 1):
        monkeypatch.setattr(access_log, "_MOST_PLACES", places)
        (crossing,) = read_alone(*inbound, of("outbound", 100)).crossings
        assert (crossing.joined, crossing.lost, crossing.arrived) == (1, 0, 1)


def test_keys_that_strangers_choose_take_no_memory(monkeypatch):
    from meshmw._tools.access_log import json_lines

    monkeypatch.setattr(json_lines, "_MAX_KEYS", 2)
    lines = [f'{{"k{number}":1,"method":"GET","path":"/","tp":"{parent(1)}"}}' for number in range(20)]
    analysis = Analysis()
    assert analysis.read(source("a", *lines), format_of("json")).places.total.kinds == {"valid": 20}


def test_a_trace_in_capitals_is_the_same_trace_and_a_broken_one_is_none():
    lines = [line(parent(0xAB).upper(), rid="r"), line("00-" + "z" * 60, rid="s")]
    (crossing,) = read(lines, [line(parent(0xAB), rid="r"), line(parent(1), rid="s")]).crossings
    assert (crossing.joined, crossing.lost, crossing.traces, crossing.arrived) == (1, 0, 1, 1)


def test_a_flag_that_nobody_logged_has_not_flipped():
    analysis = Analysis()
    analysis.read(source("a", f'{{"method":"GET","tp":"{parent(0xAB)}"}}'))
    analysis.read(source("b", f'{{"method":"GET","tp":null,"trace_id":"{0xAB:032x}"}}'))
    (crossing,) = analysis.report().crossings
    assert (crossing.arrived, crossing.flipped) == (1, 0)


def test_a_trace_that_a_proxy_alone_knows_counts():
    analysis = Analysis()
    analysis.read(source("a", '{"tp":null,"trace_id":"00000000000000ab"}'))
    analysis.read(source("b", f'{{"tp":"{parent(0xAB)}","trace_id":"x"}}'))
    (crossing,) = analysis.report().crossings
    assert crossing.arrived == 1


def test_memory_is_bounded():
    places = Places(limit=2)
    for path in ("/a", "/b", "/c", "/d", "/a"):
        fields = {"method": "GET", "path": path}
        places.add(classify(fields), fields)
    assert {route: place.total for (route, _), place in places.places.items()} == {
        "GET /a": 2,
        "GET /b": 1,
        "(other)": 2,
    }
    sample: Sample[int] = Sample(100)
    for number in range(10_000):
        if sample.takes(b"%d" % number):
            sample.put(b"%d" % number, number)
    assert len(sample.values) <= 100
    assert sample.one_in >= 64
    assert all(map(sample.takes, sample.values))
    report = read(
        [line(parent(n), rid=f"r{n}") for n in range(1, 2000)], [line(parent(n)) for n in range(1, 2000)], ids=100
    )
    assert report.joined_one_in > 1
    (crossing,) = report.crossings
    assert crossing.arrived == crossing.traces > 0


def test_strangers_do_not_choose_which_ids_are_kept():
    sample: Sample[int] = Sample(2)
    # The CRC-32 of each is 0: chosen by that checksum, all of them would be kept for ever.
    for crafted in (b"aaaaey7N=@", b"aaaalo/@+e", b"aaaamonq0|"):
        sample.put(crafted, 0)
    assert len(sample.values) <= 2


@pytest.mark.parametrize(
    ("fields", "route", "upstream"),
    [
        ({"method": "GET", "path": "/users/17/cart?id=1"}, "GET /users/*/cart", "-"),
        ({"method": "GET", "path": "/a/9acb4236-4cdf-4863-b1e2-5f786b9484ea"}, "GET /a/*", "-"),
        ({"route": "checkout", "path": "/x", "cluster": "c"}, "checkout", "c"),
        ({"route": "default", "path": "/x", "cluster": "-", "authority": "svc"}, "/x", "svc"),
        ({"upstream": "10.0.0.1:80"}, "-", "10.0.0.1:80"),
    ],
)
def test_routes_and_upstreams(fields, route, upstream):
    assert (route_of(fields), upstream_of(fields)) == (route, upstream)


def test_lines_are_read_from_any_file(tmp_path):
    lines = b"a\n\nb\r\nc"
    plain, packed = tmp_path / "a.log", tmp_path / "a.log.gz"
    plain.write_bytes(lines)
    packed.write_bytes(gzip.compress(lines))
    for path in (plain, packed):
        opened = open_source(path)
        assert [each for some in opened.lines() for each in some] == [b"a", b"", b"b\r", b"c"]
        assert (opened.name, opened.position, opened.size) == (path.name, path.stat().st_size, path.stat().st_size)
        opened.close()
    packed.write_bytes(gzip.compress(lines * 1000)[:-20])
    broken = open_source(packed, "x")
    assert list(broken.lines())
    assert broken.fault.startswith("EOFError")
    broken.close()
    source("x").close()


def test_a_line_that_never_ends_costs_no_memory():
    endless = Source("x", io.BytesIO(b"a\n" + b"x" * (MAX_LINE * 20) + b"\nb\n" + b"y" * (MAX_LINE * 5)))
    assert [each for some in endless.lines() for each in some] == [b"a", b"b"]
    assert endless.cut == 2


def test_a_log_is_followed_through_rotation_and_truncation(tmp_path):
    path = tmp_path / "access.log"
    path.write_bytes(b"one\n")
    opened, steps = open_source(path), iter(range(20))
    seen = []

    def more() -> bool:
        step = next(steps)
        if step == 1:
            with path.open("ab") as file:
                file.write(b"two\n")
        elif step == 4:
            path.rename(tmp_path / "access.log.1")
        elif step == 6:
            path.write_bytes(b"three\nlong line\n")
        elif step == 10:
            path.write_bytes(b"four\n")
        return step < 14

    for some in opened.lines(more):
        seen += some
    opened.close()
    assert seen == [b"one", b"two", b"three", b"long line", b"four"]
    again = Source("pipe", io.BytesIO(b"x\n"))
    answers = iter([True, False])
    assert [each for some in again.lines(lambda: next(answers)) for each in some] == [b"x"]


def test_a_log_whose_successor_may_not_be_read_yet_is_followed_on(tmp_path, monkeypatch):
    path = tmp_path / "access.log"
    path.write_bytes(b"one\n")
    opened, steps, refused = open_source(path), iter(range(9)), []
    real = Path.open

    def once_refused(self, *arguments):
        if not refused:
            refused.append(self)
            raise PermissionError
        return real(self, *arguments)

    def more() -> bool:
        step = next(steps)
        if step == 1:
            path.unlink()
            path.write_bytes(b"two\n")
            monkeypatch.setattr(Path, "open", once_refused)
        return step < 6

    assert [each for some in opened.lines(more) for each in some] == [b"one", b"two"]
    assert refused == [path]
    opened.close()


def test_a_named_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"one\n",))
    writer.start()
    opened = open_source(pipe)
    answers = iter([True, False])
    assert [(each, opened.position) for some in opened.lines(lambda: next(answers)) for each in some] == [(b"one", 0)]
    writer.join()
    opened.close()


def test_what_cannot_be_read_is_said():
    analysis = Analysis()
    with pytest.raises(ValueError, match="edge: its format is none that is known"):
        analysis.read(source("edge", *["x y z"] * 300))
    with pytest.raises(ValueError, match="edge: its format"):
        analysis.read(source("edge", "x"))
    assert analysis.read(source("empty")).lines == 0
    fault = Analysis()
    broken = source("edge", *[f'{{"tp":"{parent(1)}"}}', '{"tp":"a","tp":"b"}', *["x"] * 4])
    broken.fault, broken.cut = "EOFError: early", 1
    fault.read(broken)
    assert codes(fault.report()) == ["access-log.unreadable", "access-log.broken", "access-log.ambiguous"]
