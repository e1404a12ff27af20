"""How far an inbound request's trace and baggage are believed.

Decides, and nothing more: what `continue`, `restart` and `ignore` do is the business of the boundary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, get_args

from meshmw.policy.addresses import Networks, parse_address
from meshmw.policy.request_view import RequestView
from meshmw.rejections import Rejections

__all__ = ["RequestView", "Trust", "TrustCallable", "TrustPolicy"]

Trust: TypeAlias = Literal["continue", "restart", "ignore"]
TrustCallable: TypeAlias = Callable[[RequestView], Trust]

_WORDS: Final[dict[str, Trust]] = {word: word for word in get_args(Trust)}


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
        trust: Trust | TrustCallable = "continue",
        trusted_peers: Sequence[str] = (),
        rejections: Rejections | None = None,
    ) -> None:
        self._callable = None if isinstance(trust, str) else _checked(trust)
        word = _word(trust) if isinstance(trust, str) else "restart"
        self._peers = Networks(trusted_peers) if trusted_peers else None
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
            answer: object = decide(request)
        except Exception as error:
            reason, said = "trust_raised", f"the trust callable raised {type(error).__name__}"
        else:
            if isinstance(answer, str) and answer in _WORDS:
                return _WORDS[answer]
            reason, said = "trust_answer", f"the trust callable returned none of {', '.join(_WORDS)}"
        self._rejections.record("context", reason, f"- {said}; the request starts a new trace")
        return "restart"


def _word(trust: str) -> Trust:
    if trust not in _WORDS:
        raise ValueError(f"trust is one of {', '.join(_WORDS)} or a callable, not {trust!r}")
    return _WORDS[trust]


def _checked(trust: object) -> TrustCallable:
    if not callable(trust):
        raise ValueError(f"trust is one of {', '.join(_WORDS)} or a callable, not {trust!r}")
    if inspect.iscoroutinefunction(trust) or inspect.iscoroutinefunction(type(trust).__call__):
        raise ValueError("the trust callable must not be a coroutine function: every request would wait for it")
    return trust
