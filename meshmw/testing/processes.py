"""Child processes that do not outlive the process that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence

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
