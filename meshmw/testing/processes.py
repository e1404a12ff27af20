"""Child processes that do not outlive the process that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

# Runs before the command takes the process over. `-I -S` keeps it at some ten milliseconds; a `preexec_fn` would fork
# this process's threads, which may deadlock. The parent may be gone before prctl is called, hence the second look.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def dies_with_parent(command: Sequence[str]) -> list[str]:
    """Wrap a command so that the kernel ends it when this process dies, whatever the way.

    Args:
        command: An absolute path and its arguments.

    Returns:
        The command to start; unchanged outside Linux, and off the main thread, because Linux counts the end of the
        thread that started a process as the death of its parent.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def start_process(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that does not outlive this one, with its output and its errors in a file.

    Ctrl-C has to wait until it is started: a process that nobody holds yet could not be stopped.

    Args:
        command: An absolute path and its arguments.
        log: The file to write.
        environment: All of its environment variables; this process's own if None.
        cwd: Where it runs; this process's own directory if None.
    """
    with log.open("wb") as output, _interrupts_noted() as interrupts:
        process = subprocess.Popen(
            dies_with_parent(command),
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if interrupts:
        stop_processes([process])
        signal.raise_signal(signal.SIGINT)
    return process


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    noted: list[int] = []
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield noted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def stop_processes(processes: Iterable[subprocess.Popen[bytes]], timeout: float = 5.0) -> None:
    """End processes that may already have ended: ask all of them first, then wait, and kill what stays.

    Args:
        processes: What to stop.
        timeout: Seconds that each may take after being asked.
    """
    running = list(processes)
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
