"""Shows meshmw's log lines where nobody has set logging up: in the server's log, else on standard error.

By itself Python drops the line that says meshmw is on, and writes a warning as bare text. So a warning is shown here
from the first import on, and with `show_log`, which `configure()` calls, INFO too. What the application sets up wins,
before or after: a handler of its own for `meshmw` or for the root logger shows the lines instead, at its levels.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import zlib
from typing import Final, TextIO

from meshmw._regex import compiled_late

LOGGER: Final = logging.getLogger("meshmw")

# Servers set these up for themselves and leave the root logger alone. gunicorn first: its uvicorn workers write there.
_SERVERS: Final = ("gunicorn.error", "uvicorn", "hypercorn.error", "_granian", "daphne")
# Read by the processes that this one starts, so it is no setting of anybody's.
_VARIABLE: Final = "_MESHMW_SAID"


class _Level(int):
    """A level that is told from one that the application has set."""


_OUR_LEVEL: Final = _Level(logging.INFO)
# By the name that multiprocessing gives a worker.
_NUMBER: Final = compiled_late(r"Process-(\d+)$")
# Two processes with one number are in two of these.
_PID_NAMESPACE: Final = "/proc/self/ns/pid"


def show_log() -> None:
    """Show meshmw's lines, INFO too, for as long as nobody has set logging up; a second call changes nothing."""
    LOGGER.addHandler(_SHOWN)
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(_OUR_LEVEL)
        LOGGER.addFilter(_as_the_root_says)


def leave_log_to_python() -> None:
    """Show nothing from now on; where nobody has set logging up, Python writes warnings as bare text."""
    LOGGER.removeHandler(_SHOWN)


def once_in_tree(what: str) -> dict[str, str]:
    """Return the `extra` of a line that several workers of one server say alike, so that one of them shows it."""
    return {"meshmw_once": what}


class _ShownLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Write a line as the server writes its own, unless the application has handlers that get it."""
        # A request may be the reason for a line, and standard error may be closed.
        with contextlib.suppress(Exception):
            once = getattr(record, "meshmw_once", None)
            if not _is_set_up() and (once is None or _is_first_of_tree(once)):
                _show(record)


def _show(record: logging.LogRecord) -> None:
    line = logging.makeLogRecord(record.__dict__)
    message = record.getMessage()
    line.msg, line.args = message if message.startswith("meshmw ") else f"meshmw: {message}", None
    for handler in _server_handlers() or [_STDERR]:
        if line.levelno >= handler.level:
            handler.handle(line)


class _Stderr(logging.StreamHandler[TextIO]):
    # Asked for each time: who replaces sys.stderr wants the lines there.
    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Do nothing."""


_STDERR: Final = _Stderr()
# As gunicorn and hypercorn write: the latter sets its log up after it has loaded the application.
_STDERR.setFormatter(
    logging.Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] %(message)s", "%Y-%m-%d %H:%M:%S %z")
)


def _is_set_up() -> bool:
    return bool(logging.getLogger().handlers) or len(LOGGER.handlers) > 1


def _as_the_root_says(record: logging.LogRecord) -> bool:
    # Where the application sets logging up later, the root logger's level is what it wants to see, unless it has set
    # the level of this logger too.
    root = logging.getLogger()
    is_ours = LOGGER.level is _OUR_LEVEL
    return record.levelno >= logging.WARNING or not (is_ours and root.handlers) or root.isEnabledFor(record.levelno)


def _server_handlers() -> list[logging.Handler]:
    existing = logging.root.manager.loggerDict
    found = (getattr(existing.get(name), "handlers", []) for name in _SERVERS)
    return next((handlers for handlers in found if handlers), [])


def _is_first_of_tree(what: str) -> bool:
    """Say whether neither the process that started this one nor a living sibling has shown the line.

    Python's reloaders start a process with their own environment and arguments. A server's workers are started by one
    that has not loaded the application, and either numbered by multiprocessing, or forked.
    """
    mark = f"{zlib.crc32(f'{what} {sys.argv}'.encode('utf-8', 'replace')):08x}"
    said = os.environ.get(_VARIABLE, "")  # noqa: TID251 - a mark, and no setting
    if mark in said:
        return False
    os.environ[_VARIABLE] = f"{said} {mark}".strip()  # noqa: TID251
    number = _number_of_worker()
    if number is not None and _server_handlers():
        return number == "1"
    return _takes_name_in_family(mark)


def _number_of_worker() -> str | None:
    # A process that multiprocessing has started has imported it by now.
    multiprocessing = sys.modules.get("multiprocessing.process")
    found = multiprocessing and _NUMBER().search(multiprocessing.current_process().name)
    return found[1] if found else None


def _takes_name_in_family(mark: str) -> bool:
    # Linux frees such a name when the process that took it ends, and leaves no file behind. Elsewhere nobody can tell,
    # and each of them says it.
    if sys.platform != "linux":
        return True
    import socket

    # The containers of a pod share the names of sockets, and in each of them the first process is number 1.
    namespace = 0
    with contextlib.suppress(OSError):
        namespace = os.stat(_PID_NAMESPACE).st_ino
    name = f"{namespace} {os.getppid()} {os.getpgid(0)} {mark}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as taken:
            taken.bind(f"\0meshmw-{os.getuid()}-{zlib.crc32(name.encode()):08x}")
            # Kept to the end of the process.
            taken.detach()
    except OSError as error:
        # Where a sandbox refuses, nobody can tell either.
        return error.errno != errno.EADDRINUSE
    return True


_SHOWN: Final = _ShownLog()
LOGGER.addHandler(_SHOWN)
