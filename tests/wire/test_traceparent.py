import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw.errors import InvalidHeaderError
from meshmw.wire import TraceParent
from meshmw.wire.traceparent import FLAG_RANDOM, FLAG_SAMPLED, REASONS
from tests.wire.claims import by_claim, outcome, vectors

VECTORS = vectors("traceparent")
VALID = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ABNF = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]")

near_misses = st.tuples(
    st.sampled_from([VALID, VALID + "-tail", "cc" + VALID[2:] + "-tail"]),
    st.integers(0, 60),
    st.integers(0, 60),
    st.text(alphabet=st.sampled_from("0aAfFgx-_,. \t\n\0\x7fé\uff11"), max_size=4),
).map(lambda t: t[0][: t[1]] + t[3] + t[0][t[2] :])
any_text = st.text() | near_misses | st.from_regex(r"[0-9a-fA-F]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def fault(text, policy="strict"):
    with pytest.raises(InvalidHeaderError) as caught:
        TraceParent.parse(text, policy)
    assert caught.value.header == "traceparent"
    return caught.value.reason, caught.value.position


@pytest.mark.parametrize("policy", ["strict", "w3c"])
@pytest.mark.parametrize("row", by_claim(VECTORS["invalid"]))
def test_what_is_invalid_is_refused_by_both_policies_with_reason_and_place(row, policy):
    assert fault(row["text"], policy) == (row["reason"], row["position"])


@pytest.mark.parametrize("row", by_claim(VECTORS["later_versions_under_strict"]))
def test_strict_refuses_later_versions(row):
    assert fault(row["text"]) == (row["reason"], row["position"])


def test_an_upper_case_later_version_is_a_matter_of_case_for_the_policy_that_would_read_it():
    assert fault("cc" + VALID.upper()[2:], "w3c") == ("case", 4)


def test_the_policy_is_strict_unless_told_otherwise():
    with pytest.raises(InvalidHeaderError, match="version at character 0"):
        TraceParent.parse("01" + VALID[2:])


@pytest.mark.parametrize("policy", ["strict", "w3c"])
@pytest.mark.parametrize("row", by_claim(VECTORS["strict_valid"]))
def test_version_00_is_read_and_written(row, policy):
    parsed = TraceParent.parse(row["text"], policy)

    assert parsed.version == 0
    assert str(parsed) == row["out"]
    assert TraceParent.parse(str(parsed), policy) == parsed


@pytest.mark.parametrize("row", by_claim(VECTORS["w3c_valid"]))
def test_w3c_reads_later_versions_and_writes_them_as_version_00(row):
    parsed = TraceParent.parse(row["text"], "w3c")

    assert parsed.version == row["version"]
    assert str(parsed) == row["out"]


def test_fields_are_numbers():
    assert TraceParent.parse(VALID) == (0, 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, 1)


@pytest.mark.parametrize(("flags", "sampled", "random"), [("00", 0, 0), ("01", 1, 0), ("02", 0, 1), ("ff", 1, 1)])
def test_flags_are_read_by_their_bits(flags, sampled, random):
    parsed = TraceParent.parse(VALID[:-2] + flags)

    assert (parsed.sampled, parsed.random) == (bool(sampled), bool(random))
    assert parsed.trace_flags == sampled * FLAG_SAMPLED + random * FLAG_RANDOM


def test_unknown_flags_are_not_written_even_if_they_were_put_there():
    assert str(TraceParent(0, 1, 1, 0xFF)).endswith("-03")


def test_every_reason_has_a_vector_and_every_vector_a_documented_reason():
    rows = VECTORS["invalid"] + VECTORS["later_versions_under_strict"]
    assert {row["reason"] for row in rows} == set(REASONS)


def test_a_value_cannot_be_changed_and_survives_pickle_and_copy():
    parsed = TraceParent.parse(VALID)

    with pytest.raises(AttributeError):
        parsed.trace_id = 1
    assert pickle.loads(pickle.dumps(parsed)) == copy.deepcopy(parsed) == parsed


@given(any_text, st.sampled_from(["strict", "w3c"]))
def test_any_text_is_read_or_refused_with_a_documented_reason(text, policy):
    parsed = outcome(TraceParent.parse, text, policy)
    if isinstance(parsed, InvalidHeaderError):
        assert parsed.reason in REASONS
        assert 0 <= parsed.position <= len(text)
    else:
        assert ABNF.fullmatch(str(parsed))


@given(any_text)
def test_strict_accepts_version_00_alone_and_says_version_only_of_what_w3c_reads(text):
    parsed = outcome(TraceParent.parse, text)
    if isinstance(parsed, InvalidHeaderError):
        assert parsed.reason != "version" or TraceParent.parse(text, "w3c").version > 0
        assert parsed.reason != "case" or TraceParent.parse(text.lower())
    else:
        assert ABNF.fullmatch(text.strip(" \t")[:-2] + "00")
        assert TraceParent.parse(text, "w3c") == parsed


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 3))
def test_what_is_written_reads_as_the_same(trace_id, parent_id, flags):
    parsed = TraceParent(0, trace_id, parent_id, flags)

    assert TraceParent.parse(str(parsed)) == parsed
    assert ABNF.fullmatch(str(parsed))


def test_work_grows_no_faster_than_the_text():
    for huge in ["0" * 10**6, "-" * 10**6, " " * 10**6, VALID + "-" * 10**6, VALID + " " * 10**6 + "x"]:
        fault(huge, "w3c")
    assert TraceParent.parse("01" + VALID[2:] + "-" * 10**6, "w3c").version == 1
