"""Results as a picture for docs/speed.md, readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.benchmarks.measure import Result

WIDTH, LABELS, BAR, GAP, HEAD = 760, 190, 16, 5, 34
OURS, THEIRS = "#0b7a75", "#9aa5b1"
# One colour of text for both: GitHub shows the picture on white and on near-black.
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.name{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#b1bac4}}"
)


def chart(results: Sequence[Result]) -> str:
    """Return an SVG with a group of bars for each result, as long as the rivals' medians; each has its own scale."""
    shapes: list[str] = []
    y = 8
    for result in (each for each in results if each.case.drawn):
        shapes.append(_text(0, y + 16, result.case.name + ", µs per request", "name"))
        y += HEAD - 8
        longest = max(cost.median for cost in result.costs.values())
        for label, cost in sorted(result.costs.items(), key=lambda item: item[1].median):
            shapes += _bar(y, label, cost.median, longest)
            y += BAR + GAP
        y += 12
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img" '
        f'aria-label="What tracing adds to a request">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _bar(y: int, label: str, value: float, longest: float) -> list[str]:
    length = max(1.0, value / longest * (WIDTH - LABELS - 60))
    colour = OURS if label == "meshmw" else THEIRS
    return [
        _text(LABELS - 8, y + 12, label, anchor="end"),
        f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>',
        _text(LABELS + length + 6, y + 12, f"{value:.1f}" if value < 100 else f"{value:.0f}"),
    ]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{named}>{escape(text)}</text>'
