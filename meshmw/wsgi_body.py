"""The body of a WSGI response: each step of it in the request's context, and the span's end with its last byte.

Knows what PEP 3333 says of bodies and of `wsgi.file_wrapper`. Must not know how a request begins.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sized
from typing import Any, Final, ParamSpec, TypeVar

from meshmw.boundary.http_operation import HttpOperation
from meshmw.steps import StepContext
from meshmw.streams import kept

P = ParamSpec("P")
R = TypeVar("R")

# Whose steps are no work of the application's, and need not be in the request's context.
_PLAIN: Final = frozenset({list, tuple})


def watched(body: Iterable[bytes], operation: HttpOperation, file_wrapper: object) -> Iterable[bytes]:
    """Return a body for the server that ends the operation when it is over.

    Args:
        body: What the application returned.
        operation: The request's; its context is current during each step of the body and at no other time.
        file_wrapper: The server's own, as it stands in the environ; a plain file in it is left to the server to send.
    """
    if _is_plain_file(body, file_wrapper) and _ends_when_closed(body, operation):
        return body
    return _SizedBody(body, operation) if isinstance(body, Sized) else _Body(body, operation)


class _Body:
    """Is the response body as steps of the application's; what these make current stays with them.

    An object rather than a generator: a server may close a body that it never began to read.
    """

    __slots__ = ("_body", "_kept", "_next", "_operation", "_run")

    def __init__(self, body: Iterable[bytes], operation: HttpOperation) -> None:
        self._body: Iterable[bytes] = body
        self._operation = operation
        self._run = _directly if type(body) in _PLAIN else StepContext(operation.context).run
        self._next: Callable[[], bytes] | None = None
        self._kept: object = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            step = self._next
            if step is None:
                step = self._next = self._begin()
            return self._run(step)
        except StopIteration:
            self._operation.end()
            raise
        except BaseException as error:
            self._operation.fail(error)
            self._operation.break_off()
            raise

    def close(self) -> None:
        """Close the application's body, and end the operation if its last byte never went out."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._run(close)
        except BaseException as error:
            self._operation.fail(error)
            raise
        finally:
            self._kept = None
            self._operation.break_off()

    def _begin(self) -> Callable[[], bytes]:
        steps = self._run(iter, self._body)
        # What a generator has made current would be taken back to the request's context, in the server's thread.
        self._kept = kept(steps, self._run)
        return steps.__next__


class _SizedBody(_Body):
    """Is a body whose number of chunks the server may ask for, to set Content-Length itself."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]  # made for sized bodies alone


def _directly(step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    return step(*args, **kwargs)


def _is_plain_file(body: Any, file_wrapper: object) -> bool:
    """Say whether *body* is the server's own object around a file of the operating system.

    To read any other file-like object may be work of the application, which belongs into the request's context.
    """
    if not isinstance(file_wrapper, type) or type(body) is not file_wrapper:
        return False
    # As gunicorn and wsgiref name it; as waitress does.
    file = getattr(body, "filelike", None) or getattr(body, "file", None)
    return isinstance(getattr(file, "raw", file), io.FileIO)


def _ends_when_closed(body: Any, operation: HttpOperation) -> bool:
    """Let the server's object end the operation when it is closed; say whether it can be made to.

    Only an object of the server's own class is sent by sendfile, so none of ours can stand around it. Whether the
    last byte went out is not to be seen from there.
    """
    step = StepContext(operation.context)
    close = getattr(body, "close", None)

    def close_and_end() -> None:
        try:
            if close is not None:
                step.run(close)
        except BaseException as error:
            operation.fail(error)
            raise
        finally:
            operation.end()

    try:
        body.close = close_and_end
    except AttributeError:
        return False
    return True
