"""The closed sets of words that settings and constructors take, their defaults, and the one check of them.

In Python code a word is exact: `one_of()` refuses any other spelling, wherever it is given. Only in an environment
variable a word may be spelt in any case, and `meshmw.settings` sees to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from meshmw._notices import escaped, quoted

Format: TypeAlias = Literal["tracecontext", "baggage", "b3", "b3multi"]
Duplicates: TypeAlias = Literal["restart", "same-trace"]
Prefer: TypeAlias = Literal["w3c", "b3", "auto"]
Trust: TypeAlias = Literal["continue", "restart", "ignore"]
SamplingOwner: TypeAlias = Literal["parent", "service"]
ServerSpans: TypeAlias = Literal["auto", "contrib", "off"]
MessagingParent: TypeAlias = Literal["parent", "link"]
Exporter: TypeAlias = Literal["otlp", "otlp-http", "console", "none"]
MetricsExporter: TypeAlias = Literal["prometheus", "otlp", "none"]
# A number of spans may stand in the place of `auto`.
Batching: TypeAlias = Literal["moderate", "high", "moderate/auto", "high/auto"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)

# What settings, constructors and whoever works without settings have in common.
DEFAULT_PROPAGATORS: Final[tuple[Format, ...]] = ("tracecontext", "baggage")
DEFAULT_DUPLICATES: Final[Duplicates] = "restart"
DEFAULT_PREFER: Final[Prefer] = "w3c"
DEFAULT_TRUST: Final[Trust] = "continue"
DEFAULT_SERVER_SPANS: Final[ServerSpans] = "auto"
DEFAULT_MESSAGING_PARENT: Final[MessagingParent] = "parent"
DEFAULT_EXPORTER: Final[Exporter] = "otlp"
DEFAULT_BATCHING: Final[Batching] = "moderate"


def one_of(words: Any, value: object, name: str, *others: str) -> Any:
    """Return *value*, which is one of some words.

    Args:
        words: The words, as their `Literal` or as a collection.
        value: What the caller was given.
        name: What the caller calls it.
        others: What else the caller would have taken, for the message.

    Raises:
        ValueError: It is none of the words; the message names them, and the one that was meant, if that is plain.
    """
    allowed = get_args(words) or tuple(words)
    if isinstance(value, str) and value in allowed:
        return value
    meant = hint(value, allowed) if isinstance(value, str) else ""
    raise ValueError(f"{name} takes {listed((*allowed, *others))}, not {quoted(value)}{meant}")


def words_of(words: Any, values: object, name: str) -> tuple[Any, ...]:
    """Return the items of a list that a caller was given, each of which is one of some words, as for `one_of`."""
    return tuple(one_of(words, each, name) for each in _items(values, name))


def items_of(values: object, name: str) -> tuple[str, ...]:
    """Return the items of a list of texts that a caller was given.

    Args:
        values: The list.
        name: What the caller calls it.

    Raises:
        ValueError: It is a text, whose characters would be taken for the items; or it is no list, or not one of texts.
    """
    items = _items(values, name)
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"{name} takes a list of texts, and {quoted(item)} is none")
    return items


def _items(values: object, name: str) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} takes a list, not {quoted(values)}")
    return tuple(values)


def limit_of(value: object, name: str) -> int:
    """Return a limit that a caller was given.

    Args:
        value: The limit.
        name: What the caller calls it.

    Raises:
        ValueError: It is no whole number, or one below 0.
    """
    # Python's true and false are numbers too, and nobody means them.
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} takes a whole number, 0 or more, not {quoted(value)}")
    return value


def check_options(options: Mapping[str, object], known: type) -> None:
    """Check that all options that a caller was given are known.

    Args:
        options: What the caller was given, by name.
        known: The `TypedDict` that names the options.

    Raises:
        TypeError: One is not known; the message names it, and the one that was meant, if that is plain.
    """
    names = known.__annotations__
    for name in options:
        if name not in names:
            raise TypeError(f"{escaped(name)} is no option{hint(name, names)}; there are {', '.join(names)}")


def listed(words: Iterable[str]) -> str:
    """Return words as a sentence lists them: `a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def hint(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ` (did you mean ...?)` with the known word that is most like this one, or an empty text.

    Args:
        word: What somebody wrote.
        known: What can be written.
        prefix: What stands before either, and does not make them more alike.
    """
    import difflib  # for mistakes alone, so not loaded before there is one

    # By lower case: nothing is more like a word than the same in another case.
    by_lower = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word.strip().lower(), by_lower, n=1)
    return f" (did you mean {prefix}{by_lower[found[0]]}?)" if found else ""
