import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw.errors import InvalidHeaderError
from meshmw.wire import B3Context, examine_b3, read_b3
from meshmw.wire.b3 import REASONS
from tests.wire.claims import by_claim, outcome, vectors

VECTORS = vectors("b3")
TRACE_ID, SPAN_ID = "463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312"
SINGLE = f"{TRACE_ID}-{SPAN_ID}-1"
FORM = re.compile(r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}(?:-[01d])?|[01d]")
NONE = {"trace_id": None, "span_id": None, "sampled": None, "flags": None}

any_text = st.text() | st.text(alphabet=st.sampled_from("01adAg- \t\né"), max_size=70)
decisions = st.sampled_from([(None, False), (True, False), (False, False), (True, True)])
with_ids = st.builds(
    lambda t, s, d: B3Context(t, s, *d), st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), decisions
)
alone = decisions.filter(lambda d: d[0] is not None).map(lambda d: B3Context(None, None, *d))


def context_of(row):
    trace_id, span_id, sampled, debug = row["context"]
    return B3Context(trace_id and int(trace_id, 16), span_id and int(span_id, 16), sampled, debug)


@pytest.mark.parametrize("row", by_claim(VECTORS["single_invalid"]))
def test_an_invalid_single_header_is_refused_with_reason_and_place(row):
    with pytest.raises(InvalidHeaderError) as caught:
        B3Context.parse(row["text"])

    assert caught.value.header == "b3"
    assert (caught.value.reason, caught.value.position) == (row["reason"], row["position"])


@pytest.mark.parametrize("row", by_claim(VECTORS["multi_invalid"]))
def test_invalid_headers_are_refused_with_the_name_of_the_one(row):
    with pytest.raises(InvalidHeaderError) as caught:
        B3Context.parse_multi(**NONE | row["headers"])

    assert (caught.value.header, caught.value.reason) == (row["header"], row["reason"])


@pytest.mark.parametrize("row", by_claim(VECTORS["single_valid"]))
def test_the_single_header_is_read_and_written(row):
    parsed = B3Context.parse(row["text"])

    assert parsed == context_of(row)
    assert str(parsed) == row["out"]
    assert B3Context.parse(str(parsed)) == parsed


@pytest.mark.parametrize("row", by_claim(VECTORS["multi_valid"]))
def test_the_headers_are_read_and_written(row):
    parsed = B3Context.parse_multi(**NONE | row["headers"])

    assert parsed == context_of(row)
    assert parsed.to_multi() == row["out"]


def test_every_reason_has_a_vector_and_every_vector_a_documented_reason():
    rows = VECTORS["single_invalid"] + VECTORS["multi_invalid"]
    assert {row["reason"] for row in rows} == set(REASONS)


def test_no_headers_are_no_context():
    assert read_b3(None) is None


def test_the_single_header_comes_first():
    assert read_b3(SINGLE, trace_id="f" * 32, span_id=SPAN_ID) == B3Context.parse(SINGLE)


def test_a_deny_in_the_single_header_is_a_decision_even_beside_ids():
    assert read_b3("0", trace_id=TRACE_ID, span_id=SPAN_ID, sampled="1") == B3Context(None, None, False)


@pytest.mark.parametrize("junk", ["", "banana", "0" * 32 + f"-{SPAN_ID}-1", SINGLE.upper()])
def test_an_invalid_single_header_hides_no_valid_others(junk):
    read = read_b3(junk, trace_id=TRACE_ID, span_id=SPAN_ID, sampled="1", flags=None)

    assert read == B3Context.parse(SINGLE)


def test_invalid_others_hide_no_valid_single_header():
    assert read_b3(SINGLE, trace_id="0" * 32, span_id="x", sampled="y", flags="z") == B3Context.parse(SINGLE)


@pytest.mark.parametrize(
    ("text", "junk"),
    [
        (f"{TRACE_ID}-{SPAN_ID}-x-{SPAN_ID}", f"x-{SPAN_ID}"),
        (f"{TRACE_ID}-{SPAN_ID}-x-y-{SPAN_ID}", f"x-y-{SPAN_ID}"),
        (f"{TRACE_ID}-{SPAN_ID}-1-y", "y"),
        (f"{TRACE_ID.upper()}-{SPAN_ID}-1", TRACE_ID.upper()),
        (f"{TRACE_ID}-{SPAN_ID.upper()}-1", SPAN_ID.upper()),
        (f"-{SPAN_ID}-1", ""),
        (TRACE_ID, None),
        (f"{SINGLE},{SINGLE}", f"1,{SINGLE}"),
        ("banana", "banana"),
    ],
)
def test_what_is_told_of_a_single_header_is_what_is_left_out_and_no_good_id(text, junk):
    (fault,) = examine_b3({"b3": text})[1]
    assert fault.junk == junk


@pytest.mark.parametrize(
    ("headers", "header", "reason"),
    [
        ({"single": ""}, "b3", "empty"),
        ({"single": "banana"}, "b3", "sampled"),
        ({"single": "banana", "trace_id": "0" * 32, "span_id": SPAN_ID}, "b3", "sampled"),
        ({"single": None, "trace_id": "0" * 32, "span_id": SPAN_ID}, "x-b3-traceid", "zero_trace_id"),
        ({"single": None, "trace_id": TRACE_ID}, "x-b3-spanid", "incomplete"),
        ({"single": None, "flags": ""}, "x-b3-traceid", "empty"),
    ],
)
def test_headers_without_a_valid_form_are_refused(headers, header, reason):
    with pytest.raises(InvalidHeaderError) as caught:
        read_b3(**headers)

    assert (caught.value.header, caught.value.reason) == (header, reason)


def test_half_a_context_and_no_decision_write_nothing():
    assert str(B3Context(None, None, None)) == ""
    assert B3Context(None, 1, None).to_multi() == {}


@given(any_text)
def test_any_text_is_read_or_refused_with_a_documented_reason(text):
    parsed = outcome(B3Context.parse, text)
    if isinstance(parsed, InvalidHeaderError):
        assert parsed.reason in REASONS
        assert 0 <= parsed.position <= len(text)
    else:
        assert FORM.fullmatch(str(parsed))


@given(st.fixed_dictionaries({name: st.none() | any_text for name in ("single", *NONE)}))
def test_any_headers_are_read_or_refused_with_a_documented_reason(headers):
    parsed = outcome(lambda: read_b3(**headers))
    if isinstance(parsed, InvalidHeaderError):
        assert parsed.reason in REASONS
    else:
        assert parsed is None or FORM.fullmatch(str(parsed))


@given(with_ids | alone)
def test_what_is_written_in_either_form_reads_as_the_same(context):
    names = {"x-b3-traceid": "trace_id", "x-b3-spanid": "span_id", "x-b3-sampled": "sampled", "x-b3-flags": "flags"}
    multi = {names[name]: text for name, text in context.to_multi().items()}

    assert B3Context.parse(str(context)) == context
    assert B3Context.parse_multi(**NONE | multi) == context
    assert FORM.fullmatch(str(context))


def test_work_grows_no_faster_than_the_text():
    for huge in ["-" * 10**6, "0" * 10**6, " " * 10**6, SINGLE.upper() + "-" * 10**6]:
        with pytest.raises(InvalidHeaderError):
            read_b3(huge, trace_id=huge, span_id=huge, sampled=huge, flags=huge)
    huge = SINGLE + "-" * 10**6
    assert read_b3(huge, trace_id=huge, span_id=huge, sampled=huge, flags=huge) == B3Context.parse(SINGLE)
