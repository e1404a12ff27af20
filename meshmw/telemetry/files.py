"""Reading the small files in which a kernel or a kubelet tells a process where it runs.

Must not know what any of them means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Annotations end at 256 KiB; a mountinfo of a node with many volumes is longer than that.
_LONGEST: Final = 1_048_576


def text_of(path: Path) -> str:
    """Return a file's text, at most 1 MiB of it, or an empty text where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", "replace")
    except OSError:
        return ""
