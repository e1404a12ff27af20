"""How a journey is printed: its hops, the trees of its spans, its findings, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text
from rich.tree import Tree

from meshmw.cli.output import line, out, print_findings, table
from meshmw.diagnose.escaping import excerpt_of, shown
from meshmw.diagnose.journey import Hop, Journey, JourneySpan

# Spans that hang deeper are printed at this depth: nobody reads further to the right.
_MAX_DEPTH = 40
_MAX_WIDTH = 4096
_STYLES = {"one": "bold green", "broken": "bold red", "unknown": "bold yellow"}


def print_journey(journey: Journey) -> None:
    """Print a journey for people: hops, spans, findings, verdict."""
    line(f"{journey.title}: {journey.status_code or 'no answer'}", "bold")
    for source in journey.sources:
        line(f"  {source}", "dim")
    line("")
    rows = [_hop_cells(before, hop) for before, hop in zip((None, *journey.hops), journey.hops, strict=False)]
    table(["hop", "received", "sent on", ""], rows)
    if journey.spans:
        line("")
        for tree in _trees(journey).values():
            # Wider than any terminal, which then wraps: what has no room would be cut.
            out(_MAX_WIDTH).print(tree)
    print_findings(journey.findings)
    line("")
    line(journey.summary, _STYLES[journey.verdict])


def _hop_cells(before: Hop | None, hop: Hop) -> tuple[str, str, str, str]:
    marks = ["LOST HERE" if hop.lost else "", "" if hop.change == "unknown" else hop.change, hop.note]
    received, sent = _shown(hop.received), _shown(hop.sent)
    # What the hop before sent needs no second look.
    same = before is not None and received == _shown(before.sent)
    return hop.name, "" if same else received, sent, "; ".join(filter(None, marks))


def _shown(values: Mapping[str, str | None]) -> str:
    if "traceparent" not in values:
        b3 = values.get("b3")
        return f"b3 {excerpt_of(b3)}" if b3 else ""
    parent = values["traceparent"]
    return f"b3 {excerpt_of(values['b3'])}" if parent is None and values.get("b3") else excerpt_of(parent)


def _trees(journey: Journey) -> dict[str, Tree]:
    trees: dict[str, Tree] = {}
    above: list[Tree] = []
    for span, depth in journey.in_order():
        if span.trace_id not in trees:
            trees[span.trace_id] = Tree(Text(f"trace {shown(span.trace_id)}", style="bold"), guide_style="dim")
        depth = min(depth, _MAX_DEPTH)
        branch = above[depth - 1] if depth else trees[span.trace_id]
        above[depth:] = [branch.add(_span_text(span))]
    return trees


def _span_text(span: JourneySpan) -> Text:
    milliseconds = f"{(span.end_ns - span.start_ns) / 1e6:.1f} ms"
    text = Text(f"{shown(span.service)} {shown(span.kind)} {shown(span.name)} {milliseconds}")
    text.append("" if span.maker == "app" else "  proxy", style="dim")
    if span.orphan:
        text.append(f"  orphan: its parent {shown(span.parent_id)} is missing", style="bold red")
    return text
