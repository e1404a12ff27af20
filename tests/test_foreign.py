"""What `_foreign` assumes of other packages' private names, each with the real package."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc

from meshmw import _foreign


class TestGrpcio:
    @contextmanager
    def served(self, one: Callable[..., Any], many: Callable[..., Any] | None = None) -> Iterator[str]:
        """Serve one method of each kind, and yield the server's address."""
        server = grpc.server(futures.ThreadPoolExecutor(2))
        methods = {"one": grpc.unary_unary_rpc_method_handler(one)}
        if many is not None:
            methods["many"] = grpc.unary_stream_rpc_method_handler(many)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.S", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(30)

    def call(self, address: str) -> bytes:
        with grpc.insecure_channel(address) as channel:
            return channel.unary_unary("/lab.S/one")(b"x", timeout=30)

    @pytest.mark.parametrize("name", ["ExecuteBatchError", "_ServerStoppedError"])
    def test_grpcio_raises_these_where_a_call_is_over(self, name):
        assert _foreign.is_end_of_call(getattr(cygrpc, name)())
        assert name not in grpc.__all__ + grpc.aio.__all__

    @pytest.mark.parametrize("error", [grpc.RpcError(), cygrpc.AbortError(), LookupError()])
    def test_another_exception_is_the_handlers_own(self, error):
        assert not _foreign.is_end_of_call(error)

    def test_grpcio_finds_a_methods_own_threads_on_a_function_in_its_place(self):
        def own(_request, _context):
            return threading.current_thread().name.encode()

        with futures.ThreadPoolExecutor(1, "own") as pool:
            own.experimental_thread_pool = pool

            def in_its_place(request, context):
                return own(request, context)

            _foreign.copy_grpcio_marks(in_its_place, own)
            with self.served(in_its_place) as address:
                assert self.call(address).startswith(b"own")

    def test_grpcio_hands_a_marked_function_what_sends_responses(self):
        def own(request, _context, send):
            for response in (request, b"y", None):
                send(response)

        own.experimental_non_blocking = True

        def in_its_place(request, context, send):
            own(request, context, send)

        _foreign.copy_grpcio_marks(in_its_place, own)
        with (
            self.served(lambda request, _: request, in_its_place) as address,
            grpc.insecure_channel(address) as channel,
        ):
            assert list(channel.unary_stream("/lab.S/many")(b"x", timeout=30)) == [b"x", b"y"]

    def test_a_function_is_marked_or_it_is_not(self):
        def own(_request, _context, _send):
            pass

        assert not _foreign.is_non_blocking(own)
        own.experimental_non_blocking = True
        assert _foreign.is_non_blocking(own)

    def test_a_pair_is_one_of_those_that_grpcio_hands_out(self):
        found = []

        def one(request, context):
            metadata = context.invocation_metadata()
            found.append((metadata[0], _foreign.metadata_pair(metadata, "x-k", "1")))
            return request

        with self.served(one) as address:
            self.call(address)
        ((theirs, ours),) = found
        assert type(ours) is type(theirs)
        assert (ours.key, ours.value) == ours == ("x-k", "1")

    def test_where_pairs_are_plain_tuples_one_of_these_is_made(self):
        assert _foreign.metadata_pair([("a", "b")], "x-k", "1") == ("x-k", "1")

    def test_an_ended_call_knows_its_status(self):
        with self.served(lambda request, _: request) as address, grpc.insecure_channel(address) as channel:
            _, call = channel.unary_unary("/lab.S/one").with_call(b"x", timeout=30)
            assert _foreign.status_of_ended_call(call) is grpc.StatusCode.OK

    def test_an_ended_call_of_aio_knows_its_status_without_waiting(self):
        async def talk(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary("/lab.S/one")(b"x", timeout=30)
                await call
                return _foreign.status_of_ended_call(call)

        with self.served(lambda request, _: request) as address:
            assert asyncio.run(talk(address)) is grpc.StatusCode.OK

    def test_a_call_of_aio_that_would_wait_has_no_status(self):
        async def talk(address: str) -> Any:
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary("/lab.S/one")(b"x", timeout=30)
                found = _foreign.status_of_ended_call(call)
                await call
                return found

        with self.served(lambda request, _: request) as address:
            assert asyncio.run(talk(address)) is None
