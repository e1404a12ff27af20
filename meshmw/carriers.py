"""How each protocol carries headers: one pass over what the server hands out.

Knows the shapes of carriers. Must not know what the headers mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

from meshmw.propagation.extraction import PROPAGATION_HEADERS, SENT_HEADER

AsgiHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

DESCRIBING_HEADERS: Final = frozenset({"host", "user-agent"})


class HeaderNames:
    """Translates the header names that a boundary wants into the spelling of each carrier.

    Args:
        passthrough: Further header names, in lower case, that are carried from inbound to outbound requests.
    """

    def __init__(self, passthrough: Collection[str] = ()) -> None:
        names = PROPAGATION_HEADERS | DESCRIBING_HEADERS | {SENT_HEADER, *passthrough}
        self._asgi = {name.encode("ascii"): name for name in names}
        self._wsgi = {"HTTP_" + name.upper().replace("-", "_"): name for name in names}

    def from_asgi(self, headers: AsgiHeaders) -> dict[str, list[str]]:
        """Return the wanted header lines of an ASGI scope, in order, decoded as latin-1."""
        wanted = self._asgi
        lines: dict[str, list[str]] = {}
        for name, value in headers:
            if name in wanted:
                known, text = wanted[name], value.decode("latin-1")
                if known in lines:
                    lines[known].append(text)
                else:
                    lines[known] = [text]
        return lines

    def from_wsgi(self, environ: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the wanted header lines of a WSGI environ; servers have joined repeated lines with a comma."""
        return {name: [environ[key]] for key, name in self._wsgi.items() if key in environ}


def rewrite_asgi(headers: AsgiHeaders, rewrites: Mapping[str, str | None]) -> list[tuple[bytes, bytes]]:
    """Return ASGI headers with every line of the named headers replaced by one line, or by none."""
    names = {name.encode("ascii") for name in rewrites}
    kept = [(name, value) for name, value in headers if name not in names]
    return kept + [
        (name.encode("ascii"), text.encode("latin-1")) for name, text in rewrites.items() if text is not None
    ]


def rewrite_wsgi(environ: MutableMapping[str, Any], rewrites: Mapping[str, str | None]) -> None:
    """Replace or remove the named headers in a WSGI environ."""
    for name, text in rewrites.items():
        key = "HTTP_" + name.upper().replace("-", "_")
        if text is None:
            environ.pop(key, None)
        else:
            environ[key] = text
