"""Baggage for the application: misuse, contexts that do not leak, and properties that reach the wire."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage as otel_baggage
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw import MeshPropagator, baggage
from meshmw._notices import quoted
from meshmw._policy.patterns import BaggageKeys

PROPAGATOR = MeshPropagator()


def sent(context):
    carrier = {}
    PROPAGATOR.inject(carrier, context)
    return carrier.get("baggage")


def received(line):
    return PROPAGATOR.extract({"baggage": line}, Context())


class TestMisuse:
    @pytest.mark.parametrize("key", ["", "a b", "a=b", "é", "a,b", "a;b", "a\n", "a\r\nx-evil: 1"])
    def test_a_bad_key_raises(self, key):
        with pytest.raises(ValueError, match="baggage: key"):
            baggage.with_member(key, "1")
        with pytest.raises(ValueError, match="baggage: key"):
            baggage.using({"good": "1", key: "1"})
        with pytest.raises(ValueError, match="baggage: key"):
            baggage.using({key: None})

    @pytest.mark.parametrize("properties", [";", "a b", "p,other=1", "=1", "p=\n", "p=é", 'p="quoted"', "p;;q"])
    def test_bad_properties_raise(self, properties):
        with pytest.raises(ValueError, match="baggage: property"):
            baggage.with_member("key", "1", properties)

    def test_what_raised_has_changed_nothing(self):
        with pytest.raises(ValueError, match="key"), baggage.using({"a": "1", "b c": "1"}):
            pytest.fail("entered")
        assert baggage.get_all() == {}


class TestReading:
    def test_nothing_is_there(self):
        assert baggage.get("tenant") is None
        assert baggage.properties("tenant") == ""
        assert baggage.get_all() == {}

    def test_members_that_arrived_are_decoded_and_keep_their_properties(self):
        context = received("tenant=a%20b;ttl=30;private,plain=1")
        assert baggage.get("tenant", context) == "a b"
        assert baggage.properties("tenant", context) == "ttl=30;private"
        assert baggage.properties("plain", context) == ""
        assert baggage.get_all(context) == {"tenant": "a b", "plain": "1"}
        assert type(baggage.get("tenant", context)) is str

    def test_what_opentelemetry_set_is_read(self):
        context = otel_baggage.set_baggage("number", 7, Context())
        assert baggage.get("number", context) == "7"
        assert baggage.get_all(context) == {"number": "7"}
        assert baggage.properties("number", context) == ""

    def test_a_value_copied_to_another_key_has_no_properties(self):
        context = received("a=1;p")
        copied = otel_baggage.set_baggage("b", otel_baggage.get_baggage("a", context), context)
        assert baggage.properties("a", copied) == "p"
        assert baggage.properties("b", copied) == ""
        assert sent(copied) == "a=1;p,b=1"


class TestSetting:
    def test_properties_travel(self):
        context = baggage.with_member("tenant", "a, b", "ttl=30;private", Context())
        assert sent(context) == "tenant=a%2C%20b;ttl=30;private"
        assert baggage.get("tenant", context) == "a, b"
        assert baggage.properties("tenant", context) == "ttl=30;private"
        assert otel_baggage.get_baggage("tenant", context) == "a, b"

    def test_a_member_is_replaced_whole(self):
        context = received("a=1;p,b=2,a=3;q")
        assert sent(baggage.with_member("a", "4", context=context)) == "a=4,b=2"
        assert sent(context) == "a=1;p,a=3;q,b=2"

    def test_members_are_taken_away(self):
        context = received("a=1,b=2")
        assert sent(baggage.without_member("a", context)) == "b=2"
        assert sent(baggage.without_member("c", context)) == "a=1,b=2"
        assert sent(baggage.without_members(context)) is None
        assert sent(context) == "a=1,b=2"

    def test_the_current_context_is_the_default(self):
        with baggage.using(a="1"):
            assert baggage.get_all(baggage.with_member("b", "2")) == {"a": "1", "b": "2"}
            assert baggage.get_all(baggage.without_member("a")) == {}
            assert baggage.get_all(baggage.without_members()) == {}
            assert baggage.get_all() == {"a": "1"}

    @given(
        st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,20}", fullmatch=True),
        st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    )
    def test_any_text_comes_out_at_the_other_end(self, key, value):
        line = sent(baggage.with_member(key, value, "p=1", Context()))
        there = received(line)
        assert baggage.get(key, there) == value
        assert baggage.properties(key, there) == "p=1"

    def test_half_a_surrogate_pair_is_no_reason_to_fail(self):
        context = baggage.with_member("a", "x\ud800y", context=Context())
        assert baggage.get("a", context) == "x?y"
        assert sent(context) == "a=x?y"


class TestUsing:
    def test_a_block_that_raises_leaves_nothing(self):
        with pytest.raises(RuntimeError), baggage.using(a="1"):
            raise RuntimeError
        assert baggage.get_all() == {}

    def test_members_end_with_the_block(self):
        with baggage.using({"x-tenant": "a"}, plan="free") as outer:
            assert baggage.get_all() == {"x-tenant": "a", "plan": "free"}
            with baggage.using(plan=None, region="eu"):
                assert baggage.get_all() == {"x-tenant": "a", "region": "eu"}
            assert otel_context.get_current() is outer
        assert baggage.get_all() == {}

    async def in_a_child(self, name, barrier):
        with baggage.using(child=name):
            await barrier.wait()
            return baggage.get_all()

    @pytest.mark.asyncio
    async def test_neither_parent_nor_sibling_sees_a_childs_members(self):
        barrier = asyncio.Event()
        with baggage.using(parent="p"):
            children = [asyncio.create_task(self.in_a_child(name, barrier)) for name in "ab"]
            await asyncio.sleep(0)
            assert baggage.get_all() == {"parent": "p"}
            barrier.set()
            assert await asyncio.gather(*children) == [{"parent": "p", "child": name} for name in "ab"]
            assert baggage.get_all() == {"parent": "p"}

    @staticmethod
    async def unfinished():
        class Never:
            def __await__(self):
                yield

        with baggage.using(a="1"):
            await Never()

    def test_a_coroutine_that_nobody_finished_logs_no_error(self, caplog):
        caplog.set_level(logging.DEBUG)
        coroutine = self.unfinished()
        contextvars.copy_context().run(coroutine.send, None)
        coroutine.close()
        gc.collect()
        assert caplog.messages == []

    def test_a_coroutine_closed_where_it_ran_gives_the_context_back(self):
        coroutine = self.unfinished()
        coroutine.send(None)
        assert baggage.get("a") == "1"
        coroutine.close()
        assert baggage.get_all() == {}


class TestBaggageKeys:
    @pytest.mark.parametrize("pattern", ["", "a b", "[a]", "a=b", "é", "a,b", "a\n", '"'])
    def test_a_bad_pattern_is_named(self, pattern):
        with pytest.raises(ValueError, match="no pattern of baggage keys") as refused:
            BaggageKeys(["good", f"!{pattern}"])
        assert quoted(pattern) in str(refused.value)

    @pytest.mark.parametrize(
        ("patterns", "key"),
        [
            (["tenant"], "Tenant"),
            (["tenant"], "tenant2"),
            (["tenant"], ""),
            (["acme.*"], "acme"),
            (["acme.?"], "acme.10"),
            (["a.b"], "axb"),
            (["*", "!secret.*"], "secret.key"),
            (["!secret.*", "*"], "secret.key"),
            (["!secret.*", "!token"], "token"),
            (["tenant", "!tenant"], "tenant"),
            (["!*"], "anything"),
            ([], "anything"),
            (["a"], "a\n"),
            (["!!a"], "!a"),
            (["!a"], "a"),
        ],
    )
    def test_a_key_that_does_not_pass(self, patterns, key):
        assert not BaggageKeys(patterns).permits(key)

    @pytest.mark.parametrize(
        ("patterns", "key"),
        [
            (["*"], "anything"),
            (["tenant", "acme.*"], "acme.region"),
            (["acme.?"], "acme.1"),
            (["!secret.*"], "tenant"),
            (["*", "!secret.*"], "secret"),
            (["a!b"], "a!b"),
            (["!a"], "!a"),
            (["?a"], "!a"),
        ],
    )
    def test_a_key_that_passes(self, patterns, key):
        assert BaggageKeys(patterns).permits(key)

    def test_it_says_when_nobody_need_ask(self):
        assert BaggageKeys().are_all
        assert BaggageKeys(["a", "*"]).are_all
        assert not BaggageKeys(["?*"]).are_all
        assert not BaggageKeys(["!a"]).are_all
        assert not BaggageKeys([]).are_all

    @given(st.text())
    def test_no_key_raises(self, key):
        assert BaggageKeys(["a*", "?", "!b"]).permits(key) in (True, False)
