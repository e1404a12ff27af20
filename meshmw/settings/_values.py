"""What the settings take: how a value that somebody gave is read, and how a message names what it might have been.

Each reader returns the value that is meant, or raises a bare `ValueError`. It takes what code gives and what a variable
holds alike.

No validation library does this: to import one and to build a model with it takes as long as all the rest of a start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any, Final, NamedTuple, get_args
from urllib.parse import urlsplit

from meshmw._policy.outbound import Destinations, completed_budget, passable
from meshmw._policy.patterns import BaggageKeys, Networks
from meshmw._policy.words import FORMATS, Batching, listed
from meshmw._regex import compiled_late

LONGEST_TEXT: Final = 255
# A queue of so many spans takes some gigabytes.
MOST_SPANS: Final = 1_048_576
# https://github.com/grpc/grpc/blob/master/doc/naming.md; a host that is called `unix` or `dns` has a port behind it.
_TARGET: Final = compiled_late(
    r"(?:unix:(?!\d+\Z)|unix-abstract:(?!\d+\Z)|dns:///|ipv4:(?=[\d.]+:\d)|ipv6:(?=\[))[\x21-\x22\x24\x26-\x3e\x41-\x7e]{1,255}"
)
# A name, with the underscores of Docker's, or an address of IPv6, which has been looked at by then.
_HOST: Final = compiled_late(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|(?=[^:]{0,4}:)[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~-]{1,32})?"
)
# What a boolean may be beside Python's own, in any case.
_TRUE: Final = {"1", "on", "t", "true", "y", "yes"}
_FALSE: Final = {"0", "off", "f", "false", "n", "no"}
_MOST_HEADERS: Final = 32


class Kind(NamedTuple):
    """Says what a setting takes.

    Attributes:
        read: Returns the value that somebody means by what he gave; raises `ValueError` where it is of no use.
        takes: What it takes, as a sentence names it.
        words: The words that it takes, or that an item of the list may be.
        is_list: Whether it is a list, whose items are separated by commas in a variable.
        in_any_case: Whether a variable may spell its words in any case, as OpenTelemetry's specification asks of
            enumerations.
    """

    read: Callable[[Any], object]
    takes: str
    words: tuple[str, ...] = ()
    is_list: bool = False
    in_any_case: bool = False


class UnusableItemsError(ValueError):
    """Says that some items of a list are of no use.

    Attributes:
        items: Those.
    """

    def __init__(self, items: list[object]) -> None:
        super().__init__(items)
        self.items = items


def split(value: object) -> tuple[object, ...]:
    """Return the items of a list, a comma-separated text's too; the one word `none` is the empty list.

    Raises:
        ValueError: It is no list, or the word is spelt `None`, or the like.
    """
    if isinstance(value, str):
        items = _items(value)
        if is_none(value) and items != ["none"]:
            raise ValueError("not none")
        value = [] if items == ["none"] else items
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError("no list")
    return tuple(value)


def _items(text: str) -> list[str]:
    """Return the items of a comma-separated text, trimmed."""
    return [item.strip() for item in text.split(",") if item.strip()]


def is_none(text: str) -> bool:
    """Say whether a comma-separated text is the one word `none`, in any case."""
    return [item.lower() for item in _items(text)] == ["none"]


def printable(text: str) -> str:
    """Return a text trimmed.

    Raises:
        ValueError: It is empty, or holds a control character, which would forge lines in a log.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise ValueError("not printable")
    return text


def as_text(value: object) -> str:
    """Return a setting's value as you would write it into its variable."""
    if isinstance(value, tuple):
        # The two numbers of a budget are no list.
        return ("/" if value and isinstance(value[0], int) else ",").join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def is_target(address: str) -> bool:
    """Say whether an address is one of gRPC's own, such as `unix:/run/otel.sock`, which says nothing of TLS."""
    # Nearly every address is a URL, for which no pattern need be compiled.
    return address.startswith(("unix", "dns", "ipv")) and _TARGET().fullmatch(address) is not None


def endpoint_url(text: str) -> str:
    """Return the collector's address as a URL, `http://` where no scheme is given; gRPC's own as they are.

    Raises:
        ValueError: No host, a port out of range, another scheme, credentials, or a character that no URL holds.
    """
    url = text.strip()
    if is_target(url):
        return url
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        raise ValueError("not a URL")
    # Credentials would be logged with the address; OTEL_EXPORTER_OTLP_HEADERS is the place for them.
    if parts.scheme not in ("http", "https") or not _HOST().fullmatch(parts.hostname or "") or "@" in parts.netloc:
        raise ValueError("not the address of a collector")
    if parts.port == 0:  # reading it raises ValueError above 65,535
        raise ValueError("no such port")
    return url


def whole_number(text: str, least: int, most: int) -> int | None:
    """Return the whole number within two bounds that a text spells, or None where it spells none."""
    if not text.isdecimal() or len(text) > LONGEST_TEXT or not least <= int(text) <= most:
        return None
    return int(text)


def setting(kind: Kind, *, default: Any, description: str) -> Any:
    """Declare a setting.

    Args:
        kind: What it takes.
        default: What it is where nobody gives it.
        description: What it does, in one sentence.
    """
    return field(default=default, metadata={"kind": kind, "description": description})


def optional(kind: Kind) -> Kind:
    """Return what takes None beside what a kind takes."""
    return kind._replace(read=lambda value: None if value is None else kind.read(value))


def text(read: Callable[[str], str], takes: str) -> Kind:
    """Return what takes a text, as *read* reads it."""
    return Kind(_text(read), takes)


