"""Header lines out of what carries them, by name in lower case, and back into it.

Servers hand out headers in the shape of their protocol: `HeaderNames` takes the wanted ones out in one pass.
OpenTelemetry's propagators are given a carrier with a getter, or a mapping: that is what `header_lines` reads.
A server without an adapter hands out pairs, or a class of its own: `lines_of_pairs` and `with_rewrites`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry.propagators.textmap import Getter, default_getter

from meshmw._notices import quoted
from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

Lines: TypeAlias = Mapping[str, Sequence[str]]
HeaderPair: TypeAlias = tuple[str | bytes, Any]

_DESCRIBING_HEADERS: Final = frozenset({"host", "user-agent"})
_UNDECODABLE: Final = ["\ufffd"]


class HeaderNames:
    """Translates the header names that a boundary wants into the spelling of each carrier.

    Args:
        passthrough: Further header names, in lower case, that are carried from inbound to outbound requests.

    Attributes:
        asgi: The names in lower case, by how an ASGI scope spells them.
        wsgi: The names in lower case, by how a WSGI environ spells them.
        names: The names in lower case.
    """

    def __init__(self, passthrough: Collection[str] = ()) -> None:
        names = PROPAGATION_HEADERS | _DESCRIBING_HEADERS | {SENT_HEADER, *passthrough}
        self.names: Final = names
        self.asgi: Final = {name.encode("ascii"): name for name in names}
        self.wsgi: Final = {wsgi_key(name): name for name in names}


def header_lines(carrier: Any, getter: Getter[Any], wanted: Collection[str]) -> dict[str, list[str]]:
    """Return the lines of the wanted headers; no byte in the carrier makes it raise.

    Args:
        carrier: What a getter reads, or a mapping, however that spells its names.
        getter: Reads the carrier. The default one knows one spelling of each name alone, so mappings are read without.
        wanted: Names in lower case.
    """
    if getter is not default_getter or not (type(carrier) is dict or isinstance(carrier, Mapping)):
        return _lines_by(getter, carrier, wanted)
    lines: dict[str, list[str]] = {}
    for key, value in carrier.items():
        if key in wanted and type(value) is str and key not in lines:
            lines[key] = [value]
            continue
        name: str = key if key in wanted else key.lower() if isinstance(key, str) else ""
        if name in wanted and (found := as_lines(value)):
            lines[name] = lines[name] + found if name in lines else found
    return lines


def as_lines(value: object) -> list[str]:
    """Return the lines that a mapping holds for one header."""
    if type(value) is str:
        return [value]
    if value is None:
        return []
    return [_text(each) for each in value] if isinstance(value, list | tuple) else [_text(value)]


def one_line(lines: Sequence[str]) -> str:
    """Return a header's lines as the one that they stand for (RFC 9110, section 5.3)."""
    return ",".join(lines)


def are_same(before: Sequence[str] | None, now: Sequence[str] | None) -> bool:
    """Say whether two readers saw one header: hosts join lines, and decode odd bytes in their own way."""
    if before == now:
        return True
    if before == _UNDECODABLE:
        return now is not None
    return _ascii(before) == _ascii(now)


def _ascii(lines: Sequence[str] | None) -> bytes:
    # In C, for a stranger may have filled 64 KiB with what is decoded in two ways.
    return ",".join(lines or ()).encode("ascii", "ignore")


def wsgi_key(name: str) -> str:
    return "HTTP_" + name.upper().replace("-", "_")


def _lines_by(getter: Getter[Any], carrier: Any, wanted: Collection[str]) -> dict[str, list[str]]:
    lines = {}
    for name in wanted:
        values = _values(getter, carrier, name)
        if values:
            lines[name] = [_text(value) for value in values]
    return lines


def _values(getter: Getter[Any], carrier: Any, name: str) -> Sequence[object] | None:
    try:
        return getter.get(carrier, name)
    except UnicodeError:
        # contrib's ASGI getter raises for some bytes; the request must not fail for them.
        return _UNDECODABLE


def _text(value: object) -> str:
    """Return a header value as text; carriers hand out bytes too, and no byte may raise."""
    return bytes(value).decode("latin-1") if isinstance(value, bytes | bytearray | memoryview) else str(value)


