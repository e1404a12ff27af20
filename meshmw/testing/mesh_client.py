"""The client of a test mesh: sends header lines exactly as they are written, and waits for the whole trace of it."""

from __future__ import annotations

import abc
import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshmw.diagnose.journey import Journey
from meshmw.errors import InvalidHeaderError, MeshError
from meshmw.testing.header_matrix import HeaderCase
from meshmw.testing.mesh_journey import Follower, as_probe
from meshmw.testing.otlp import OtlpReceiver
from meshmw.testing.span_tree import roots
from meshmw.testing.spans import ReceivedSpan
from meshmw.wire.traceparent import TraceParent

HeaderLines = Iterable[tuple[str, str]] | Mapping[str, str] | HeaderCase
CLIENT = "client"
_QUIET = 0.15


@dataclass(frozen=True, slots=True)
class Answer:
    """Is a response, read to its end.

    Attributes:
        status: The status code.
        headers: The header lines, in order.
        body: The body's bytes.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return what the body holds.

        Raises:
            ValueError: It is no JSON.
        """
        return json.loads(self.body)


class MeshClient(abc.ABC):
    """Sends requests into a mesh and collects what became of them.

    Args:
        receiver: The collector of the mesh.
        expected: The names of the services that a whole trace has spans of.
    """

    def __init__(self, receiver: OtlpReceiver, expected: Sequence[str]) -> None:
        self.receiver = receiver
        self._expected = frozenset(expected)
        self._journey: Callable[[float], Journey] | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """The base URL that requests enter by."""

    @property
    @abc.abstractmethod
    def access_logs(self) -> dict[str, Path]:
        """Each proxy's access log by the proxy's name, in the order of the way."""

    def get(self, path: str = "/", headers: HeaderLines = ()) -> Answer:
        """Send one GET, as `request` does."""
        return self.request("GET", path, headers)

    def request(self, method: str, path: str, headers: HeaderLines = (), body: bytes | None = None) -> Answer:
        """Send one request with exactly these header lines, repeated and malformed ones too.

        What the receiver held before is forgotten. The sampled span that the headers name is added to it, as one of
        the service `client`, so that a trace that goes on has its root.

        Args:
            method: The method.
            path: The path and query.
            headers: Name and value of each line, in order; or a case of the header matrix.
            body: The body's bytes.
        """
        lines = _lines(headers)
        follower = Follower(self.access_logs, self.receiver)
        self.receiver.clear()
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
        started = time.time_ns()
        with contextlib.closing(connection):
            connection.putrequest(method, path)
            for name, value in lines:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            answer = Answer(response.status, tuple(response.getheaders()), response.read())
        self.receiver.add(_own_span(method, headers, started))
        probe = as_probe(method, self.url + path, lines, _named(headers))
        self._journey = partial(follower.journey, probe, answer.status, started)
        return answer

    @property
    def was_asked(self) -> bool:
        """Says whether a request was sent."""
        return self._journey is not None

    def journey(self, timeout: float = 30.0) -> Journey:
        """Return what became of the last request: its headers hop by hop, its spans, and the verdict.

        `meshmw.diagnose.report.write_report` makes a page of it.

        Args:
            timeout: Seconds to wait for what is not there yet.

        Raises:
            MeshError: No request was sent.
        """
        if self._journey is None:
            raise MeshError("no request was sent into this mesh")
        return self._journey(timeout)

    def spans(self, *services: str, timeout: float = 30.0) -> list[ReceivedSpan]:
        """Wait for the whole trace, and return every span since the last request, whole or not.

        A trace is whole when each service has a span in it and no span's parent is missing. What is not whole after
        *timeout* seconds is returned as it is: the assertion that follows shows the tree.

        Args:
            services: The services to wait for; all of the mesh if none is named.
            timeout: Seconds to wait.
        """
        wanted = frozenset(services) or self._expected
        with contextlib.suppress(AssertionError):
            self.receiver.wait_for(lambda spans: _is_whole(spans, wanted), timeout)
        # One that comes late would be missed by an assertion that there is nothing else.
        known = -1
        while known != len(found := self.receiver.spans):
            known = len(found)
            time.sleep(_QUIET)
        return found


def _is_whole(spans: Sequence[ReceivedSpan], services: frozenset[str]) -> bool:
    return services <= {span.service for span in spans} and not any(span.parent_id for span in roots(spans))


def _lines(headers: HeaderLines) -> list[tuple[str, str]]:
    if isinstance(headers, HeaderCase):
        return list(headers.lines)
    return list(headers.items() if isinstance(headers, Mapping) else headers)


def _own_span(method: str, headers: HeaderLines, started: int) -> list[ReceivedSpan]:
    """Return the span that the headers name, where they say that it was recorded."""
    found, sampled = _named(headers), _is_sampled(headers)
    if found is None or not sampled:
        return []
    trace_id, span_id = found
    return [
        ReceivedSpan(
            service=CLIENT,
            name=method,
            kind="CLIENT",
            trace_id=trace_id,
            span_id=span_id,
            start_ns=started,
            end_ns=time.time_ns(),
        )
    ]


def _parent(headers: HeaderLines) -> TraceParent | None:
    values = [value for name, value in _lines(headers) if name.lower() == "traceparent"]
    try:
        return TraceParent.parse(values[0]) if len(values) == 1 else None
    except InvalidHeaderError:
        return None


def _named(headers: HeaderLines) -> tuple[str, str] | None:
    if isinstance(headers, HeaderCase):
        return (headers.trace_id, headers.parent_id) if headers.trace_id else None
    parent = _parent(headers)
    return None if parent is None else (f"{parent.trace_id:032x}", f"{parent.parent_id:016x}")


def _is_sampled(headers: HeaderLines) -> bool:
    if isinstance(headers, HeaderCase):
        return bool(headers.sampled)
    parent = _parent(headers)
    return parent is not None and parent.sampled
