"""gRPC: a peer calls us, and we call the peer, in one trace with all that came with it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from meshmw.grpc import TraceContextClientInterceptor, TraceContextServerInterceptor
from tests.real.peers import SECONDS, Journey, Peer, seen_here

METHODS = ["unary_unary", "stream_stream"]
ANSWERS = {"unary_unary": 1, "stream_stream": 2}


@contextlib.contextmanager
def serving(journey: Journey, beyond: Callable[[], Any]) -> Iterator[str]:
    """Serve methods that tell what they see, and what a server sees that they call first; yield the address."""

    def once(_request: bytes, _context: Any) -> bytes:
        return json.dumps({"here": seen_here(), "beyond": beyond()}).encode()

    def each(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
        found = beyond()
        for _ in requests:
            yield json.dumps({"here": seen_here(), "beyond": found}).encode()

    methods = {
        "unary_unary": grpc.unary_unary_rpc_method_handler(once),
        "stream_stream": grpc.stream_stream_rpc_method_handler(each),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[TraceContextServerInterceptor(**journey.options)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(SECONDS)


def calling(journey: Journey, target: str, method: str) -> list[Any]:
    """Call a method of a peer, or talk twice over one stream."""
    ours = TraceContextClientInterceptor(target, **journey.options)
    with grpc.intercept_channel(grpc.insecure_channel(target), ours) as channel:
        call = getattr(channel, method)(f"/lab.S/{method}")
        if method == "unary_unary":
            return [json.loads(call(b"{}", timeout=SECONDS, metadata=(("x-k", "1"), ("x-k", "2"))))]
        return [json.loads(answer) for answer in call(iter([b"1", b"2"]), timeout=SECONDS)]


@pytest.mark.parametrize("method", METHODS)
def test_a_peer_calls_us_and_we_call_it_in_one_trace(peer: Peer, journey: Journey, method: str) -> None:
    target = peer.listen("grpc")
    with serving(journey, lambda: calling(journey, target, method)) as address:
        answer = peer.ask("call", protocol="grpc", address=address, method=method, headers=journey.headers)
    assert len(answer["found"]) == ANSWERS[method]
    journey.check_ours("SERVER", "CLIENT", peer)
    client = f"{journey.span('CLIENT').context.span_id:016x}"
    for found in answer["found"]:
        assert journey.check(found["here"], peer) == f"{journey.span('SERVER').context.span_id:016x}"
        assert len(found["beyond"]) == ANSWERS[method]
        for there in found["beyond"]:
            assert peer.path(journey.check(there, peer), client) == ["SERVER"]
