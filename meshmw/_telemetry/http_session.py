"""The HTTP session of OTLP exporters, which never holds an answer of unknown size in memory.

A file of its own because its class derives from one of `requests`, which comes with the OTLP exporter for HTTP alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from typing import Any, Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from requests import PreparedRequest, Request, RequestException, Response, Session
from requests.adapters import HTTPAdapter
from urllib3.util import Timeout

from meshmw._notices import without_secrets
from meshmw._telemetry.reachability import note_answer, note_failure

# A collector answers with an empty message, or with a few words about what it refused.
_LONGEST_ANSWER: Final = 65_536
_MOST_DIGITS: Final = 5
# Each part of an answer has the exporter's timeout to itself; all of them together have this.
_LONGEST_SECONDS: Final = 2.0
_REDIRECTS: Final = range(300, 400)


class BoundedSession(Session):
    """Reads short answers of a known length, so that the connection is used again, and hangs up on all others."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()
        self._inherited: list[Any] = []

    def prepare_request(self, request: Request) -> PreparedRequest:
        """Keep the credentials that the exporter was told, which requests would replace by those of a netrc file."""
        if "authorization" in map(str.lower, (*request.headers, *self.headers)):
            request.auth = _as_it_is
        return super().prepare_request(request)

    def send(self, request: Any, **options: Any) -> Response:
        """Send the request, without reading the answer before its length is known."""
        if self._process != os.getpid():
            self._leave_connections_to_the_parent()
        if self.verify is not True:
            # Otherwise requests prefers what REQUESTS_CA_BUNDLE says to what the exporter was told.
            options["verify"] = self.verify
        # A number would be the time to connect, and once more the time for an answer.
        # A redirect is not followed: the headers hold keys, and requests makes a GET without spans of most.
        options |= {"stream": True, "timeout": Timeout(total=options.get("timeout")), "allow_redirects": False}
        try:
            response = super().send(request, **options)
            _refuse_redirect(response)
        except Exception as error:
            note_failure(error)
            raise
        length = response.headers.get("content-length", "")
        if length.isdecimal() and len(length) <= _MOST_DIGITS and int(length) <= _LONGEST_ANSWER:
            _note(_read(response))
        response.close()
        return response

    def _leave_connections_to_the_parent(self) -> None:
        # Two processes that write into one connection lose each other's spans.
        self._process = os.getpid()
        # Not closed: a lock in there may have been held when the process forked, and nobody would release it.
        self._inherited.append(self.adapters)
        self.adapters = OrderedDict()
        self.mount("https://", HTTPAdapter())
        self.mount("http://", HTTPAdapter())


def _as_it_is(request: PreparedRequest) -> PreparedRequest:
    return request


def _refuse_redirect(response: Response) -> None:
    # The exporter takes every status below 400 for a success, so that what was redirected would be lost without a word.
    if response.status_code in _REDIRECTS:
        response.close()
        where = without_secrets(response.headers.get("location", "another address"))
        raise RequestException(f"it answers {response.status_code} and redirects to {where}, which is not followed")


def _read(response: Response) -> bytes:
    # Before 2.1, urllib3 can only wait for the whole.
    read = getattr(response.raw, "read1", response.raw.read)
    answer = b""
    # The exporter's timeout bounds each wait for a part, so an answer that comes in drops needs a bound of its own.
    until = time.monotonic() + _LONGEST_SECONDS
    while (part := read(_LONGEST_ANSWER, decode_content=False)) and time.monotonic() < until:
        answer += part
    return answer


def _note(answer: bytes) -> None:
    # The answer for metrics differs in names alone. What is no such message, such as a proxy's page, is left alone.
    with contextlib.suppress(DecodeError):
        note_answer(ExportTraceServiceResponse.FromString(answer))
