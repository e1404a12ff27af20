"""What proxies would refuse is cut to what they accept: the sums alone, then on the real Envoy, over two hops."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._policy.outbound import (
    DEFAULT_HEADER_BUDGET,
    RESERVED_BYTES,
    RESERVED_HEADERS,
    HeaderBudget,
    request_line_bytes,
)
from meshmw.testing import Listener, Proxy

BUDGET = HeaderBudget()
MAX_BYTES, MAX_HEADERS = DEFAULT_HEADER_BUDGET
LINE = request_line_bytes("GET", b"/")
HOST = (b"host", b"shop")


def wire_bytes(headers, request_line):
    return request_line + sum(len(name) + len(value) + len(b": \r\n") for name, value in headers) + len(b"\r\n")


def filler(size):
    return (b"x-filler", b"f" * (size - len(b"x-filler: \r\n")))


class TestSums:
    @pytest.mark.parametrize("limits", [(0, 100), (RESERVED_BYTES, 100), (-1, -1), (61_440, RESERVED_HEADERS)])
    def test_a_budget_that_its_reserve_uses_up_is_refused(self, limits):
        with pytest.raises(ValueError, match="over 2048 bytes and 10 headers"):
            HeaderBudget(*limits)

    def test_the_line_of_a_request(self):
        assert request_line_bytes("DELETE", b"/a?b") == len(b"DELETE /a?b HTTP/1.1\r\n")

    def test_nothing_is_cut_up_to_the_limit_and_something_one_byte_beyond(self):
        line = request_line_bytes("GET", b"/")
        headers = [(b"host", b"a"), (b"baggage", b"a=1,b=2")]
        room = MAX_BYTES - RESERVED_BYTES - wire_bytes(headers, line)
        assert BUDGET.cut([*headers, filler(room)], line) is None
        cut = BUDGET.cut([*headers, filler(room + 1)], line)
        assert (cut.baggage, cut.dropped_members, cut.fits) == (b"a=1", 1, True)
        assert (cut.bytes_before, cut.headers_before) == (MAX_BYTES - RESERVED_BYTES + 1, 3)
        assert (cut.bytes_after, cut.headers_after) == (MAX_BYTES - RESERVED_BYTES + 1 - len(b",b=2"), 3)

    def test_where_no_member_fits_the_header_goes(self):
        headers = [(b"baggage", b"a=1"), filler(MAX_BYTES - RESERVED_BYTES - 10)]
        cut = BUDGET.cut(headers)
        assert (cut.baggage, cut.dropped_members, cut.headers_after, cut.fits) == (None, 1, 1, True)
        assert cut.apply(headers) == headers[1:]

    def test_where_other_headers_are_too_big_it_says_so(self):
        headers = [filler(MAX_BYTES)]
        cut = BUDGET.cut(headers)
        assert (cut.baggage, cut.dropped_members, cut.fits) == (None, 0, False)
        assert cut.apply(headers) == headers
        assert BUDGET.cut([*headers, (b"baggage", b"a=1")]).dropped_members == 1

    def test_one_header_too_many_is_the_baggage(self):
        headers = [(b"host", b"a"), (b"baggage", b"a=1")]
        others = [(b"x", b"")] * (MAX_HEADERS - RESERVED_HEADERS - 2)
        assert BUDGET.cut(headers + others) is None
        cut = BUDGET.cut([*headers, *others, (b"x", b"")])
        assert (cut.baggage, cut.headers_before, cut.headers_after, cut.fits) == (None, 91, 90, True)
        assert not BUDGET.cut([*headers, *others, (b"x", b""), (b"x", b"")]).fits

    def test_several_lines_become_one_before_a_member_is_lost(self):
        headers = [(b"Baggage", b"a=1;p , b=2"), (b"x", b"1"), (b"baggage", b",c=3,"), (b"BAGGAGE", b"")]
        cut = HeaderBudget(4096, RESERVED_HEADERS + 3).cut(headers)
        assert (cut.baggage, cut.dropped_members, cut.headers_after) == (b"a=1;p , b=2,c=3", 0, 2)
        assert cut.apply(headers) == [(b"x", b"1"), (b"baggage", b"a=1;p , b=2,c=3")]

    def test_the_last_members_go_first_and_no_smaller_one_takes_their_place(self):
        cut = HeaderBudget(RESERVED_BYTES + 60).cut([(b"baggage", b"a=1,b=" + b"2" * 60 + b",c=3")])
        assert (cut.baggage, cut.dropped_members) == (b"a=1", 2)

    @given(
        st.lists(st.from_regex(rb"[a-z]{1,3}=[0-9]{0,30}", fullmatch=True), min_size=1, max_size=30),
        st.integers(0, 600),
        st.integers(1, 600),
        st.integers(1, 4),
    )
    def test_what_is_kept_is_the_most_that_fits(self, members, others, room, headers_room):
        budget = HeaderBudget(RESERVED_BYTES + room, RESERVED_HEADERS + headers_room)
        headers = [(b"x", b"v" * others), (b"baggage", b",".join(members))]
        cut = budget.cut(headers, 30)
        if cut is None:
            assert wire_bytes(headers, 30) <= room
            assert headers_room >= 2
            return
        kept = cut.baggage.split(b",") if cut.baggage else []
        assert kept == members[: len(kept)]
        assert len(kept) + cut.dropped_members == len(members)
        after = cut.apply(headers)
        assert (cut.bytes_after, cut.headers_after) == (wire_bytes(after, 30), len(after))
        assert cut.fits is (cut.bytes_after <= room and cut.headers_after <= headers_room)
        assert cut.fits or not kept
        one_more = [headers[0], (b"baggage", b",".join(members[: len(kept) + 1]))]
        assert wire_bytes(one_more, 30) > room or headers_room < 2


class Upstream(socketserver.ThreadingTCPServer):
    """Answers every request with 200, however big its head, and keeps the heads."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.heads: list[bytes] = []


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        head = b""
        for line in self.rfile:
            head += line
            if line == b"\r\n":
                self.server.heads.append(head)
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                head = b""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def hops(upstream, envoys):
    """The ports of two Envoys in a row: an edge, and the sidecar behind it, which alone is asked for the near one."""
    (near,) = envoys(Proxy("near", [Listener(name="in", upstream=f"127.0.0.1:{upstream.server_address[1]}")]))
    (edge,) = envoys(Proxy("edge", [Listener(name="in", upstream=f"127.0.0.1:{near.port()}", edge=True)]))
    return edge.port(), near.port()


