"""What one trace header says, as values: its fields, its faults, what meshmw does with it.

Must not know how a header is read, nor a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """Is one part of a header: its name, its text, and what that means."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """Says why a header, or a part of it, is refused.

    Attributes:
        reason: The reason code, as in `meshmw.wire.REASONS`.
        meaning: The same in words.
        position: The offset in the header's text, in characters; None where no one place is at fault.
        column: The same in `Inspection.shown`.
    """

    reason: str
    meaning: str
    position: int | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """Is what one header says.

    Attributes:
        header: Its name in lower case.
        text: What was given.
        shown: The same in printable ASCII, one column per character.
        fields: What could be read of it.
        faults: Why it, or a part of it, is refused; empty for a valid header.
        consequence: What meshmw does with it.
    """

    header: str
    text: str
    shown: str
    fields: tuple[Field, ...] = ()
    faults: tuple[Fault, ...] = ()
    consequence: str = ""

    @property
    def valid(self) -> bool:
        """Says whether nothing is wrong with it."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values."""
        return {
            "header": self.header,
            "text": self.text,
            "valid": self.valid,
            "fields": [{"name": each.name, "value": each.value, "meaning": each.meaning} for each in self.fields],
            "faults": [
                {"reason": each.reason, "meaning": each.meaning, "position": each.position} for each in self.faults
            ],
            "consequence": self.consequence,
        }
