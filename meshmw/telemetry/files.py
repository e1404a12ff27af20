"""Reading the small files in which a kernel or a kubelet tells a process where it runs.

Must not know what any of them means.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# Annotations end at 256 KiB; a mountinfo of a node with many volumes is longer than that.
_LONGEST: Final = 1_048_576


def text_of(path: Path) -> str:
    """Return a file's text, at most 1 MiB of it, or an empty text where it cannot be read."""
    try:
        with open(path, "rb", opener=_at_once) as file:  # a Path's own takes no opener
            return (file.read(_LONGEST) or b"").decode("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""


def _at_once(path: str, flags: int) -> int:
    # A pipe in a file's place would be waited for, for ever; Windows has none.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
