"""The HTTP session of OTLP exporters, which never holds an answer of unknown size in memory.

A file of its own because its class derives from one of `requests`, which comes with the OTLP exporter for HTTP alone.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import socket
import threading
import time
from collections import OrderedDict
from http.client import HTTPResponse
from typing import Any, Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from requests import PreparedRequest, Request, RequestException, Response, Session
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout

from meshmw._notices import without_secrets
from meshmw._telemetry.reachability import note_answer, note_failure

# A collector answers with an empty message, or with a few words about what it refused.
_LONGEST_ANSWER: Final = 65_536
_MOST_DIGITS: Final = 5
# An answer's body decides nothing, and so is waited for no longer.
_LONGEST_SECONDS: Final = 2.0
_REDIRECTS: Final = range(300, 400)
# What every pool of connections is told.
_SIZES: Final = {"maxsize", "block"}


class _Deadline(threading.local):
    """When the request of this thread is to have its answer, by the monotonic clock."""

    until = math.inf


_DEADLINE: Final = _Deadline()


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the deadline: the socket's own timeout begins anew with every byte that comes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._raw = connection, connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Say that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there, or wait for it."""
        left = _DEADLINE.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        if left < math.inf:
            self._connection.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close what this reads."""
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, connection: socket.socket, *given: Any, **options: Any) -> None:
        super().__init__(connection, *given, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(connection))


class _TimedConnection(HTTPConnection):
    response_class = _TimedResponse


class _TimedTlsConnection(HTTPSConnection):
    response_class = _TimedResponse


class _TimedPool(HTTPConnectionPool):
    ConnectionCls = _TimedConnection


class _TimedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _TimedTlsConnection


class _TimedAdapter(HTTPAdapter):
    """Reads short answers of a known length, so that the connection is used again, and hangs up on all others."""

    def send(self, request: Any, stream: bool = False, timeout: Any = None, **options: Any) -> Response:  # type: ignore[override]
        """Send the request, without reading the answer before its length is known."""
        is_number = isinstance(timeout, int | float)
        # A number would be the time to connect, and once more the time for an answer.
        limit: Any = Timeout(total=timeout) if is_number else timeout
        _DEADLINE.until = time.monotonic() + timeout if is_number else math.inf
        try:
            response = super().send(request, stream=True, timeout=limit, **options)
        except Exception as error:
            note_failure(error)
            raise
        length = response.headers.get("content-length", "")
        if length.isdecimal() and len(length) <= _MOST_DIGITS and int(length) <= _LONGEST_ANSWER:
            _note(_read(response))
        response.close()
        if response.status_code >= 500:
            # Of the last attempt that it makes, the exporter logs no reason either.
            note_failure(RequestException(f"{response.status_code} {response.reason}"))
        return response

    def init_poolmanager(self, *given: Any, **options: Any) -> None:
        super().init_poolmanager(*given, **options)
        _use_timed_pools(self.poolmanager)

    def proxy_manager_for(self, *given: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*given, **options)
        _use_timed_pools(manager)
        return manager


_TIMED: Final[dict[type, type]] = {HTTPConnectionPool: _TimedPool, HTTPSConnectionPool: _TimedTlsPool}


def _use_timed_pools(manager: Any) -> None:
    # A SOCKS proxy's pools make connections of their own kind, and stay.
    kinds = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _TIMED.get(kind, kind) for scheme, kind in kinds.items()}


class BoundedSession(Session):
    """Sends with the credentials and certificates that the exporter was told, and shares no connection with a fork."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()
        self._inherited: list[Any] = []
        self._connect_anew()
        refuse_redirects(self)

    def prepare_request(self, request: Request) -> PreparedRequest:
        """Keep the credentials that the exporter was told, which requests would replace by those of a netrc file."""
        if "authorization" in map(str.lower, (*request.headers, *self.headers)):
            request.auth = _as_it_is
        return super().prepare_request(request)

    def send(self, request: Any, **options: Any) -> Response:
        """Send the request, in a forked process by connections of its own."""
        if self._process != os.getpid():
            self._leave_connections_to_the_parent()
        if self.verify is not True:
            # Otherwise requests prefers what REQUESTS_CA_BUNDLE says to what the exporter was told.
            options["verify"] = self.verify
        return super().send(request, **options)

    def _leave_connections_to_the_parent(self) -> None:
        # Two processes that write into one connection lose each other's spans.
        self._process = os.getpid()
        # Not closed: a lock in there may have been held when the process forked, and nobody would release it.
        self._inherited.append(self.adapters)
        self.adapters = OrderedDict()
        self._connect_anew()

    def _connect_anew(self) -> None:
        self.mount("https://", _TimedAdapter())
        self.mount("http://", _TimedAdapter())


def _as_it_is(request: PreparedRequest) -> PreparedRequest:
    return request


def bounded(session: Session, endpoint: str) -> Session:
    """Return a session of a credential provider's, which waits for and reads no more of the collector than one of ours.

    What it asks of others, such as for a token, it reads as before. An adapter of the provider's own class stays, and
    one that was told more than the size of its pools: it may be what carries the credentials.
    """
    url = str(Request("POST", endpoint).prepare().url)
    adapter = session.get_adapter(url)
    if type(adapter) is HTTPAdapter and adapter.poolmanager.connection_pool_kw.keys() <= _SIZES:
        timed = _TimedAdapter()
        # With its retries and the sizes of its pools.
        timed.__setstate__(adapter.__getstate__())
        session.mount(url, timed)
    return refuse_redirects(session)


def refuse_redirects(session: Session) -> Session:
    """Return a session of anybody's, which from now on fails where it is redirected.

    An exporter takes every status below 400 for a success, so that what was redirected would be lost without a word.
    To follow is no better: the headers hold keys, and requests makes a GET without spans of most.
    """
    own = session.hooks.get("response") or []
    session.hooks["response"] = [*([own] if callable(own) else own), _refuse_redirect]
    return session


def _refuse_redirect(response: Response, **_: Any) -> None:
    if response.status_code in _REDIRECTS:
        response.close()
        where = without_secrets(response.headers.get("location", "another address"))
        raise RequestException(f"it answers {response.status_code} and redirects to {where}, which is not followed")


def _read(response: Response) -> bytes:
    # Before 2.1, urllib3 can only wait for the whole.
    read = getattr(response.raw, "read1", response.raw.read)
    answer = b""
    _DEADLINE.until = min(_DEADLINE.until, time.monotonic() + _LONGEST_SECONDS)
    # Its status is that of a collector which has taken all.
    with contextlib.suppress(HTTPError):
        while part := read(_LONGEST_ANSWER, decode_content=False):
            answer += part
    return answer


def _note(answer: bytes) -> None:
    # The answer for metrics differs in names alone. What is no such message, such as a proxy's page, is left alone.
    with contextlib.suppress(DecodeError):
        note_answer(ExportTraceServiceResponse.FromString(answer))
