"""The files of a downward API volume: one plain value, or labels and annotations as `key="value"` lines.

Knows how the kubelet writes them. Must not know what a label means.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from meshmw.telemetry.files import text_of

# The kubelet writes Go's `%v=%q`: an interpreted string literal, of printable characters and these escapes.
_LINE: Final = re.compile(r'^([^=\n]+)="((?:[^"\\\n]|\\.)*)"$', re.MULTILINE)
_ESCAPE: Final = re.compile(r"((?:\\x[0-9a-f]{2})+)|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})|\\(.)")
# A DNS subdomain, which every name in Kubernetes is.
_LONGEST_NAME: Final = 253
_SIMPLE: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


class PodInfo(NamedTuple):
    """Holds what a downward API volume says; what it does not say is empty.

    Attributes:
        name: The pod's name (`metadata.name`).
        namespace: Its namespace.
        uid: Its UID.
        labels: Its labels.
        annotations: Its annotations.
    """

    name: str
    namespace: str
    uid: str
    labels: dict[str, str]
    annotations: dict[str, str]


def read_podinfo(directory: Path) -> PodInfo:
    """Return what stands in the files `name`, `namespace`, `uid`, `labels` and `annotations` of a directory."""
    name, namespace, uid = (_name(text_of(directory / file).strip()) for file in ("name", "namespace", "uid"))
    return PodInfo(
        name, namespace, uid, parse_map(text_of(directory / "labels")), parse_map(text_of(directory / "annotations"))
    )


def _name(text: str) -> str:
    return text if text.isprintable() and len(text) <= _LONGEST_NAME else ""


def parse_map(text: str) -> dict[str, str]:
    """Return the keys and values of `key="value"` lines; a line that is none is left out."""
    return {key: _unquoted(value) for key, value in _LINE.findall(text)}


def _unquoted(text: str) -> str:
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def _character(escape: re.Match[str]) -> str:
    raw, short, long, simple = escape.groups()
    if raw:
        return bytes.fromhex(raw.replace("\\x", "")).decode("utf-8", "replace")
    if simple:
        return _SIMPLE.get(simple, simple)
    code = int(short or long, 16)
    return chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else "\ufffd"
