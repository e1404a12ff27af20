"""What is queued goes out where a process ends without exit handlers, and it ends as it would have ended."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from meshmw._telemetry import handle as process_end
from meshmw._telemetry.handle import flush_at_process_end
from tests.programs import UNTRACED

SECONDS = 60
# Says with one letter on standard output what happened, in order; coverage would handle SIGTERM before us.
COMMON = """
import ctypes, os, signal, sys, threading, time
from meshmw._telemetry.handle import flush_at_process_end

signal.signal(signal.SIGTERM, signal.SIG_DFL)

def say(letter):
    os.write(1, letter.encode())

def wait():
    say("w")
    while True:
        time.sleep(0.01)
"""


def run(code, times=1, how=signal.SIGTERM, **environment):
    """Run *code*, send it the signal when it says `w`; return what it said besides, and its exit status."""
    source = COMMON + textwrap.dedent(code)
    command, pipe, environ = [sys.executable, "-c", source], subprocess.PIPE, {**os.environ, **environment}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environ) as process:
        said = process.stdout.read(1)
        while said and not said.endswith(b"w"):
            said += process.stdout.read(1)
        for _ in range(times):
            process.send_signal(how)
        rest, errors = process.communicate(timeout=SECONDS)
        assert not errors, errors.decode()
        return (said + rest).replace(b"w", b"").decode(), process.returncode


def test_sigterm_flushes_and_kills_all_the_same():
    assert run("flush_at_process_end(lambda: say('f')); wait()") == ("f", -signal.SIGTERM)


def test_a_flush_that_fails_is_nobodys_matter():
    code = """
    sys.unraisablehook = lambda raised: None
    def fail():
        say("f")
        raise OSError("no collector")
    flush_at_process_end(fail)
    wait()
    """
    assert run(code) == ("f", -signal.SIGTERM)


def test_a_lock_that_the_signal_found_taken_costs_a_while_and_not_the_end():
    """`threading.Thread.start()` takes this lock, and so does a server that starts a thread for each request."""
    code = """
    from meshmw._telemetry import handle as process_end
    process_end._SIGNAL_SECONDS = 0.2
    def flush():
        threading.Thread(target=say, args="f").start()
    flush_at_process_end(flush)
    with threading._active_limbo_lock:
        wait()
    """
    assert run(code) == ("", -signal.SIGTERM)


def test_a_second_signal_kills_at_once():
    code = """
    def flush():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    flush_at_process_end(flush)
    wait()
    """
    assert run(code) == ("", -signal.SIGTERM)


def test_a_handler_that_was_there_stays():
    code = """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    flush_at_process_end(lambda: say("f"))
    wait()
    """
    assert run(code) == ("", 3)


def test_a_handler_that_comes_later_replaces_ours():
    code = """
    flush_at_process_end(lambda: say("f"))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    wait()
    """
    assert run(code) == ("", 3)


def test_a_server_that_gives_the_signal_back_at_its_end_gives_it_to_us():
    """uvicorn does: it restores the handler that it found, and raises what it caught."""
    code = """
    def caught(number, frame):
        say("c")
        signal.signal(number, before)
        signal.raise_signal(number)
    flush_at_process_end(lambda: say("f"))
    before = signal.signal(signal.SIGTERM, caught)
    wait()
    """
    assert run(code) == ("cf", -signal.SIGTERM)


def test_an_ignored_signal_stays_ignored():
    code = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, lambda *_: os._exit(3))
    flush_at_process_end(lambda: say("f"))
    os.kill(os.getpid(), signal.SIGTERM)
    wait()
    """
    assert run(code, how=signal.SIGINT) == ("", 3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells in /proc who else catches a signal")
def test_a_handler_outside_of_python_stays():
    code = """
    caught = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: os._exit(3))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, type(caught)]
    libc.signal(signal.SIGTERM, caught)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    flush_at_process_end(lambda: say("f"))
    wait()
    """
    assert run(code) == ("", 3)


def test_off_the_main_thread_the_signal_stays_as_it_is():
    code = """
    thread = threading.Thread(target=flush_at_process_end, args=[lambda: say("f")])
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    wait()
    """
    assert run(code) == ("", -signal.SIGTERM)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_where_nobody_tells_who_else_catches_it_the_signal_stays_as_it_is(platform):
    code = f"""
    sys.platform = "{platform}"
    flush_at_process_end(lambda: say("f"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    wait()
    """
    assert run(code) == ("", -signal.SIGTERM)


@pytest.mark.parametrize("ending", ["pass", "sys.exit(1)", "raise SystemExit", "os.kill(os.getpid(), signal.SIGTERM)"])
@pytest.mark.parametrize("method", sorted(multiprocessing.get_all_start_methods()))
def test_a_process_of_multiprocessing_flushes_at_its_end(tmp_path, method, ending):
    """Such a process ends with `os._exit`."""
    module = tmp_path / "program.py"
    module.write_text(
        COMMON
        + textwrap.dedent(f"""
        import multiprocessing
        flush_at_process_end(lambda: say("f"))

        def work():
            {ending}

        if __name__ == "__main__":
            process = multiprocessing.get_context("{method}").Process(target=work)
            process.start()
            process.join()
            say("|")
        """)
    )
    done = subprocess.run([sys.executable, module], capture_output=True, text=True, timeout=SECONDS)
    # At the end of the parent too, where `shutdown()` has left nothing to do.
    assert done.stdout == "f|f", done.stderr


def test_a_process_forked_by_multiprocessing_that_was_imported_later_flushes_at_its_end():
    code = """
    assert "multiprocessing" not in sys.modules
    flush_at_process_end(lambda: say("f"))
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=say, args="c")
    process.start()
    process.join()
    wait()
    """
    assert run(code, **UNTRACED) == ("cff", -signal.SIGTERM)


def test_the_child_of_a_child_flushes_once():
    code = """
    assert "multiprocessing" not in sys.modules
    flush_at_process_end(lambda: say("f"))
    import multiprocessing
    fork = multiprocessing.get_context("fork")
    def work(depth):
        say(str(depth))
        if depth < 3:
            process = fork.Process(target=work, args=(depth + 1,))
            process.start()
            process.join()
    work(1)
    wait()
    """
    assert run(code, **UNTRACED) == ("123fff", -signal.SIGTERM)


def test_the_finalizer_of_a_child_comes_after_those_of_the_application():
    code = """
    import multiprocessing, multiprocessing.util
    flush_at_process_end(lambda: say("f"))
    def work():
        multiprocessing.util.Finalize(None, say, args="a", exitpriority=-10)
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    wait()
    """
    assert run("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))" + textwrap.dedent(code)) == ("aff", 0)


# In this process, for the lines that coverage cannot see in the others.


@pytest.fixture
def default(monkeypatch):
    """SIGTERM as Python leaves it, and a kernel that spares this process; what was raised is noted."""
    raised = []
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(multiprocessing.util, "register_after_fork", lambda *_: None)
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda *_, **named: None)
    monkeypatch.setattr(process_end, "_is_caught_outside_python", lambda: False)
    monkeypatch.setattr(
        signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(signal.SIGTERM)))
    )
    yield raised
    signal.signal(signal.SIGTERM, before)


