"""Which parent is trusted: duplicates, formats that disagree, flags that flipped, what a refused one leaves."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from meshmw import MeshPropagator
from meshmw._context.extraction import Extraction
from meshmw._context.read_trace import _long_trace_state
from meshmw.wire.tracestate import MAX_CHARS

TRACE_ID, OTHER_TRACE = "0af7651916cd43dd8448eb211c80319c", "1" * 32
PARENT_ID, OTHER_PARENT = "b7ad6b7169203331", "2" * 16
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
SIBLING = f"00-{TRACE_ID}-{OTHER_PARENT}-01"
STRANGER = f"00-{OTHER_TRACE}-{OTHER_PARENT}-01"
BOTH = ("tracecontext", "b3", "b3multi")


def read(lines: dict[str, list[str]], formats: tuple[str, ...] = ("tracecontext", "baggage"), **how: Any) -> Extraction:
    return MeshPropagator(formats, **how).read(lines)


def parent_of(found: Extraction) -> str | None:
    if found.span_context is None:
        return None
    return f"{found.span_context.trace_id:032x}-{found.span_context.span_id:016x}"


@pytest.mark.parametrize(("length", "is_remembered"), [(2_049, True), (MAX_CHARS, True), (MAX_CHARS + 1, False)])
def test_a_tracestate_that_is_longer_than_any_list_is_refused_and_not_remembered(
    length: int, is_remembered: bool
) -> None:
    _long_trace_state.cache_clear()
    line = "a=1,b=".ljust(length, "x")
    for _ in range(2):
        found = read({"traceparent": [TRACEPARENT], "tracestate": [line]})
        assert found.refused == (("tracestate", "value" if is_remembered else "length"),)
    assert _long_trace_state.cache_info().currsize == is_remembered


class TestDuplicates:
    @pytest.mark.parametrize(
        "lines",
        [
            [TRACEPARENT, STRANGER],
            [TRACEPARENT, "00-xyz"],
            [TRACEPARENT, ""],
            [f"{TRACEPARENT}, {STRANGER}"],
            [f"{TRACEPARENT},"],
            [TRACEPARENT] * 9,
            [",".join([TRACEPARENT] * 5000)],
        ],
    )
    def test_copies_that_do_not_all_name_one_trace_start_a_new_one(self, lines: list[str]) -> None:
        found = read({"traceparent": lines, "tracestate": ["a=1"]}, duplicates="same-trace")
        assert found.span_context is None
        assert found.refused == (("traceparent", "duplicate"),)
        assert found.rewrites == {"traceparent": None, "tracestate": None}

    @pytest.mark.parametrize(
        "lines", [[TRACEPARENT, SIBLING], [f"{TRACEPARENT},{SIBLING}"], [f"{TRACEPARENT} , {SIBLING}", TRACEPARENT]]
    )
    def test_copies_of_one_trace_continue_it_below_the_first_where_asked(self, lines: list[str]) -> None:
        found = read({"traceparent": lines, "tracestate": ["a=1"]}, duplicates="same-trace")
        assert parent_of(found) == f"{TRACE_ID}-{PARENT_ID}"
        assert found.rewrites == {"traceparent": TRACEPARENT}
        assert found.refused == (("traceparent", "duplicate"),)

    @pytest.mark.parametrize("lines", [[TRACEPARENT, TRACEPARENT], [f"{TRACEPARENT},{TRACEPARENT}"]])
    def test_by_default_even_equal_copies_start_a_new_trace_that_links_to_the_first(self, lines: list[str]) -> None:
        found = read({"traceparent": lines})
        assert found.span_context is None
        assert found.rejected is not None
        assert found.rejected.span_id == int(PARENT_ID, 16)


class TestRejectedParent:
    @pytest.mark.parametrize("text", [TRACEPARENT.upper(), f"cc{TRACEPARENT[2:]}", f"cc{TRACEPARENT[2:]}-more"])
    def test_a_refused_traceparent_that_still_parses_is_kept_for_a_link(self, text: str) -> None:
        found = read({"traceparent": [text]})
        assert found.span_context is None
        assert found.rejected is not None
        assert f"{found.rejected.trace_id:032x}" == TRACE_ID

    @pytest.mark.parametrize("text", ["", "00-xyz", f"ff{TRACEPARENT[2:]}", TRACEPARENT.replace(TRACE_ID, "0" * 32)])
    def test_one_that_does_not_parse_leaves_nothing(self, text: str) -> None:
        assert read({"traceparent": [text]}).rejected is None


class TestConflict:
    SAME_TRACE = {"traceparent": [TRACEPARENT], "b3": [f"{TRACE_ID}-{OTHER_PARENT}-0"]}
    OTHER = {"traceparent": [TRACEPARENT], "b3": [f"{OTHER_TRACE}-{OTHER_PARENT}-1"], "tracestate": ["a=1"]}
    BELOW = {"traceparent": [TRACEPARENT], "b3": [f"{TRACE_ID}-{OTHER_PARENT}-1-{PARENT_ID}"], "tracestate": ["a=1"]}
    BELOW_MULTI = {
        "traceparent": [TRACEPARENT],
        "x-b3-traceid": [TRACE_ID],
        "x-b3-spanid": [OTHER_PARENT],
        "x-b3-parentspanid": [PARENT_ID],
        "x-b3-sampled": ["1"],
    }

    @pytest.mark.parametrize("lines", [SAME_TRACE, OTHER, BELOW, BELOW_MULTI])
    @pytest.mark.parametrize("formats", [BOTH, BOTH[::-1]])
    def test_by_default_the_traceparent_decides_in_any_order(self, lines: Any, formats: tuple[str, ...]) -> None:
        found = read(lines, formats)
        assert parent_of(found) == f"{TRACE_ID}-{PARENT_ID}"
        assert found.b3 is None
        assert found.refused == (("b3", "conflict"),)

    @pytest.mark.parametrize("lines", [SAME_TRACE, OTHER, BELOW])
    def test_b3_decides_where_it_is_preferred(self, lines: Any) -> None:
        found = read(lines, BOTH, prefer="b3")
        assert parent_of(found) == "-".join(lines["b3"][0].split("-")[:2])
        assert found.refused == (("traceparent", "conflict"),)

    def test_the_state_goes_along_within_one_trace_and_not_to_another(self) -> None:
        same, other = read(self.BELOW, BOTH, prefer="b3"), read(self.OTHER, BOTH, prefer="b3")
        assert same.span_context is not None
        assert other.span_context is not None
        assert same.span_context.trace_state.to_header() == "a=1"
        assert other.span_context.trace_state.to_header() == ""

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            (SAME_TRACE, f"{TRACE_ID}-{PARENT_ID}"),
            (OTHER, f"{TRACE_ID}-{PARENT_ID}"),
            (BELOW, f"{TRACE_ID}-{OTHER_PARENT}"),
            (BELOW_MULTI, f"{TRACE_ID}-{OTHER_PARENT}"),
            ({**BELOW_MULTI, "x-b3-parentspanid": ["3" * 16]}, f"{TRACE_ID}-{PARENT_ID}"),
            ({**SAME_TRACE, "x-meshmw-sent": [f"{PARENT_ID}-01"]}, f"{TRACE_ID}-{OTHER_PARENT}"),
            ({**BELOW, "x-meshmw-sent": [f"{'3' * 16}-01"]}, f"{TRACE_ID}-{PARENT_ID}"),
            ({**OTHER, "x-meshmw-sent": [f"{PARENT_ID}-01"]}, f"{TRACE_ID}-{PARENT_ID}"),
            ({**OTHER, "b3": [f"{OTHER_TRACE}-{OTHER_PARENT}-1-{PARENT_ID}"]}, f"{TRACE_ID}-{PARENT_ID}"),
        ],
    )
    def test_auto_takes_b3_where_it_can_tell_that_a_proxy_wrote_it_last(self, lines: Any, expected: str) -> None:
        assert parent_of(read(lines, BOTH, prefer="auto")) == expected

    def test_formats_that_agree_are_no_conflict(self) -> None:
        found = read({"traceparent": [TRACEPARENT], "b3": [f"{TRACE_ID}-{PARENT_ID}-1"]}, BOTH)
        assert found.refused == ()
        assert found.b3 is None

    @pytest.mark.parametrize("b3", [f"{TRACE_ID}-{PARENT_ID}-d", "d"])
    def test_of_b3_that_agrees_the_debug_flag_is_kept(self, b3: str) -> None:
        found = read({"traceparent": [TRACEPARENT], "b3": [b3]}, BOTH)
        assert found.b3 is not None
        assert found.b3.debug

    def test_a_decision_without_ids_changes_nothing_beside_a_traceparent(self) -> None:
        found = read({"traceparent": [TRACEPARENT], "b3": ["0"]}, BOTH)
        assert parent_of(found) == f"{TRACE_ID}-{PARENT_ID}"
        assert found.b3 is None


class TestFlippedFlag:
    UNSAMPLED = {"traceparent": [f"{TRACEPARENT[:-1]}0"]}

    def test_one_that_left_our_client_sampled_and_arrived_unsampled_is_counted_and_said(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        propagator = MeshPropagator()
        found = propagator.read({**self.UNSAMPLED, "x-meshmw-sent": [f"{OTHER_PARENT}-01"]})
        assert propagator.rejections.counts == {("traceparent", "flipped"): 1}
        assert found.refused == (("traceparent", "flipped"),)
        assert found.rewrites == {}
        assert parent_of(found) == f"{TRACE_ID}-{PARENT_ID}"
        assert "a proxy between samples by its own rate" in caplog.text

    @pytest.mark.parametrize("sent", [[], [f"{PARENT_ID}-00"], [f"{PARENT_ID}-01"] * 2, ["junk"], ["01"]])
    def test_nothing_is_said_where_nothing_flipped(self, sent: list[str], caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            assert read({**self.UNSAMPLED, "x-meshmw-sent": sent}).refused == ()
            assert read({"traceparent": [TRACEPARENT], "x-meshmw-sent": [f"{OTHER_PARENT}-01"]}).refused == ()
        assert not caplog.records
