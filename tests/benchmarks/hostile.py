"""The worst that a stranger's header or query can cost, found by a search: `python -m tests.benchmarks hostile`.

A shape is a text for one place of the request: a beginning, some pieces over and over, an end. A seeded search makes
shapes at random, keeps the dearest of each place and changes them. No two requests carry the same text, so that no
cache remembers one. The time is that of the whole request, over that of a valid one whose headers are new too.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, replace
from typing import Any, Final

from meshmw import MeshPropagator, asgi
from meshmw.wire.headers import PROPAGATION_HEADERS
from tests.benchmarks.servers import asgi_app
from tests.benchmarks.traffic import COMMON, IDS, flush, loop, provider, receive, scope_of, send

MOST: Final = 65_536
SIZES: Final = (16, 128, 1_024, 4_096, 8_190, 16_384, 32_768, MOST)
# A proxy in front refuses more lines (Envoy and gunicorn: 100), and a server spends more on each than we do.
LINES: Final = (1, 1, 1, 2, 8, 80)
QUERY, PATH = "(query)", "(path)"
PLACES: Final = (*sorted(PROPAGATION_HEADERS), "x-meshmw-sent", "x-request-id", "host", "user-agent", QUERY, PATH)
# What the grammars are made of, what none of them takes, and what redaction looks for.
PIECES: Final = (
    *(
        "a",
        "0",
        "1",
        "d",
        "A",
        " ",
        "\t",
        ",",
        ";",
        "=",
        "-",
        "&",
        "%",
        "/",
        "?",
        "@",
        ":",
        ".",
        "\\",
        '"',
        "\xe9",
        "\x01",
    ),
    *("a=1", "=1", ",=", ",a", ", ", ";p", ";p=/", " ; p = 1", "%20", "%e9", "%zz", "a=%20", "&a=1", "&sig=", "&sig=x"),
    *(
        "sig=",
        "&Signature=",
        "&X-Amz-S",
        "AWSAccessKeyId=",
        IDS,
        f"{IDS}-01",
        f"{IDS}-01,",
        "{n}=1,",
        "k{n}=v,",
        ",{n}",
    ),
    *("{n};p,", "&k{n}=v", "&sig{n}", "k{n}=%20v,"),
)
BEGINNINGS: Final = ("", "", "a=1,", "a=", f"{IDS}-01", f"{IDS[3:]}-1-", f"{IDS[3:]}-", "sig=x", "00-", "a=1;", "cc-")
ENDS: Final = ("", "", "x", "=", "\x01", "a=1", f"{IDS}-01", "@", "\xe9")
# What stands beside the hostile text: its own header is left out.
VALID: Final = (("traceparent", f"{IDS}-01"), ("tracestate", "congo=t61rcWkgMzE"), ("baggage", "user=alice,tenant=5"))


@dataclass(frozen=True)
class Shape:
    """Describes a hostile text: where it stands, and what it is made of."""

    place: str
    begin: str
    pieces: tuple[str, ...]
    end: str
    size: int
    lines: int

    def text(self, nonce: int) -> str:
        """Return a text of this shape that differs from that of any other nonce."""
        once = "".join(self.pieces)
        most = MOST // self.lines
        count = max(1, (min(self.size, most) - len(self.begin) - len(self.end) - 8) // len(once))
        body = "".join([once.replace("{n}", str(n)) for n in range(count)]) if "{n}" in once else once * count
        # In the middle, where it changes the grammar least.
        middle = len(body) // 2
        return f"{self.begin}{body[:middle]}{nonce}{body[middle:]}{self.end}"[:most]

    def __str__(self) -> str:
        more = f" in {self.lines} lines" if self.lines > 1 else ""
        return f"`{self.place}`: {self.begin!r} + {''.join(self.pieces)!r} over and over + {self.end!r}{more}"


def report(*, seed: int = 15, tries: int = 150, rounds: int = 3, shown: int = 12) -> str:
    """Return a table of the dearest shape of each place, the worst first.

    Args:
        seed: Of the search.
        tries: Shapes that are made at random for each place, and as many changes of the dearest in each round.
        rounds: Rounds of changes.
        shown: Rows.
    """
    logging.getLogger("meshmw").addHandler(logging.NullHandler())
    logging.getLogger("meshmw").propagate = False
    search = Search(seed)
    worst = sorted((search.worst(place, tries, rounds) for place in PLACES), key=lambda each: -each[0])
    valid = search.valid()
    rows = [
        f"| {str(shape).replace('|', '/')} | {len(shape.text(0)) * shape.lines:,} | {cost:.0f} | {cost / valid:.1f} |"
        for cost, shape in worst[:shown]
    ]
    return "\n".join(
        [
            f"a valid request: {valid:.0f} microseconds\n",
            "| shape | characters | us | times |",
            "|---|---:|---:|---:|",
            *rows,
        ]
    )


class Search:
    """Looks for the dearest shapes; the same seed makes the same ones at random."""

    def __init__(self, seed: int) -> None:
        provider()
        self._random = random.Random(seed)
        self._nonce = 0
        every = MeshPropagator(("tracecontext", "baggage", "b3", "b3multi"))
        self._apps = [asgi.TraceContextMiddleware(asgi_app), asgi.TraceContextMiddleware(asgi_app, propagator=every)]

    def valid(self) -> float:
        """Return the microseconds of a valid request whose headers were never seen before."""

        def request() -> dict[str, Any]:
            parent = f"00-{self._nonce + 1:032x}-b7ad6b7169203331-01"
            beside = (("tracestate", f"congo=t{self._nonce}"), ("baggage", f"user=alice,tenant={self._nonce}"))
            return scope_of([*COMMON, ("traceparent", parent), *beside])

        return min(self._fastest(app, request, 400) for app in self._apps[:1])

    def worst(self, place: str, tries: int, rounds: int) -> tuple[float, Shape]:
        """Return the dearest shape of a place that was found, and its microseconds."""
        found = [(self.cost(shape), shape) for shape in (self._made(place) for _ in range(tries))]
        for _ in range(rounds):
            found = sorted(found, key=lambda each: -each[0])[:10]
            changed = (self._changed(self._random.choice(found)[1]) for _ in range(tries))
            found += [(self.cost(shape), shape) for shape in changed]
        # Noise looks like a cost: what is to be shown is measured again.
        dearest = sorted(found, key=lambda each: -each[0])[:10]
        return max(((self.cost(shape, 25), shape) for _, shape in dearest), key=lambda each: each[0])

    def cost(self, shape: Shape, times: int = 4) -> float:
        """Return the microseconds of a request with a shape, with the defaults or with all formats."""
        return max(self._fastest(app, lambda: self._request(shape), times) for app in self._apps)

    def _made(self, place: str) -> Shape:
        pick = self._random.choice
        pieces = tuple(self._random.choices(PIECES, k=pick((1, 1, 1, 2, 3))))
        lines = pick(LINES) if place in PROPAGATION_HEADERS else 1
        return Shape(place, pick(BEGINNINGS), pieces, pick(ENDS), pick(SIZES), lines)

    def _changed(self, shape: Shape) -> Shape:
        other = self._made(shape.place)
        name = self._random.choice(("begin", "pieces", "end", "size", "pieces"))
        if name == "pieces":
            return replace(shape, pieces=self._random.choice((other.pieces, shape.pieces + other.pieces[:1])))
        return replace(shape, **{name: getattr(other, name)})

    def _request(self, shape: Shape) -> dict[str, Any]:
        text = shape.text(self._nonce)
        if shape.place in (QUERY, PATH):
            scope = scope_of([*COMMON, *VALID])
            return scope | ({"query_string": text.encode("latin-1")} if shape.place == QUERY else {"path": f"/{text}"})
        beside = [pair for pair in (*COMMON, *VALID) if pair[0] != shape.place]
        scope = scope_of(beside)
        scope["headers"] += [(shape.place.encode(), text.encode("latin-1"))] * shape.lines
        return scope

    def _fastest(self, app: Any, request: Any, times: int) -> float:
        async def run() -> float:
            best = float("inf")
            for _ in range(times):
                self._nonce += 1
                scope = request()
                # What made the text has left the processor's caches to others; a server would not.
                await app(scope_of([*COMMON, *VALID]), receive, send)
                began = time.perf_counter_ns()
                await app(scope, receive, send)
                best = min(best, time.perf_counter_ns() - began)
            return best / 1_000

        fastest = loop().run_until_complete(run())
        flush()
        return fastest
