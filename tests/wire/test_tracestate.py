import copy
import dataclasses
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceState
from meshmw.wire.tracestate import MAX_CHARS, MAX_MEMBERS, REASONS
from tests.wire.claims import by_claim, outcome, vectors

VECTORS = vectors("tracestate")
KEY = r"[a-z0-9][a-z0-9_\-*/@]{0,255}"
VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
ABNF = re.compile(f"(?:{KEY}={VALUE}(?:,{KEY}={VALUE}){{0,31}})?")

keys = st.from_regex(KEY, fullmatch=True)
values = st.from_regex(VALUE, fullmatch=True)
states = st.dictionaries(keys, values, max_size=MAX_MEMBERS).map(lambda items: TraceState(tuple(items.items())))
any_text = st.text() | st.text(alphabet=st.sampled_from("ab@=, \t\n\0éA"))
FULL = TraceState(tuple((f"k{i}", "v") for i in range(MAX_MEMBERS)))


@pytest.mark.parametrize("row", by_claim(VECTORS["invalid"]))
def test_one_bad_member_spoils_the_list_with_reason_and_place(row):
    with pytest.raises(InvalidHeaderError) as caught:
        TraceState.parse(row["lines"])

    assert caught.value.header == "tracestate"
    assert (caught.value.reason, caught.value.position) == (row["reason"], row["position"])


@pytest.mark.parametrize("row", by_claim(VECTORS["valid"]))
def test_members_are_read_and_written_in_order(row):
    parsed = TraceState.parse(row["lines"])

    assert parsed.members == tuple(map(tuple, row["members"]))
    assert parsed == TraceState(parsed.members)
    assert str(parsed) == ",".join(f"{key}={value}" for key, value in row["members"])
    assert TraceState.parse(str(parsed)) == parsed


@pytest.mark.parametrize("row", by_claim(VECTORS["valid"]))
def test_lines_may_be_joined_with_commas_beforehand(row):
    assert TraceState.parse(",".join(row["lines"])) == TraceState.parse(row["lines"])


def test_every_reason_has_a_vector_and_every_vector_a_documented_reason():
    assert {row["reason"] for row in VECTORS["invalid"]} == set(REASONS) - {"length"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ((("Foo", "1"),), "key"),
        ((("foo", ""),), "value"),
        ((("foo", "1 "),), "member"),
        ((("foo", "1,bar=2"),), "member"),
        ((("foo", "1"), ("foo", "2")), "member"),
        ([("foo", "1")], "member"),
        ((*FULL.members, ("one-more", "v")), "too_many_members"),
    ],
)
def test_members_that_could_not_be_written_are_refused(members, reason):
    with pytest.raises(InvalidHeaderError) as caught:
        TraceState(members)

    assert caught.value.reason == reason


@pytest.mark.parametrize("key", ["", "@foo", "Foo", "foo=", "foo,bar", "foo\n", " foo", "z" * 257])
def test_inserting_a_bad_key_raises(key):
    with pytest.raises(ValueError, match="key"):
        TraceState().insert(key, "1")


@pytest.mark.parametrize("value", ["", " ", "1 ", "a=b", "a,b", "a\n", "\t", "é", "v" * 257])
def test_inserting_a_bad_value_raises(value):
    with pytest.raises(ValueError, match="value"):
        TraceState().insert("foo", value)


def test_an_inserted_member_is_the_left_most_and_replaces_the_old_one():
    before = TraceState.parse("a=1,b=2,c=3")

    assert str(before.insert("b", "x")) == "b=x,a=1,c=3"
    assert str(before.insert("d", "x")) == "d=x,a=1,b=2,c=3"
    assert str(before) == "a=1,b=2,c=3"


def test_a_33rd_member_pushes_out_the_right_most():
    after = FULL.insert("new", "1")

    assert after.members == (("new", "1"), *FULL.members[:-1])


def test_changing_a_member_of_a_full_list_pushes_out_none():
    assert FULL.insert("k31", "x").members == (("k31", "x"), *FULL.members[:-1])
    assert {key for key, _ in FULL.insert("k5", "x").members} == {key for key, _ in FULL.members}


def test_get_and_delete():
    state = TraceState.parse("a=1,b=2")

    assert (state.get("a"), state.get("b"), state.get("c")) == ("1", "2", None)
    assert str(state.delete("a")) == "b=2"
    assert state.delete("c") == state
    assert TraceState().delete("a") == TraceState()


def test_a_value_cannot_be_changed_and_survives_pickle_and_copy():
    state = TraceState.parse("a=1,b=2")

    with pytest.raises(dataclasses.FrozenInstanceError):
        state.members = ()
    assert pickle.loads(pickle.dumps(state)) == copy.deepcopy(state) == state
    assert hash(state) == hash(TraceState((("a", "1"), ("b", "2"))))


@given(any_text | st.lists(any_text))
def test_any_text_is_read_or_refused_with_a_documented_reason(lines):
    parsed = outcome(TraceState.parse, lines)
    if isinstance(parsed, InvalidHeaderError):
        assert parsed.reason in REASONS
        assert 0 <= parsed.position <= len(lines if isinstance(lines, str) else ",".join(lines))
    else:
        assert ABNF.fullmatch(str(parsed))
        assert TraceState.parse(str(parsed)) == parsed


@given(states)
def test_what_is_written_reads_as_the_same(state):
    assert TraceState.parse(str(state)) == state
    assert ABNF.fullmatch(str(state))


@given(states, keys, values)
def test_insert_keeps_at_most_32_with_the_new_one_first(state, key, value):
    after = state.insert(key, value)

    assert after.members[0] == (key, value)
    assert len(after.members) <= MAX_MEMBERS
    assert after.get(key) == value
    assert after.members[1:] == state.delete(key).members[: MAX_MEMBERS - 1]
    assert TraceState.parse(str(after)) == after


def test_the_largest_list_is_read_with_room_for_spaces():
    largest = ",\t".join(f"{i:02}".ljust(256, "k") + "=" + "v" * 256 for i in range(MAX_MEMBERS))

    parsed = TraceState.parse(largest + " " * (MAX_CHARS - len(largest)))

    assert len(parsed.members) == MAX_MEMBERS


def test_work_is_bounded_on_any_text():
    for huge in ["," * 10**6, " " * 10**6, "a=" + " " * 10**6, "a=1," * 10**6, "a" * 10**6]:
        assert str(outcome(TraceState.parse, huge)) == f"tracestate: length at character {MAX_CHARS}"
    assert TraceState.parse("," * MAX_CHARS) == TraceState()
    assert outcome(TraceState.parse, "," * (MAX_CHARS + 1)).reason == "length"
    with pytest.raises(InvalidHeaderError, match="value"):
        TraceState.parse("a=" + " " * (MAX_CHARS - 4) + "\0x")
