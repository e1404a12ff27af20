"""How text from outside is shown: every character that could move a cursor or forge a line, as an escape."""

from __future__ import annotations

import re
from typing import Final

# Controls (C0, DEL, C1), lone surrogates, line and paragraph separators, and what reorders or hides text.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_UNPRINTED: Final = re.compile(r"[^\x20-\x7e]")


def shown(text: str | bytes, limit: int | None = 200) -> str:
    """Return a hostile text as it may be printed, cut to a number of characters.

    Args:
        text: Bytes are read as UTF-8, and those that are not are shown as `\\xNN`.
        limit: Characters to show, or None for all of them.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    cut = text if limit is None or len(text) <= limit else f"{text[:limit]}..."
    return _UNSAFE.sub(_escape, cut)


def excerpt_of(value: str | None) -> str:
    """Return a header's value as it may be printed."""
    return "absent" if value is None else shown(value, 120) or "(empty)"


def without_secrets(url: str) -> str:
    """Return a URL as it may be printed: without credentials and without a query, in which a token may stand."""
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    path, question, _ = path.partition("?")
    return f"{scheme}{slashes}{authority.rpartition('@')[2].partition('?')[0]}{slash}{path}{question and '?...'}"


def one_column_each(text: str) -> tuple[str, list[int]]:
    """Return a text with everything outside printable ASCII escaped, and where each of its characters begins in that.

    The offsets have one more entry, for the end of the text; a caret can so be put under any character.
    """
    parts = [_UNPRINTED.sub(_escape, char) for char in text]
    columns = [0]
    for part in parts:
        columns.append(columns[-1] + len(part))
    return "".join(parts), columns


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
