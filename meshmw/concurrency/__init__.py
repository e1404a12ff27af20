"""Work that leaves the frame which asked for it, and stays in its trace: threads, processes, callbacks; and work that
shall leave the trace.
"""

from meshmw.concurrency.binding import bind
from meshmw.concurrency.detached import detached, linked
from meshmw.concurrency.processes import ProcessPoolExecutor
from meshmw.concurrency.tasks import run_in_executor, to_thread
from meshmw.concurrency.threads import Thread, ThreadPoolExecutor

__all__ = [
    "ProcessPoolExecutor",
    "Thread",
    "ThreadPoolExecutor",
    "bind",
    "detached",
    "linked",
    "run_in_executor",
    "to_thread",
]
