"""The one throttle: each key once per window, in bounded memory, and without a lock that a fork could leave locked."""

from __future__ import annotations

import sys
import threading

import pytest

from meshmw._notices import Throttle


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_each_key_opens_once_per_window_and_says_how_often_it_was_held_back():
    clock = Clock()
    throttle = Throttle(60, clock)
    assert [throttle.opens("a"), throttle.opens("a"), throttle.opens("b"), throttle.opens("a")] == [0, None, 0, None]
    clock.now += 59.9
    assert throttle.opens("a") is None
    clock.now += 0.1
    assert [throttle.opens("a"), throttle.opens("a")] == [3, None]


def test_without_a_window_each_key_opens_once():
    clock = Clock()
    throttle = Throttle(clock=clock)
    assert throttle.opens() == 0
    clock.now = 1e300
    assert throttle.opens() is None


def test_keys_without_end_take_bounded_memory():
    throttle = Throttle()
    assert [throttle.opens(number) for number in range(300)] == [0] * 256 + [None] * 44
    assert len(throttle._said) == 256


@pytest.mark.parametrize("window", [60, 0])
def test_of_threads_that_meet_before_the_first_notice_one_opens(window):
    """One thread has seen that nothing was said yet, and waits while another says it."""
    throttle = Throttle(window)

    class Meeting(dict):
        def get(self, key):
            found = super().get(key)
            if not self:
                self[key] = [(100.0, 0)]
            return found

    throttle._said = Meeting()
    throttle._clock = Clock()
    assert throttle.opens() == (None if window else 0)


def test_whoever_finds_another_thread_inside_is_held_back_and_never_waits():
    """Also a signal handler in the middle of it, and a process that forked then, in which nobody puts the pair back."""
    throttle = Throttle(0)
    throttle.opens("a")
    throttle._said["a"].clear()
    assert throttle.opens("a") is None
    assert throttle.opens("b") == 0


def test_threads_lose_nothing_for_good():
    opened, interval = [], sys.getswitchinterval()
    throttle = Throttle(0)

    def notice():
        opened.extend(throttle.opens() is not None for _ in range(2_000))

    threads = [threading.Thread(target=notice) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    finally:
        sys.setswitchinterval(interval)
    assert any(opened)
    assert throttle.opens() == 0


def test_a_key_whose_window_is_over_makes_room_for_others():
    clock = Clock()
    throttle = Throttle(60, clock)
    assert [throttle.opens(number) for number in range(300)] == [0] * 256 + [None] * 44
    clock.now += 30
    assert throttle.opens("new") is None
    clock.now += 30
    assert [throttle.opens(f"{number}") for number in range(300)] == [0] * 256 + [None] * 44
    assert len(throttle._said) == 256