def test_the_first_process_of_a_container_goes_on_and_flushes_again(default):
    """The kernel spares it where it handles the signal by default."""
    flushed = []
    flush_at_process_end(lambda: flushed.append(threading.current_thread()))
    ours = signal.getsignal(signal.SIGTERM)
    for times in (1, 2):
        ours(signal.SIGTERM, None)
        assert len(flushed) == times
        assert default == [(signal.SIGTERM, signal.SIG_DFL)] * times
        assert signal.getsignal(signal.SIGTERM) is ours
    assert threading.main_thread() not in flushed


def test_outside_linux_no_handler_is_set(default, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    flush_at_process_end(lambda: None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_where_no_thread_starts_any_more_it_just_ends(default, monkeypatch):
    def cannot(*_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(process_end._thread, "start_new_thread", cannot)
    flush_at_process_end(lambda: None)
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert len(default) == 1


@pytest.fixture
def registered(default, monkeypatch):
    """The priorities of the finalizers that are registered, at once and after a fork."""
    found = []
    monkeypatch.setattr(multiprocessing.util, "Finalize", lambda _, flush, exitpriority: found.append(exitpriority))
    monkeypatch.setattr(multiprocessing.util, "register_after_fork", lambda anchor, register: register(anchor))
    return found


def test_a_forked_process_gets_a_finalizer_of_its_own(registered):
    flush_at_process_end(lambda: None)
    assert registered == [-1000, -1000]


def test_a_process_that_imports_multiprocessing_later_gets_them_too(registered, monkeypatch):
    after_fork = []
    monkeypatch.setattr(os, "register_at_fork", lambda after_in_child: after_fork.append(after_in_child))
    with monkeypatch.context() as before:
        before.delitem(sys.modules, "multiprocessing")
        flush_at_process_end(lambda: None)
        after_fork[0]()
        assert registered == []
        before.delattr(os, "register_at_fork")
        flush_at_process_end(lambda: None)
    for _ in range(3):
        after_fork[0]()
        # What a child has arranged holds for its own children.
        assert registered == [-1000, -1000]
    assert len(after_fork) == 1


@pytest.mark.parametrize(
    ("status", "caught"),
    [
        ("SigIgn:\t0000000000000000\nSigCgt:\t0000000000004000\n", True),
        ("SigCgt:\t0000000000000000\n", False),
        ("SigCgt:\t0000000000008000\nx", False),
        ("", False),
        (None, False),
    ],
)
def test_linux_tells_whether_the_signal_is_caught(monkeypatch, tmp_path, status, caught):
    file = tmp_path / "status"
    if status is not None:
        file.write_text(status)
    monkeypatch.setattr(process_end, "_STATUS", file)
    assert process_end._is_caught_outside_python() is caught
