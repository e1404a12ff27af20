"""A `Journey` as one HTML file: the way of its headers hop by hop, and the waterfall of its spans below.

The file asks the network for nothing and runs no script; what it shows is escaped, whatever it holds.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshmw._notices import shown
from meshmw._tools.verify.journey import HEADERS, Hop, Journey, JourneySpan
from meshmw.errors import extra_named

if TYPE_CHECKING:
    from jinja2 import Template

_VERDICTS: Final = {"one": "One trace", "broken": "The trace breaks", "unknown": "Nothing could be seen"}
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# More characters of one value would push everything else off the page.
_SHOWN: Final = 600


def render_report(journey: Journey) -> str:
    """Return the report as one HTML document.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    traces = _draw_traces(journey)
    return _template().render(
        journey=journey,
        verdict=_VERDICTS[journey.verdict],
        traces=traces,
        letters={trace.trace_id: trace for trace in traces},
        way=_way(journey.hops),
        roots=len(journey.roots),
        orphans=sum(span.orphan for span in journey.spans),
        proxies=sum(span.maker == "proxy" for span in journey.spans),
        data=_embedded_json(journey),
    )


def write_report(journey: Journey, path: Path) -> None:
    """Write the report to a file, whose folder is made if there is none.

    Raises:
        MissingExtraError: Jinja2 is not installed.
        OSError: The file cannot be written, or is a symbolic link.
    """
    text = render_report(journey)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", opener=_open_no_link) as file:
        file.write(text)


def _open_no_link(path: str, flags: int) -> int:
    # In a folder that others write to, a link would lead to a file of the user's that they choose.
    try:
        # Windows cannot refuse a link so; there only who is trusted may make one.
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, which is not followed", path) from error
        raise


@dataclass(frozen=True, slots=True)
class Row:
    """Places one span in the waterfall.

    Attributes:
        span: The span.
        depth: How deep it hangs, 0 for a root.
        left: Where its bar begins, in percent of the whole request.
        width: How long its bar is, in percent.
        milliseconds: How long it took.
    """

    span: JourneySpan
    depth: int
    left: float
    width: float
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Holds one trace of several, with the letter and colour that it has all over the page.

    Attributes:
        letter: `A` for the first, and so on.
        number: Which colour, 0 to 5.
        trace_id: 32 lower-case hex digits.
        rows: Its spans, parents before children.
        wanted: Whether it is the request's, of several.
    """

    letter: str
    number: int
    trace_id: str
    rows: tuple[Row, ...]
    wanted: bool


@dataclass(frozen=True, slots=True)
class Way:
    """Holds hops that follow one another, and the ways that part after the last of them.

    Attributes:
        hops: The hops, each with the trace that it is in and its header lines.
        branches: Two ways or more, or none.
    """

    hops: tuple[tuple[Hop, str, tuple[HeaderLine, ...]], ...]
    branches: tuple[Way, ...]


@dataclass(frozen=True, slots=True)
class HeaderLine:
    """Holds one header at one hop, as it came in and as it went on.

    Attributes:
        name: The header's name.
        received: What came, in parts; None where it was not looked at.
        sent: What went on, in the same form.
        same: Whether both are known and equal.
    """

    name: str
    received: tuple[Part, ...] | None
    sent: tuple[Part, ...] | None
    same: bool


@dataclass(frozen=True, slots=True)
class Part:
    """Holds a piece of a header's value.

    Attributes:
        text: What stands there, safe to print.
        role: `trace`, `span`, `flags` or `text`, or `absent`, `empty` where there is nothing.
        trace_id: The trace that it names, if it does.
    """

    text: str
    role: str = "text"
    trace_id: str = ""


@cache
def _template() -> Template:
    with extra_named("jinja2", "jinja2", "cli"):
        import jinja2
    loader = jinja2.PackageLoader("meshmw._tools", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = lambda text: shown(text, _SHOWN)
    return environment.get_template("report.html.j2")


def _embedded_json(journey: Journey) -> str:
    # In ASCII, and without these characters, the JSON cannot end the element that it stands in.
    text = json.dumps(journey.to_json(), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _draw_traces(journey: Journey) -> list[Trace]:
    begin = min((span.start_ns for span in journey.spans), default=0)
    length = max((span.end_ns for span in journey.spans), default=0) - begin or 1
    # The trace that was looked for comes first, also where no span of it came.
    trees: dict[str, list[Row]] = {journey.trace_id: []} if journey.trace_id and journey.spans else {}
    for span, depth in journey.in_order():
        left = 100 * (span.start_ns - begin) / length
        took = span.end_ns - span.start_ns
        row = Row(span, depth, round(left, 3), round(max(0.0, 100 * took / length), 3), took / 1e6)
        trees.setdefault(span.trace_id, []).append(row)
    return [
        Trace(_letter(number), number % 6, trace_id, tuple(rows), len(trees) > 1 and trace_id == journey.trace_id)
        for number, (trace_id, rows) in enumerate(trees.items())
    ]


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"#{number + 1}"


def _way(hops: Sequence[Hop]) -> Way:
    below: dict[int, list[int]] = {}
    for index, hop in enumerate(hops[1:], start=1):
        # What another program wrote may name a hop that is none, or comes later.
        is_known = hop.parent is not None and 0 <= hop.parent < index
        below.setdefault(hop.parent if is_known and hop.parent is not None else index - 1, []).append(index)
    return _way_from(0, hops, below) if hops else Way((), ())


def _way_from(index: int, hops: Sequence[Hop], below: Mapping[int, Sequence[int]]) -> Way:
    found = [hops[index]]
    # Recursion is as deep as a way parts, and not as it is long.
    while len(next_ones := below.get(index, ())) == 1:
        index = next_ones[0]
        found.append(hops[index])
    return Way(
        tuple((hop, _trace_of(hop), tuple(_hop_lines(hop))) for hop in found),
        tuple(_way_from(each, hops, below) for each in next_ones),
    )


def _trace_of(hop: Hop) -> str:
    """Return the trace that a hop is in, else the one that it sent on, else the one that it received."""
    headers = (hop.sent.get("traceparent"), hop.received.get("traceparent"))
    named = (found[2] for value in headers if value and (found := _TRACEPARENT.fullmatch(value)))
    return hop.trace_id or next(named, "")


def _hop_lines(hop: Hop) -> Iterator[HeaderLine]:
    for name in HEADERS:
        if name in hop.received or name in hop.sent:
            received, sent = _value_parts(hop.received, name), _value_parts(hop.sent, name)
            yield HeaderLine(name, received, sent, same=received is not None and received == sent)


def _value_parts(headers: Mapping[str, Any], name: str) -> tuple[Part, ...] | None:
    if name not in headers:
        return None
    value = headers[name]
    if value is None:
        return (Part("no such header", "absent"),)
    if not value:
        return (Part("empty", "empty"),)
    found = _TRACEPARENT.fullmatch(value) if name == "traceparent" else None
    if found is None:
        return (Part(shown(value, _SHOWN)),)
    version, trace_id, span_id, flags = found.groups()
    return (
        Part(f"{version}-"),
        Part(trace_id, "trace", trace_id),
        Part("-"),
        Part(span_id, "span"),
        Part("-"),
        Part(flags, "flags"),
    )
