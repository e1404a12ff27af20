"""Bodies that a WSGI server sends by itself: files in its own `wsgi.file_wrapper` (PEP 3333), mostly by sendfile."""

from __future__ import annotations

import io
import sys
from typing import Any, Protocol

from meshmw._context.current import StepContext
from meshmw._lifecycle.http import HttpOperation


class _Followed(Protocol):
    """Follows what the client gets, as `wsgi` does for every response."""

    operation: HttpOperation
    sent: int
    is_out: bool
    is_whole: bool

    def fail(self, error: BaseException) -> None:
        """Record an error."""
        ...

    def end(self) -> None:
        """End the operation, once."""
        ...


def is_plain_file(body: Any, file_wrapper: object) -> bool:
    """Say whether *body* is the server's own object around a file of the operating system.

    To read any other file-like object may be work of the application, which belongs into the request's context.
    """
    if not isinstance(file_wrapper, type) or type(body) is not file_wrapper:
        return False
    # As gunicorn and wsgiref name it; as waitress does.
    file = getattr(body, "filelike", None) or getattr(body, "file", None)
    return isinstance(getattr(file, "raw", file), io.FileIO)


def ends_when_closed(body: Any, response: _Followed) -> bool:
    """Let the server's object end the operation when it is closed; say whether it can be made to.

    Only an object of the server's own class is sent by sendfile, so none of ours can stand around it. Whether the
    last byte went out is not to be seen from there.
    """
    step = StepContext(response.operation.context)
    close = getattr(body, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                step.run(close)
        except BaseException as error:
            response.fail(error)
            raise
        finally:
            # The server sends it, and nobody counts.
            response.sent, response.is_whole = sys.maxsize, True
            response.end()

    try:
        body.close = close_and_end
    except AttributeError:
        return False
    response.is_out = True
    return True
