"""Which inbound headers may go out again as they came."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# RFC 9110 section 5.6.2: the characters of a header's name.
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
# The propagator writes these, once each.
_WRITTEN: Final = frozenset(
    {"traceparent", "tracestate", "baggage", "b3", "x-meshmw-sent"}
    | {"x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"}
)
# These belong to one connection or one message.
_OF_ONE_HOP: Final = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade"}
    | {"keep-alive", "proxy-connection"}
)
# A client takes credentials off a redirect to another host; passed through, they would come back at every hop.
_CREDENTIALS: Final = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-forwarded-client-cert"}
)
_NEVER: Final = _WRITTEN | _OF_ONE_HOP | _CREDENTIALS


def passable(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in lower case.

    Raises:
        ValueError: One is no header's name, a header that the propagator writes, one of a single hop, or a credential.
    """
    lowered = tuple(name.lower() for name in names)
    unfit = [name for name in lowered if name in _NEVER or not _NAME.fullmatch(name)]
    if unfit:
        raise ValueError(f"headers that are not passed through: {', '.join(map(ascii, unfit))}")
    return lowered
