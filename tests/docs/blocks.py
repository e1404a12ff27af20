"""The fenced blocks of a page, and what the comments before them say of how they are tested.

A comment `<!-- test: WORD ... -->` belongs to the next block, and several may stand before one. `ports` belongs to the
page.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

_PIECES = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=fence) *$"
    r"|<!-- test: (?P<said>.*?)-->",
    re.MULTILINE | re.DOTALL,
)
# Each is followed by a text on the rest of the line, by lines of code, or by nothing.
WITH_TEXT = frozenset({"check", "elsewhere", "env", "exit", "file", "needs", "pipe", "ports", "serve", "shown"})
WITH_CODE = frozenset({"after", "setup"})
BARE = frozenset({"continue", "output"})


@dataclass
class Block:
    """One fenced block: its language, its text, the line it begins in, and what is said of it."""

    language: str
    text: str
    line: int
    said: dict[str, str] = field(default_factory=dict)
    lines_of_code: dict[str, int] = field(default_factory=dict)


@dataclass
class Page:
    """One Markdown file, cut into its blocks."""

    path: Path
    blocks: list[Block]
    ports: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


def pages() -> list[Path]:
    """Return all files whose blocks are tested, the README first."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    blocks: list[Block] = []
    said: dict[str, str] = {}
    lines_of_code: dict[str, int] = {}
    ports: tuple[str, ...] = ()
    for piece in _PIECES.finditer(text):
        line = text.count("\n", 0, piece.start()) + 1
        if (comment := piece["said"]) is not None:
            word, _, rest = comment.partition("\n") if "\n" in comment else comment.strip().partition(" ")
            word, rest = word.strip(), textwrap.dedent(rest) if "\n" in comment else rest.strip()
            _refuse_unknown(word, rest, f"{path}:{line}")
            if word == "ports":
                ports = tuple(rest.split())
            else:
                said[word], lines_of_code[word] = rest, line + 1
        else:
            body = textwrap.dedent(piece["body"])
            blocks.append(Block(piece["language"], body, line + 1, said, lines_of_code))
            said, lines_of_code = {}, {}
    assert not said, f"{path}: no block follows {said}"
    return Page(path, blocks, ports)


def _refuse_unknown(word: str, rest: str, place: str) -> None:
    known = word in (WITH_TEXT | WITH_CODE if rest else BARE)
    assert known, f"{place}: <!-- test: {word} --> is not known, or lacks its text; see tests/docs/README.md"
