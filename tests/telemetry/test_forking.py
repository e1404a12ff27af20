"""A process forks between two exports, and never waits long for one."""

from __future__ import annotations

import gc
import os
import threading
import weakref

import pytest

from meshmw._telemetry import worker as forking
from meshmw._telemetry.worker import ForkGate

SECONDS = 60


@pytest.fixture
def hooks(monkeypatch):
    """What the process calls before and after it forks."""
    hooks = {}
    monkeypatch.setattr(os, "register_at_fork", hooks.update)
    return hooks


class Export:
    """An export in a thread of its own, under way until it is told to end."""

    def __init__(self, gate):
        self._gate = gate
        self.begun, self.end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with self._gate:
            self.begun.set()
            self.end.wait(SECONDS)
        self.ended.set()

    def start(self):
        self._thread.start()

    def __enter__(self):
        if not self._thread.is_alive():
            self.start()
        assert self.begun.wait(SECONDS)
        return self

    def __exit__(self, *_):
        self.end.set()
        self._thread.join(SECONDS)


def test_no_export_begins_while_the_process_forks(hooks):
    gate = ForkGate(lambda: False)
    hooks["before"]()
    export = Export(gate)
    export.start()
    assert not export.begun.is_set()
    hooks["after_in_parent"]()
    with export:
        pass
    assert export.ended.is_set()


def test_a_fork_waits_for_the_export_that_is_under_way(hooks):
    gate = ForkGate(lambda: False)
    with Export(gate) as export:
        fork = threading.Thread(target=lambda: (hooks["before"](), hooks["after_in_parent"]()))
        fork.start()
        export.end.set()
        fork.join(SECONDS)
    assert export.ended.is_set()
    with gate:
        pass


@pytest.mark.parametrize(("hopeless", "wait"), [(True, SECONDS), (False, 0.01)])
def test_it_waits_no_longer_than_is_worth_it_and_leaves_the_gate_to_the_export(hooks, monkeypatch, hopeless, wait):
    monkeypatch.setattr(forking, "_WAIT_SECONDS", wait)
    gate = ForkGate(lambda: hopeless)
    with Export(gate) as export:
        hooks["before"]()
        hooks["after_in_parent"]()
        assert not export.ended.is_set()
    with gate:
        pass


def test_a_child_does_not_wait_for_a_thread_that_only_its_parent_has(hooks):
    gate = ForkGate(lambda: True)
    of_the_parent = gate._lock
    with Export(gate):
        hooks["before"]()
        hooks["after_in_child"]()
        with gate:
            pass
        # The thread of this test's export is there all the same, and gives back what it took.
        gate._lock = of_the_parent


def test_the_process_keeps_no_gate_of_an_exporter_that_is_gone(hooks):
    gate = ForkGate(lambda: False)
    kept = weakref.ref(gate)
    del gate
    gc.collect()
    assert kept() is None
    for hook in hooks.values():
        hook()


def test_where_no_process_forks_there_is_nothing_to_do(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")
    with ForkGate(lambda: False):
        pass


def test_forks_wait_once_for_an_export_that_hangs_and_again_for_the_next(hooks, monkeypatch):
    """A pool forks its workers one after the other."""
    monkeypatch.setattr(forking, "_WAIT_SECONDS", 0.01)
    gate = ForkGate(lambda: False)
    with Export(gate):
        hooks["before"]()
        hooks["after_in_parent"]()
        monkeypatch.setattr(forking, "_WAIT_SECONDS", -1)
        # Without end now: it would never return.
        hooks["before"]()
        hooks["after_in_parent"]()
    assert not gate._gave_up
