"""One HTTP exchange with bounds on its time, its size and its encoding: what all tools ask servers with.

A server that a tool asks may be broken or hostile: it drips its headers, sends `100 Continue` without end, or packs
gigabytes into a few bytes. One deadline holds from the look-up of its name to the last byte. Redirects are not
followed, and no proxy of the environment is used. It works on httpcore, which httpx brings along, because httpx bounds
each read alone.
"""

from __future__ import annotations

import base64
import json
import queue
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpcore
import httpx

from meshmw.errors import MeshmwError

# The default of an answer's size, after it was decompressed.
MAX_BODY: Final = 1 << 25
_PIECE: Final = 1 << 16
# Seconds; sockets take no number that is much greater.
_LONGEST: Final = 86_400.0
# What zlib calls gzip, and deflate with the header that RFC 9110 8.4.1.2 asks for.
_WINDOWS: Final = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_OWN_HEADERS: Final = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "meshmw"}


class HttpError(MeshmwError):
    """Says in one line why no answer came, or none that can be used."""


@dataclass(frozen=True, slots=True)
class Response:
    """Holds an answer.

    Attributes:
        status_code: The HTTP status.
        headers: The header lines.
        body: The body, decompressed.
    """

    status_code: int
    headers: httpx.Headers
    body: bytes

    def json(self) -> Any:
        """Return what the body holds.

        Raises:
            ValueError: It is no JSON.
            RecursionError: It is nested too deeply.
        """
        return json.loads(self.body)


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    timeout: float = 10.0,
    limit: int = MAX_BODY,
    verify_tls: bool = True,
    cut: bool = False,
) -> Response:
    """Send one request and return its answer.

    Args:
        method: Such as `GET`.
        url: With `http` or `https`; a user and a password in it are sent as they are meant.
        headers: Header lines that win over this client's own.
        content: The body.
        timeout: Seconds for everything together.
        limit: Bytes of the body, after it was decompressed.
        verify_tls: Whether the certificate has to be good.
        cut: Whether an answer is returned as far as it came, where its body is too long, too slow or unreadable.

    Raises:
        HttpError: No answer came in time, or it was too long, or encoded in a way that was not asked for.
    """
    deadline = _Deadline(timeout)
    try:
        target = _target(url)
        given = {name.lower(): value for name, value in (headers or {}).items()}
        # httpcore would write an IPv6 address without its brackets.
        lines = {"host": target.netloc.decode("ascii"), **_OWN_HEADERS, **_credentials(target), **given}
        context = httpx.create_ssl_context(verify=verify_tls, trust_env=False) if target.scheme == "https" else None
        with (
            httpcore.ConnectionPool(ssl_context=context, network_backend=deadline) as pool,
            pool.stream(
                method.upper(),
                httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path),
                headers=[(name.encode("ascii"), value.encode()) for name, value in lines.items()],
                content=content,
            ) as answer,
        ):
            found = httpx.Headers(answer.headers)
            body = _read(answer.iter_stream(), found.get("content-encoding", ""), limit, cut=cut)
            return Response(answer.status, found, body)
    except httpcore.TimeoutException as error:
        raise HttpError(f"there was no whole answer within {timeout:g} seconds") from error
    except httpcore.LocalProtocolError:
        # Its text holds the header's value, which may be a secret.
        raise HttpError("the request cannot be sent with these headers") from None
    except (*_FAILURES, ValueError, OSError) as error:
        raise HttpError(str(error) or type(error).__name__) from error


def _target(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL:
        # Its text may hold a password: the port of `http://user:pa#ss@host` is `pa`.
        raise HttpError("the URL cannot be read") from None
    if target.scheme not in ("http", "https") or not target.host:
        raise HttpError("a URL begins with http:// or https:// and a host")
    return target


def _credentials(target: httpx.URL) -> dict[str, str]:
    if not target.userinfo:
        return {}
    both = f"{target.username}:{target.password}".encode()
    return {"authorization": f"Basic {base64.b64encode(both).decode()}"}


def _read(chunks: Iterable[bytes], encoding: str, limit: int, *, cut: bool) -> bytes:
    body = bytearray()
    try:
        for piece in _decoded(chunks, encoding, limit):
            body += piece
            if len(body) > limit:
                raise HttpError(f"the answer has more than {limit:,} bytes")
    except (HttpError, *_FAILURES):
        if not cut:
            raise
    return bytes(body[:limit])


def _decoded(chunks: Iterable[bytes], encoding: str, limit: int) -> Iterator[bytes]:
    """Yield the pieces of a body, none of which is longer than `_PIECE` after it was decompressed."""
    names = [name for each in encoding.lower().split(",") if (name := each.strip()) not in ("", "identity")]
    if not names:
        yield from chunks
        return
    # Encodings within one another multiply: a few kilobytes become gigabytes.
    if len(names) > 1 or names[0] not in _WINDOWS:
        raise HttpError("the answer is in an encoding that was not asked for")
    unpack, rest = zlib.decompressobj(_WINDOWS[names[0]]), b""
    try:
        for chunk in chunks:
            rest = chunk
            while rest and not unpack.eof:
                yield unpack.decompress(rest, _PIECE)
                rest = unpack.unconsumed_tail
    except zlib.error as error:
        raise HttpError(f"the answer is no {names[0]}") from error
    if not unpack.eof:
        raise HttpError(f"the answer's {names[0]} ends too early")


_FAILURES: Final = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
)


class _Deadline(httpcore.NetworkBackend):
    """Opens connections that are used until one moment and no longer, however often something arrives."""

    def __init__(self, seconds: float, look_up: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._end = time.monotonic() + min(seconds, _LONGEST)
        self._look_up = look_up
        self._below = httpcore.SyncBackend()

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            httpcore.ReadTimeout: There are none.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout
        return seconds

    def connect_tcp(
        self, host: str, port: int, *_: Any, socket_options: Any = None, **__: Any
    ) -> httpcore.NetworkStream:
        addresses = self._addresses_of(host, port)
        failure: Exception = httpcore.ConnectError("it has no address")
        for index, address in enumerate(addresses):
            # An address where nobody answers leaves the others their share of the time.
            share = self.left() / (len(addresses) - index)
            try:
                return _Stream(self._below.connect_tcp(address, port, share, socket_options=socket_options), self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def _addresses_of(self, host: str, port: int) -> list[str]:
        """Return a host's addresses; nothing bounds how long the system looks for them, so a thread waits for that."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._look_up(host, port, type=socket.SOCK_STREAM))
            except (OSError, ValueError) as error:
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            found = answers.get(timeout=self.left())
        except queue.Empty:
            raise httpcore.ConnectTimeout from None
        if isinstance(found, Exception):
            raise found
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Stream(httpcore.NetworkStream):
    """Is one connection of a `_Deadline`."""

    def __init__(self, below: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._below = below
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._below.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._below.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._below.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._below.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._below.get_extra_info(info)