def items(read: Callable[[str], str], takes: str, check: Callable[[tuple[str, ...]], object] | None = None) -> Kind:
    """Return what takes a list of texts: *read* reads each.

    Args:
        read: Reads an item.
        takes: What the list is, as a sentence names it.
        check: Raises `ValueError` where all items together are of no use.
    """
    read_item = _text(read)

    def read_all(value: object) -> tuple[str, ...]:
        found: list[str] = []
        unusable: list[object] = []
        for item in split(value):
            try:
                found.append(read_item(item))
            except ValueError:
                unusable.append(item)
        if unusable:
            raise UnusableItemsError(unusable)
        kept = tuple(dict.fromkeys(found))
        if check is not None:
            check(kept)
        return kept

    return Kind(read_all, takes, is_list=True)


def word(words: Any) -> Kind:
    """Return what takes one of the words of a `Literal`."""
    allowed = get_args(words)
    return Kind(_text(lambda given: _one_of(allowed, given)), listed(allowed), allowed, in_any_case=True)


def whole(least: int, most: int) -> Kind:
    """Return what takes a whole number within two bounds."""

    def read(value: object) -> int:
        number = whole_number(value.strip(), least, most) if isinstance(value, str) else value
        if not isinstance(number, int) or not least <= number <= most:
            raise ValueError("no such number")
        return int(number)

    return Kind(read, f"a number from {least} to {most}")


def decimal(most: float, takes: str) -> Kind:
    """Return what takes a number from 0 on."""

    def read(value: object) -> float:
        number = float(value) if isinstance(value, str) else value
        if not isinstance(number, (int, float)) or not 0 <= number <= most:
            raise ValueError("no such number")
        return float(number)

    return Kind(read, takes)


def _text(read: Callable[[str], str]) -> Callable[[object], str]:
    def checked(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("no text")
        return read(value)

    return checked


def _one_of(words: tuple[str, ...], given: str) -> str:
    if given not in words:
        raise ValueError("no such word")
    return given


def _short(given: str) -> str:
    given = printable(given)
    if len(given) > LONGEST_TEXT:
        raise ValueError("too long")
    return given


def _boolean(value: object) -> bool:
    given = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
    if given not in _TRUE | _FALSE:
        raise ValueError("no boolean")
    return given in _TRUE


def _header_budget(value: object) -> tuple[object, object]:
    budget = completed_budget(tuple(value.split("/")) if isinstance(value, str) else value)
    if not isinstance(budget, (list, tuple)) or len(budget) != 2:
        raise ValueError("no two numbers")
    # Envoy's own `max_request_headers_kb` ends at 8,192.
    return whole(4_096, 8_388_608).read(budget[0]), whole(20, 10_000).read(budget[1])


def _batching(given: str) -> str:
    if given not in get_args(Batching):
        profile, _, queue = given.partition("/")
        _one_of(get_args(Batching), profile)
        whole(1, MOST_SPANS).read(queue)
    return given


def _path_pattern(given: str) -> str:
    if not given.startswith(("/", "*")) or not given.isprintable():
        raise ValueError("not a path")
    return given


def _sampling_rule(given: str) -> str:
    pattern, _, ratio = given.rpartition("=")
    if not 0 <= float(ratio) <= 1:
        raise ValueError("not a share")
    return f"{_path_pattern(pattern.strip())}={ratio.strip()}"


def _header_name(given: str) -> str:
    return passable([given])[0]


def _few(names: tuple[str, ...]) -> None:
    if len(names) > _MOST_HEADERS:
        raise ValueError("too many")


def _cidr(given: str) -> str:
    Networks([given])
    return given


def _key_pattern(given: str) -> str:
    BaggageKeys([given])
    return given


def _asked_for(patterns: tuple[str, ...]) -> None:
    BaggageKeys(patterns, opt_in=True)


def _host_pattern(given: str) -> str:
    Destinations([given])
    return given


_KEYS: Final = "a list of keys or patterns with * and ?"

BOOLEAN: Final = Kind(_boolean, "true or false")
NAME: Final = text(_short, f"1 to {LONGEST_TEXT} printable characters")
ENDPOINT: Final = text(endpoint_url, "host:port or an http:// or https:// URL without credentials")
PROPAGATORS: Final = items(lambda given: _one_of(FORMATS, given), f"a list of {', '.join(FORMATS)}; or none")._replace(
    words=FORMATS, in_any_case=True
)
NETWORKS: Final = items(_cidr, "a list of addresses and CIDRs")
HOSTS: Final = items(
    _host_pattern, "a list of mesh, names, .suffixes, patterns with * or ?, addresses and CIDRs, * for all; or none"
)
PATHS: Final = items(_path_pattern, "a list of paths that begin with /, or of patterns with * and ?")
SAMPLING_RULES: Final = items(
    _sampling_rule, "a list of paths or patterns, each with a share, such as /health=0,/api/*=0.5"
)
KEYS: Final = items(_key_pattern, f"{_KEYS}, and of those to leave out, each with ! before it; or none")
SOME_KEYS: Final = items(_key_pattern, f"{_KEYS}; beside them, a pattern with ! before it leaves keys out", _asked_for)
HEADER_NAMES: Final = items(
    _header_name,
    f"a list of up to {_MOST_HEADERS} header names, no trace header and none of HTTP's own; or none",
    _few,
)
HEADER_BUDGET: Final = Kind(_header_budget, "bytes from 4096 to 8388608, alone or with /20 to /10000 headers")
BATCHING: Final = Kind(
    _text(_batching),
    "moderate or high; with /auto the container's memory says how many may wait, with /9000 you do",
    get_args(Batching),
    in_any_case=True,
)