def status(port, headers, path=b"/"):
    """Send exactly these headers, and return the status code."""
    head = b"GET %s HTTP/1.1\r\n" % path + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head)
        with connection.makefile("rb") as reader:
            return int(reader.readline().split()[1])


class TestOnTheRealEnvoy:
    """Its default limits are those of the budget: 60 KiB and 100 headers."""

    @pytest.mark.parametrize("path", [b"/", b"/" + b"p" * 1000])
    @pytest.mark.parametrize("count", [0, 40])
    def test_it_counts_the_bytes_that_we_count(self, hops, count, path):
        _, near = hops
        line = request_line_bytes("GET", path)
        headers = [HOST, *[(b"x-%02d" % number, b"12345") for number in range(count)]]
        room = MAX_BYTES - wire_bytes(headers, line)
        assert status(near, [*headers, filler(room)], path) == 200
        assert status(near, [*headers, filler(room + 1)], path) == 431

    def test_it_counts_the_headers_that_we_count(self, hops):
        _, near = hops
        assert status(near, [HOST] + [(b"x", b"1")] * (MAX_HEADERS - 1)) == 200
        assert status(near, [HOST] + [(b"x", b"1")] * MAX_HEADERS) == 431

    def test_a_request_that_is_too_big_passes_both_once_it_is_cut(self, hops, upstream):
        members = [b"key-%02d=" % number + b"v" * 92 for number in range(64)]
        headers = [HOST, (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01")]
        headers += [(b"cookie", b"c" * 55_100), (b"baggage", b",".join(members))]
        assert [status(port, headers) for port in hops] == [431, 431]
        cut = BUDGET.cut(headers, LINE)
        assert 0 < cut.dropped_members < len(members)
        assert [status(port, cut.apply(headers)) for port in hops] == [200, 200]
        kept = b",".join(members[: -cut.dropped_members])
        assert [b"baggage: %s\r\n" % kept in head for head in upstream.heads] == [True, True]

    def test_one_that_only_the_second_refuses_passes_both_once_it_is_cut(self, hops):
        edge, near = hops
        headers = [HOST, (b"baggage", b",".join([b"a=" + b"1" * 98] * 40))]
        headers.append(filler(MAX_BYTES - wire_bytes(headers, LINE)))
        assert status(near, headers) == 200
        assert status(edge, headers) == 431
        cut = BUDGET.cut(headers, LINE)
        assert cut.baggage
        assert cut.fits
        assert status(edge, cut.apply(headers)) == 200

    def test_one_header_too_many_for_the_second_is_the_baggage(self, hops, upstream):
        edge, near = hops
        headers = [HOST, (b"baggage", b"a=1")] + [(b"x", b"1")] * (MAX_HEADERS - 2)
        assert status(near, headers) == 200
        assert status(edge, headers) == 431
        fewer = headers[: MAX_HEADERS - RESERVED_HEADERS + 1]
        cut = BUDGET.cut(fewer, LINE)
        assert (cut.baggage, cut.fits) == (None, True)
        assert status(edge, cut.apply(fewer)) == 200
        assert b"baggage" not in upstream.heads[-1]

    def test_the_reserve_covers_what_the_edge_adds(self, hops, upstream):
        edge, _ = hops
        sent = [HOST]
        assert status(edge, sent) == 200
        lines = upstream.heads[-1].split(b"\r\n")[1:-2]
        assert len(upstream.heads[-1]) - wire_bytes(sent, LINE) < RESERVED_BYTES
        assert len(lines) - len(sent) == 5 < RESERVED_HEADERS
