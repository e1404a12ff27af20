"""Header lines out of what carries them, by name in lower case, and back into it.

Servers hand out headers in the shape of their protocol: `HeaderNames` takes the wanted ones out in one pass.
OpenTelemetry's propagators are given a carrier with a getter, or a mapping: that is what `header_lines` reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

from opentelemetry.propagators.textmap import Getter, default_getter

from meshmw.wire.headers import PROPAGATION_HEADERS, SENT_HEADER

Lines: TypeAlias = Mapping[str, Sequence[str]]

_DESCRIBING_HEADERS: Final = frozenset({"host", "user-agent"})
_UNDECODABLE: Final = ["\ufffd"]


class HeaderNames:
    """Translates the header names that a boundary wants into the spelling of each carrier.

    Args:
        passthrough: Further header names, in lower case, that are carried from inbound to outbound requests.

    Attributes:
        asgi: The names in lower case, by how an ASGI scope spells them.
        wsgi: The names in lower case, by how a WSGI environ spells them.
    """

    def __init__(self, passthrough: Collection[str] = ()) -> None:
        names = PROPAGATION_HEADERS | _DESCRIBING_HEADERS | {SENT_HEADER, *passthrough}
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
    return lines[0] if len(lines) == 1 else ",".join(lines)


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


def wsgi_path(environ: Mapping[str, Any]) -> str:
    """Return the path that was asked for; PEP 3333 hands out its bytes as latin-1."""
    text = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
    if text.isascii():
        return text or "/"
    return text.encode("latin-1", "replace").decode("utf-8", "replace")


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
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
