"""What a user reads when a setting cannot be used: the variable, what it holds, what it takes."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import ErrorDetails

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_CREDENTIALS = re.compile(r"[^/\s]*@")

log = logging.getLogger("meshmw")


def escaped(text: str, longest: int = 60) -> str:
    """Return a short text in printable ASCII, in which whatever stands before an @ is hidden."""
    text = _CREDENTIALS.sub("***@", text)
    more = f"... ({len(text)} characters)" if len(text) > longest else ""
    return text[:longest].encode("unicode_escape").decode("ascii") + more


def excerpt(value: object) -> str:
    """Return a short, escaped text of any value, in quotes where it is a text."""
    return f"'{escaped(value)}'" if isinstance(value, str) else escaped(repr(value))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like this one, or an empty text."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def takes(field: FieldInfo) -> str:
    """Return the words that say which values a field takes."""
    extra = field.json_schema_extra
    return str(extra["takes"]) if isinstance(extra, dict) and "takes" in extra else str(field.annotation)


def faults_of(
    errors: Iterable[ErrorDetails],
    fields: Mapping[str, FieldInfo],
    arguments: Mapping[str, Any],
    prefix: str,
) -> list[str]:
    """Return one line for each field at fault, in the order of the fields, unknown arguments last.

    Args:
        errors: What pydantic found.
        fields: The model's fields by name.
        arguments: What came as an argument; whatever else is at fault came from the environment.
        prefix: The prefix of the variables' names.
    """
    by_field: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_field.setdefault(str(error["loc"][0]) if error["loc"] else "", []).append(error)
    lines = [_fault(name, by_field[name], fields[name], arguments, prefix) for name in fields if name in by_field]
    unknown = [name for name in by_field if name not in fields]
    return lines + [_unknown(name, by_field[name], fields) for name in unknown]


def _fault(name: str, errors: list[ErrorDetails], field: FieldInfo, arguments: Mapping[str, Any], prefix: str) -> str:
    where = f"argument {name}" if name in arguments else f"{prefix}{name}".upper()
    # A field of two types has two errors for one value.
    held = list(dict.fromkeys(excerpt(error["input"]) for error in errors))
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    return f"{where} holds {', '.join(held[:3])}{more}; it takes {takes(field)}"


def _unknown(name: str, errors: list[ErrorDetails], fields: Iterable[str]) -> str:
    if errors[0]["type"] == "extra_forbidden":
        return f"argument {escaped(name)} is no setting{_hint(nearest(name, fields))}"
    return errors[0]["msg"]


def _hint(name: str) -> str:
    return f" (did you mean {name}?)" if name else ""


def warn_unknown_variables(names: Iterable[str], fields: Iterable[str], prefix: str) -> None:
    """Warn of every variable that bears the prefix and is no setting, which is most often a misspelt one."""
    known = {field.upper() for field in fields}
    for name in names:
        rest = name.upper().removeprefix(prefix.upper())
        if rest != name.upper() and rest not in known:
            meant = nearest(rest, known)
            log.warning("%s is no setting and is ignored%s", escaped(name), _hint(meant and f"{prefix}{meant}"))
