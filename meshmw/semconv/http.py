"""HTTP semantic conventions, stable version 1.23 and later: what a span says of a request.

Knows attribute names and values. Must not know OpenTelemetry's objects, frameworks or headers of ours.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from meshmw.semconv.attributes import DEFAULT_PORTS, AttributeValue, address_attributes

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})

# Few kinds of clients call a service; what a stranger makes up must not fill the memory.
_CACHED_CLIENTS: Final = 256
_CACHED_CHARACTERS: Final = 512

# "Query string values for the following keys SHOULD be redacted by default"           HTTP spans, url.query
_SECRET_IN_QUERY: Final = re.compile(
    r"((?:^|&)(?:AWSAccessKeyId|Signature|sig|X-Goog-Signature|X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token)=)"
    r"[^&]*"
)


def method_attributes(method: str) -> dict[str, AttributeValue]:
    """Return `http.request.method`, which is `_OTHER` with the original beside it for an unknown method."""
    if method in METHODS:
        return {"http.request.method": method}
    return {"http.request.method": "_OTHER", "http.request.method_original": method[:64]}


def span_name(method: str, route: str | None = None) -> str:
    """Return `{method} {route}`, or the method alone; an unknown method is named `HTTP`."""
    verb = method if method in METHODS else "HTTP"
    return f"{verb} {route}" if route else verb


def redact_query(query: str) -> str:
    """Return a query string with the values of well-known signatures and credentials replaced by `REDACTED`."""
    # To replace nothing costs more than to look.
    return _SECRET_IN_QUERY.sub(r"\1REDACTED", query) if _SECRET_IN_QUERY.search(query) else query


def server_attributes(
    *,
    method: str,
    scheme: str,
    path: str,
    query: str,
    authority: str | None,
    protocol_version: str | None,
    client: str | None,
    client_port: int | None,
    user_agent: str | None,
) -> dict[str, AttributeValue]:
    """Return the attributes of an HTTP server span that are known when the request arrives."""
    # As one text, which takes less time than to add up five lengths.
    size = len(f"{method}{scheme}{authority}{protocol_version}{user_agent}")
    repeated = _repeated if size <= _CACHED_CHARACTERS else _of_a_client
    found = repeated(method, scheme, authority, protocol_version, user_agent).copy()
    found["url.path"] = path
    if query:
        found["url.query"] = redact_query(query)
    if client:
        found["client.address"] = client
        if client_port:
            found["network.peer.address"] = client
            found["network.peer.port"] = client_port
    return found


def _of_a_client(
    method: str, scheme: str, authority: str | None, protocol_version: str | None, user_agent: str | None
) -> dict[str, AttributeValue]:
    """Return what one request of a client has in common with the next; it is shared, and not to be changed."""
    found = method_attributes(method)
    found["url.scheme"] = scheme
    found |= address_attributes("server", authority, scheme)
    if protocol_version:
        found["network.protocol.version"] = protocol_version
    if user_agent:
        found["user_agent.original"] = user_agent
    return found


_repeated: Final = lru_cache(maxsize=_CACHED_CLIENTS)(_of_a_client)


def client_attributes(*, method: str, scheme: str, host: str, port: int | None, url: str) -> dict[str, AttributeValue]:
    """Return the attributes of an HTTP client span that are known when the request leaves."""
    found = method_attributes(method)
    found["server.address"] = host
    number = port or DEFAULT_PORTS.get(scheme)
    if number:
        found["server.port"] = number
    base, question_mark, query = url.partition("?")
    found["url.full"] = base + question_mark + redact_query(query)
    return found


def protocol_version(version: str) -> str:
    """Return `1.1`, `2` or `3` for what servers and clients call `HTTP/1.1`, `HTTP/2`, `2.0`, `h2`."""
    # What nearly every server says.
    if version == "HTTP/1.1":
        return "1.1"
    number = version.rpartition("/")[2].removeprefix("h")
    return number.removesuffix(".0") if number in {"2.0", "3.0"} else number
