"""How far an inbound request's trace and baggage are trusted.

`TrustPolicy` decides between `continue`, `restart` and `ignore`. A callable of the application's may decide instead: it
gets a `RequestView`. What the three words mean is the business of the boundary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeAlias, get_args

from meshmw._notices import Rejections
from meshmw._policy.patterns import Networks, parse_address, path_of
from meshmw._policy.words import DEFAULT_TRUST, Trust, one_of

_WORDS: Final[dict[str, Trust]] = {word: word for word in get_args(Trust)}

# To decode 64 KiB that are no UTF-8 takes as long as seven requests.
_MOST_PATH: Final = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class RequestView:
    """Shows one inbound request to whoever decides how far it is trusted. Nothing in it has been verified.

    Attributes:
        method: Such as `GET`; a WebSocket's handshake is one.
        path: The path, decoded, without the query.
        peer: The client's address as the server reports it, or None where it has none, as on a Unix socket. Behind a
            sidecar it is the sidecar's own, unless the server takes the caller's from `x-forwarded-for`.
    """

    method: str
    path: str
    peer: str | None
    _lookup: Callable[[str], str | None]

    @classmethod
    def from_asgi(cls, scope: Mapping[str, Any]) -> RequestView:
        """Return a view of an HTTP or WebSocket scope."""
        client = scope.get("client")
        headers = scope["headers"]

        def lookup(name: str) -> str | None:
            wanted = name.encode("latin-1", "replace")
            lines = [value.decode("latin-1") for found, value in headers if found == wanted]
            return ",".join(lines) if lines else None

        return cls(scope.get("method", "GET"), path_of(scope["path"]), client[0] if client else None, lookup)

    @classmethod
    def from_wsgi(cls, environ: Mapping[str, Any]) -> RequestView:
        """Return a view of a WSGI environ."""

        def lookup(name: str) -> str | None:
            key = name.upper().replace("-", "_")
            # CGI spells these two without the prefix.
            value = environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}")
            return None if value is None else str(value)

        return cls(
            environ.get("REQUEST_METHOD", "GET"),
            path_of(wsgi_path(environ)),
            environ.get("REMOTE_ADDR") or None,
            lookup,
        )

    def header(self, name: str) -> str | None:
        """Return a header's text, several lines joined with commas, or None; the case of the name does not matter."""
        return self._lookup(name.lower())

    @property
    def spiffe_id(self) -> str | None:
        """Return the SPIFFE ID of the nearest client that `x-forwarded-client-cert` names, or None.

        That is the last element of the header. It proves something only where the sidecar sets or sanitizes the header
        and the process is reachable through the sidecar alone.
        """
        from meshmw._policy.xfcc import spiffe_id

        header = self.header("x-forwarded-client-cert")
        return None if header is None else spiffe_id(header)


def wsgi_path(environ: Mapping[str, Any]) -> str:
    """Return the path of a WSGI request, decoded; of one that is not ASCII the first 4,096 bytes."""
    path = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
    if path.isascii():
        return path
    # PEP 3333 hands out the path's bytes as latin-1.
    return path[:_MOST_PATH].encode("latin-1", "replace").decode("utf-8", "replace")


TrustCallable: TypeAlias = Callable[[RequestView], Trust]


class TrustPolicy:
    """Decides between `continue`, `restart` and `ignore` for each request.

    Without *trusted_peers*, *trust* decides. With them, a request whose peer is inside one of them is continued, and of
    any other a callable decides, or else `ignore` stays `ignore` and everything else is `restart`. A peer without an
    address, as on a Unix socket, is outside. A callable that raises or answers with anything else stands for `restart`.

    Args:
        trust: One of the three words, or a callable that gets a `RequestView` and returns one; it must not block.
        trusted_peers: Networks in CIDR notation, IPv4 and IPv6.
        rejections: Counts what a callable did wrong, and warns of it once per window.

    Raises:
        ValueError: The word is none of the three, the callable is a coroutine function, or a network is none.

    Attributes:
        static: The one decision for all requests, or None where each must be looked at.
    """

    def __init__(
        self,
        trust: Trust | TrustCallable = DEFAULT_TRUST,
        trusted_peers: Sequence[str] = (),
        rejections: Rejections | None = None,
    ) -> None:
        self._callable = _checked(trust) if callable(trust) else None
        word: Trust = "restart" if callable(trust) else one_of(Trust, trust, "trust", "a callable")
        networks = Networks(trusted_peers)
        self._peers = networks if trusted_peers else None
        self._otherwise: Trust = "restart" if self._peers is not None and word == "continue" else word
        self._rejections = Rejections() if rejections is None else rejections
        self.static: Trust | None = word if self._peers is None and self._callable is None else None

    def decide(self, request: RequestView) -> Trust:
        """Return the decision for one request. Never raises."""
        if self._peers is not None and request.peer:
            address = parse_address(request.peer)
            if address is not None and address in self._peers:
                return "continue"
        return self._otherwise if self._callable is None else self._ask(self._callable, request)

    def _ask(self, decide: TrustCallable, request: RequestView) -> Trust:
        try:
            found: object = decide(request)
        except Exception as error:
            reason, said = "trust_raised", f"the trust callable raised {type(error).__name__}"
        else:
            if isinstance(found, str) and found in _WORDS:
                return _WORDS[found]
            reason, said = "trust_answer", f"the trust callable returned none of {', '.join(_WORDS)}"
        self._rejections.record("context", reason, f"- {said}; the request starts a new trace")
        return "restart"


def _checked(trust: TrustCallable) -> TrustCallable:
    # It may ask for the caller's identity; the first request is not to wait for an import.
    import_module("meshmw._policy.xfcc")
    if inspect.iscoroutinefunction(trust) or inspect.iscoroutinefunction(type(trust).__call__):
        raise ValueError("the trust callable must not be a coroutine function: every request would wait for it")
    return trust
