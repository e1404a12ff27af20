"""Baggage as one request brings it: which members are let in, whether the header may stay, and what is remembered."""

from __future__ import annotations

import pytest

from meshmw.policy.baggage_keys import BaggageKeys
from meshmw.propagation.baggage_reader import BaggageReader


def reader(max_members=64, max_bytes=8192, **keys):
    return BaggageReader(BaggageKeys(**keys), max_members, max_bytes)


@pytest.mark.parametrize(
    ("of", "lines", "members", "reasons", "must_change"),
    [
        (reader(), ["a=1"], "a", (), False),
        (reader(), ["a=1", "b=2"], "ab", (), False),
        (reader(), [], "", (), False),
        (reader(), ["a=1", "="], "a", ("key",), True),
        (reader(max_members=1), ["a=1", "b=2"], "a", ("too_many_members",), True),
        (reader(max_bytes=7), ["a=1", "b=2"], "ab", (), False),
        (reader(max_bytes=6), ["a=1", "b=2"], "a", ("too_many_bytes",), True),
        (reader(max_bytes=7), ["a=1", "b=2", ""], "ab", (), True),
        (reader(max_bytes=7), ["a=1 ,b=2"], "ab", (), True),
        (reader(deny=["b"]), ["a=1,b=2"], "a", (), True),
        (reader(allow=["a", "b"]), ["a=1,b=2"], "ab", (), False),
        (reader(max_bytes=20_000), ["a=" + "1" * 9000, "b=2"], "ab", (), False),
        (reader(max_bytes=20_000, deny=["a"]), ["a=" + "1" * 9000, "b=2"], "b", (), True),
    ],
)
def test_members_are_let_in_and_a_header_that_says_more_must_change(of, lines, members, reasons, must_change):
    for _ in range(2):
        read = of.read(lines)
        assert ("".join(read.members), read.reasons, read.must_change) == (members, reasons, must_change)


@pytest.mark.parametrize(("length", "is_remembered"), [(8192, True), (8193, False)])
def test_what_is_short_is_remembered_and_what_is_long_fills_no_memory(length, is_remembered):
    of = reader(max_bytes=20_000)
    line = "a=".ljust(length, "1")
    assert (of.read([line]) is of.read([line])) is is_remembered
    assert (of.read_short([line]) is not None) is is_remembered


def test_lines_are_remembered_as_the_one_that_they_stand_for():
    of = reader()
    assert of.read(["a=1", "b=2"]) is of.read(["a=1,b=2"])
    assert of.read(["a=1"]) is not reader().read(["a=1"])
