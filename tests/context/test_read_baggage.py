"""Baggage as one request brings it: which members are let in, whether the header may stay, and what is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._context.read_baggage import BaggageReader
from meshmw._policy.patterns import BaggageKeys
from meshmw.wire import parse_baggage


def reader(max_members=64, max_bytes=8192, keys=("*",)):
    return BaggageReader(BaggageKeys(keys), max_members, max_bytes)


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
        (reader(keys=["!b"]), ["a=1,b=2"], "a", (), True),
        (reader(keys=["a", "b"]), ["a=1,b=2"], "ab", (), False),
        (reader(max_bytes=20_000), ["a=" + "1" * 9000, "b=2"], "ab", (), False),
        (reader(max_bytes=20_000, keys=["!a"]), ["a=" + "1" * 9000, "b=2"], "b", (), True),
    ],
)
def test_members_are_let_in_and_a_header_that_says_more_must_change(of, lines, members, reasons, must_change):
    for _ in range(2):
        read = of.read(lines)
        assert ("".join(read.members), read.reasons, read.must_change) == (members, reasons, must_change)


@pytest.mark.parametrize(("length", "is_remembered"), [(8192, True), (8193, False)])
def test_what_is_short_is_remembered_and_what_is_long_is_not_remembered_whole(length, is_remembered):
    of = reader(max_bytes=20_000)
    line = "a=".ljust(length, "1")
    assert (of.read([line]) is of.read([line])) is is_remembered


def test_lines_are_remembered_as_the_one_that_they_stand_for():
    of = reader()
    assert of.read(["a=1", "b=2"]) is of.read(["a=1,b=2"])
    assert of.read(["a=1"]) is not reader().read(["a=1"])


# Some are bad, and cost the good ones nothing; some are cut by what is remembered, and would be good up to there.
PARTS = st.sampled_from(
    [
        ",".join(f"k{number}=v" for number in range(40)),
        "bad" + "," * 4000,
        "=,",
        " " * 3000,
        "a=" + "b" * 4000,
        "a=" + "b" * 9000 + '"',
    ]
)


@given(parts=st.lists(PARTS, min_size=1, max_size=12), max_members=st.sampled_from([1, 64, 90]), data=st.data())
def test_what_is_long_is_read_as_if_nothing_were_remembered(parts, max_members, data):
    max_bytes = data.draw(st.sampled_from([100, 2048, 5000, 8192, 20_000]))
    lines = data.draw(st.sampled_from([parts, [",".join(parts)]]))
    of = reader(max_members, max_bytes)
    members, reasons = parse_baggage(lines, max_members=max_members, max_bytes=max_bytes)
    for _ in range(2):
        read = of.read(lines)
        assert (dict(read.members), read.reasons) == (members, reasons)
        assert [value.raw for value in read.members.values()] == [value.raw for value in members.values()]
        assert read.must_change == (bool(reasons) or len(",".join(lines)) > max_bytes)


def test_a_bad_member_counts_for_nothing_where_its_beginning_would_be_good():
    line = "a=1,b=" + "c" * 9000 + '"'
    assert reader(max_members=1, max_bytes=20_000).read([line]).reasons == ("value",)


@pytest.mark.parametrize(
    ("of", "line", "members", "reason"),
    [
        (reader(), ",".join(f"k{number:04}=v" for number in range(7500)), 64, "too_many_members"),
        (reader(max_bytes=2048), ",".join(f"k{number}=" + "v" * 500 for number in range(40)), 4, "too_many_bytes"),
    ],
)
def test_of_what_is_too_long_the_beginning_is_remembered_where_it_holds_all_that_is_let_in(of, line, members, reason):
    read = of.read([line])
    assert (len(read.members), read.reasons, read.must_change) == (members, (reason,), True)
    assert of.read([line + ",more=1"]) is read


def test_empty_members_do_not_hide_that_a_limit_is_not_reached():
    line = ",".join(["a=1", *[" "] * 200, "b=" + "v" * 9000])
    for max_members in (64, 2**80):
        read = reader(max_members, 20_000).read([line])
        assert (list(read.members), read.reasons) == (["a", "b"], ())
