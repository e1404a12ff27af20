"""Who called, as `x-forwarded-client-cert` says it: Envoy's header of the certificates that it has seen.

Imported where somebody may ask for it: few processes do.
"""

from __future__ import annotations

import re
from typing import Final

# Envoy quotes a whole certificate chain where it is told to, which takes some thousand characters.
_MAX_CHARACTERS: Final = 16_384
# Each name in a certificate makes a pair, and each quote in a name an escape.
_MOST_PAIRS: Final = 1_024
_MOST_URIS: Final = 16
# XFCC = element *( "," element ); element = pair *( ";" pair ); a value with `,` `;` or `=` is quoted, `"` is `\"`
_VALUE: Final = r'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^",;]*+)'
_PAIR: Final = rf"[ \t]*+[A-Za-z]++={_VALUE}[ \t]*+"
_ELEMENT: Final = re.compile(f"{_PAIR}(?:;{_PAIR})*+", re.DOTALL)
_ALL_BUT_LAST: Final = re.compile(f"(?:{_ELEMENT.pattern},)*+", re.DOTALL)
# The next pair of an element that is a URI.
_URI: Final = re.compile(
    rf"(?:(?![ \t]*+uri=){_PAIR};)*+[ \t]*+uri=({_VALUE})[ \t]*+(?:;|\Z)", re.DOTALL | re.IGNORECASE
)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
# SPIFFE-ID, section 2: no empty segment, and neither `.` nor `..`; 2,048 bytes at most
_SPIFFE_ID: Final = re.compile(r"(?=.{10,2048}\Z)spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]++)*+")


def spiffe_id(xfcc: str) -> str | None:
    """Return the SPIFFE ID in the last element of an `x-forwarded-client-cert` header.

    It is None where there is no well-formed one, or more than one, or where the header is malformed or longer than
    16,384 characters or 1,024 pairs and escapes.
    """
    if len(xfcc) > _MAX_CHARACTERS or xfcc.count("=") + xfcc.count("\\") > _MOST_PAIRS:
        return None
    # It matches everywhere, if only nothing; behind the last comma there is no need to look.
    position = _ALL_BUT_LAST.match(xfcc, 0, xfcc.rfind(",") + 1).end()  # type: ignore[union-attr]
    if not _ELEMENT.fullmatch(xfcc, position):
        return None
    found: list[str] = []
    # Not by a search, which would look into quoted values too.
    while match := _URI.match(xfcc, position):
        if len(found) == _MOST_URIS:
            return None
        found.append(_unquoted(match[1]))
        position = match.end()
    return _only_spiffe_id(found)


def _only_spiffe_id(uris: list[str]) -> str | None:
    ids = [uri for uri in uris if uri[:9].lower() == "spiffe://"]
    return ids[0] if len(ids) == 1 and _SPIFFE_ID.fullmatch(ids[0]) else None


def _unquoted(value: str) -> str:
    return _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
