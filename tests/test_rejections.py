"""Every refusal is counted; each reason is said once per window, in a line that nothing from outside can forge."""

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._notices import Rejections, quoted


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def rejections(clock):
    return Rejections(window=60, clock=clock)


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "meshmw"]


def test_a_refusal_is_said_with_its_reason_its_excerpt_and_what_follows(rejections, caplog):
    rejections.record("traceparent", "hex", "- the request starts a new trace", "00-xyz")
    assert lines(caplog) == ["traceparent refused (hex): '00-xyz' - the request starts a new trace"]
    assert caplog.records[0].levelno == logging.WARNING


def test_the_same_refusal_is_counted_and_not_said_within_the_window(rejections, clock, caplog):
    for _ in range(3):
        rejections.record("traceparent", "hex", "- x")
    clock.now += 59.9
    rejections.record("traceparent", "hex", "- x")
    assert rejections.counts == {("traceparent", "hex"): 4}
    assert len(lines(caplog)) == 1


def test_after_the_window_it_is_said_again_with_how_many_there_were_in_between(rejections, clock, caplog):
    for _ in range(3):
        rejections.record("traceparent", "hex", "- x")
    clock.now += 60
    rejections.record("traceparent", "hex", "- x")
    clock.now += 60
    rejections.record("traceparent", "hex", "- x")
    assert [line.partition("x")[2].partition("- x")[2] for line in lines(caplog)] == [
        "",
        " (2 more since the last such line)",
        "",
    ]


def test_reasons_and_headers_have_windows_of_their_own(rejections, caplog):
    for header, reason in [("a", "x"), ("a", "y"), ("b", "x")]:
        rejections.record(header, reason, "- z")
    assert len(lines(caplog)) == 3


def test_a_window_of_nothing_says_everything(caplog):
    rejections = Rejections(window=0)
    for _ in range(3):
        rejections.record("a", "x", "- z")
    assert len(lines(caplog)) == 3


def test_threads_lose_no_count(rejections):
    def record():
        for _ in range(500):
            rejections.record("a", "x", "- z")

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rejections.counts == {("a", "x"): 4000}


def test_the_counts_that_are_handed_out_are_a_copy(rejections):
    rejections.record("a", "x", "- z")
    rejections.counts.clear()
    assert rejections.counts == {("a", "x"): 1}


def test_a_header_that_was_trusted_is_no_refusal(rejections, caplog):
    rejections.accepted(("traceparent",))
    assert rejections.counts == {}
    assert lines(caplog) == []


@given(st.text())
def test_an_excerpt_is_short_printable_ascii_on_one_line(text):
    shown = quoted(text, 40)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) < 500


def test_an_excerpt_says_how_much_it_leaves_out():
    assert quoted("x" * 41, 40) == f"'{'x' * 40}'... (41 characters)"
    assert quoted("x" * 40, 40) == f"'{'x' * 40}'"