# The classes of headers of which it is known that a copy can be changed.
_changeable: Final[set[type]] = {dict, list, tuple}


def checked_headers(headers: Any) -> Any:
    """Return a server's headers, or a list of what can be gone through only once.

    Raises:
        TypeError: They are neither pairs of name and value nor a mapping, or no copy of them can be changed.
    """
    if type(headers) in _changeable:
        return headers
    if not hasattr(headers, "items"):
        if isinstance(headers, str | bytes) or not isinstance(headers, Iterable):
            raise TypeError(f"headers takes pairs of name and value, or a mapping, not {quoted(headers)}")
        return list(headers)
    if not _can_change_copies(headers):
        kind = quoted(type(headers).__name__)
        raise TypeError(
            f"headers takes a class of headers of which a copy can be changed, not {kind}; give list(pairs)"
        )
    _changeable.add(type(headers))
    return headers


def _can_change_copies(headers: Any) -> bool:
    try:
        return hasattr(_copy_of(headers), "__delitem__")
    except Exception:
        # Those of a WSGI environ, for one, say of themselves that they cannot be copied.
        return False


def pairs_of(headers: Any) -> Iterable[HeaderPair]:
    """Yield the pairs of what `checked_headers` has returned; a name may come up several times.

    Raises:
        TypeError: One is no pair, or its name is no text.
    """
    for pair in headers if isinstance(headers, list | tuple) else headers.items():
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str | bytes)):
            raise TypeError(f"headers takes pairs of name and value, and {quoted(pair)} is none")
        yield pair[0], pair[1]


def lines_of_pairs(headers: Any, wanted: Collection[str]) -> dict[str, list[str]]:
    """Return the wanted lines of what `checked_headers` has returned, by name in lower case.

    Raises:
        TypeError: As `pairs_of`; nothing that a header holds raises.
    """
    lines: dict[str, list[str]] = {}
    for given, value in pairs_of(headers):
        name = lower(given)
        if name in wanted:
            lines.setdefault(name, []).extend(map(plain_text, as_lines(value)))
    return lines


def with_rewrites(headers: Any, rewrites: Mapping[str, str | None]) -> Any:
    """Return headers in the shape in which they came, some replaced by one line or by none; these stay as they are.

    Args:
        headers: What `checked_headers` has returned.
        rewrites: The text that replaces each name in lower case, or None.
    """
    found: dict[str, list[HeaderPair]] = {}
    for pair in pairs_of(headers):
        found.setdefault(lower(pair[0]), []).append(pair)
    stale = {name: pairs for name, pairs in found.items() if name in rewrites}
    new = [
        (pairs[0][0], _like(pairs[0][1], text)) for name, pairs in stale.items() if (text := rewrites[name]) is not None
    ]
    if isinstance(headers, list | tuple):
        kept = [pair for pair in headers if lower(pair[0]) not in rewrites]
        return type(headers)([*kept, *new])
    copied = _copy_of(headers)
    for name in [name for pairs in stale.values() for name, _ in pairs]:
        # A class that ignores case, or has several lines of one name, has removed them all with the first.
        with contextlib.suppress(KeyError):
            del copied[name]
    for name, value in new:
        copied[name] = value
    return copied


def plain_text(text: str | bytes) -> str:
    """Return a text that can be encoded: some servers keep bytes that are no UTF-8 as halves of a character."""
    if isinstance(text, bytes):
        return text.decode("latin-1")
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def lower(name: str | bytes) -> str:
    """Return a header's name in lower case, as text."""
    return (name if isinstance(name, str) else name.decode("latin-1")).lower()


def _copy_of(headers: Any) -> Any:
    if hasattr(headers, "copy"):
        return headers.copy()
    # A class that does not say how it is copied would share its list with a shallow copy, as wsgiref's does.
    return copy.copy(headers) if hasattr(headers, "__copy__") else copy.deepcopy(headers)


def _like(value: object, text: str) -> object:
    """Return a header's new text in the shape of the value that it replaces."""
    if isinstance(value, list | tuple):
        return type(value)([_like(value[0] if value else "", text)])
    return text.encode("latin-1", "replace") if isinstance(value, bytes) else text
