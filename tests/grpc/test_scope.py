"""One message's context: a child of the stream's, gone at its end, seen by nobody beside it."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context

import meshmw
from meshmw.grpc import message_scope

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_dir_shows_what_is_public_alone() -> None:
    assert dir(meshmw.grpc) == meshmw.grpc.__all__


def test_members_are_set_and_taken_away_for_the_block_alone() -> None:
    before = otel_context.get_current()
    with message_scope({"a": "1", "b": "2"}) as context:
        assert otel_context.get_current() is context
        with message_scope({"a": None, "c": "ä"}):
            assert dict(baggage.get_all()) == {"b": "2", "c": "ä"}
        assert dict(baggage.get_all()) == {"a": "1", "b": "2"}
    assert otel_context.get_current() is before


def test_whatever_a_block_leaves_attached_is_gone_at_its_end() -> None:
    before = otel_context.get_current()
    with message_scope({"a": "1"}):
        otel_context.attach(baggage.set_baggage("left", "behind"))
    assert otel_context.get_current() is before


def test_a_block_may_start_from_what_the_message_carries() -> None:
    carried = meshmw.MeshPropagator().extract({"traceparent": TRACEPARENT, "baggage": "a=1"}, Context())
    with message_scope({"b": "2"}, context=carried):
        assert trace.get_current_span().get_span_context().is_remote
        assert dict(baggage.get_all()) == {"a": "1", "b": "2"}


def test_a_bad_key_raises_before_the_block() -> None:
    with pytest.raises(ValueError, match="key"):
        message_scope({"a b": "1"})


def test_an_exception_passes_and_the_context_is_as_before() -> None:
    before = otel_context.get_current()
    with pytest.raises(ZeroDivisionError), message_scope({"a": "1"}):
        raise ZeroDivisionError
    assert otel_context.get_current() is before


def tell() -> bytes:
    return json.dumps({key: str(value) for key, value in baggage.get_all().items()}).encode()


@pytest.mark.parametrize("style", ["threads", "async"])
def test_each_message_of_a_stream_has_its_own_members_even_where_the_block_yields(make_host, style: str) -> None:
    host = type(make_host("threads"))(style)

    def threads(requests, _context):
        for request in requests:
            with message_scope({request.decode(): "1"}):
                baggage.set_baggage("immutable", "no")
                yield tell()
            assert json.loads(tell()) == {"tenant": "a"}

    async def tasks(requests, _context):
        async for request in requests:
            with message_scope({request.decode(): "1"}):

                async def beside():
                    await asyncio.sleep(0)
                    return tell()

                task = asyncio.create_task(beside())
            assert json.loads(tell()) == {"tenant": "a"}
            yield await task

    host.methods = lambda: {"stream_stream": tasks if style == "async" else threads}
    make_host(style, host=host)
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        sent = [f"m{number}" for number in range(20)]
        call = channel.stream_stream("/lab.S/stream_stream")
        answers = call(iter([each.encode() for each in sent]), timeout=60, metadata=(("baggage", "tenant=a"),))
        assert [json.loads(answer) for answer in answers] == [{"tenant": "a", each: "1"} for each in sent]


@pytest.mark.parametrize(("metadata", "expected"), [((("x-tenant-id", "t1"),), {"tenant": "t1"}), ((), {})])
def test_a_tenant_comes_from_the_metadata_alone(make_host, metadata, expected) -> None:
    """The guide's recipe: the baggage of a caller that sends no tenant must not name one."""
    host = type(make_host("threads"))("threads")

    def quote(_request, context):
        tenant = dict(context.invocation_metadata()).get("x-tenant-id")
        with message_scope({"tenant": tenant}):
            return tell()

    host.methods = lambda: {"unary_unary": quote}
    make_host("threads", host=host)
    (answer,) = host.call(metadata=(*metadata, ("baggage", "tenant=forged")))
    assert answer == expected
