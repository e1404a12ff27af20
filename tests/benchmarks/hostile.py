"""The worst that a stranger's bytes can cost, found by a search: `python -m tests.benchmarks hostile`.

A shape is a text for one place of a request, a call or a message: a beginning, some pieces over and over, an end. For
each entrance a seeded search makes shapes at random, keeps the dearest of each place and changes them. No two requests
carry the same text, so that no cache remembers one. The time is that of the whole request, call or message inside this
process, over that of a valid one whose headers are new too.

Thousands of lines are shown apart, beside a request with as many lines that nobody reads: to pass over those takes
more than three times a valid request. A proxy in front refuses them (Envoy and gunicorn: 100 lines), and uvicorn itself
takes as long for each.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final

import grpc
from opentelemetry.context import Context

from meshmw import MeshPropagator, RequestView, asgi, frames, kafka, rabbitmq, wsgi
from meshmw.grpc import TraceContextServerInterceptor
from meshmw.wire.headers import PROPAGATION_HEADERS
from tests.benchmarks.servers import asgi_app, wsgi_app
from tests.benchmarks.traffic import COMMON, IDS, Headers, environ_of, flush, provider, receive, scope_of, send

MOST: Final = 65_536
# What grpcio lets in (`grpc.absolute_max_metadata_size`), and what a frame may have.
MOST_METADATA, MOST_FRAME = 16_384, 16_384
SIZES: Final = (16, 128, 1_024, 4_096, 8_190, 16_384, 32_768, MOST)
LINES: Final = (1, 1, 1, 2, 8, 80)
MANY: Final = (1_000, 4_000)
QUERY, PATH, METHOD, NAMES, OTHER = "(query)", "(path)", "(method)", "(names)", "x-other"
HEADERS: Final = (*sorted(PROPAGATION_HEADERS), "x-meshmw-sent", "x-request-id", "user-agent", OTHER)
# What an application's trust callable may ask for; `spiffe_id` parses the first.
ASKED: Final = ("x-forwarded-client-cert", "x-forwarded-for")
# What the grammars are made of, what none of them takes, and what redaction looks for.
PIECES: Final = (
    *"a01dA \t,;=-&%/?@:.\\\"[]<'_~\xe9\x01",
    *("a=1", "=1", ",=", ",a", ", ", ";p", ";p=/", " ; p = 1", "%20", "%e9", "%zz", "a=%20", "&a=1", "&sig=", "&sig=x"),
    *("sig=", "&Signature=", "&X-Amz-S", "AWSAccessKeyId=", "://", "a://", ":a@", "%40", "%3a%2f%2f", "//", "/../"),
    *(IDS, f"{IDS}-01", f"{IDS}-01,", f"{IDS[3:]}-1", "{n}=1,", "k{n}=v,", ",{n}", "{n};p,", "&k{n}=v", "&sig{n}"),
    *("k{n}=%20v,", "k{n}=%e9%e9%e9%e9%e9%e9%e9%e9%e9%e9,", "k=v;p;q,", "t{n}@v=1,", "URI=spiffe://a/b;", 'By="\\"",'),
    *('Hash=a;Subject="";', "uri=a;", "127.0.0.1, ", "for=a;by=b,", "Bearer ", "token=", "password: ", "eyJa.b."),
)
BEGINNINGS: Final = (
    "",
    "",
    "a=1,",
    "a=",
    f"{IDS}-01",
    f"{IDS[3:]}-1-",
    f"{IDS[3:]}-",
    "sig=x",
    "00-",
    "a=1;",
    "cc-",
    "//",
)
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

    def text(self, nonce: int, most: int = MOST) -> str:
        """Return a text of this shape that differs from that of any other nonce."""
        once = "".join(self.pieces)
        # A line has a name, a colon, a space and an end too.
        most = max(1, most // self.lines - (len(self.place) + 4 if self.lines > 1 else 0))
        count = max(1, (min(self.size, most) - len(self.begin) - len(self.end) - 8) // len(once))
        body = "".join([once.replace("{n}", str(n)) for n in range(count)]) if "{n}" in once else once * count
        # In the middle, where it changes the grammar least.
        middle = len(body) // 2
        return f"{self.begin}{body[:middle]}{nonce}{body[middle:]}{self.end}"[:most]

    def __str__(self) -> str:
        more = f" in {self.lines:,} lines" if self.lines > 1 else ""
        return f"`{self.place}`: {self.begin!r} + {''.join(self.pieces)!r} over and over + {self.end!r}{more}"


@dataclass(frozen=True)
class Request:
    """Holds what a request, a call or a message brings; what an entrance has no place for is left out."""

    headers: Headers
    query: str = "page=1"
    path: str = "/items/1"
    method: str = "GET"


# Takes what a request brings, and returns what is timed: the whole of it inside this process.
Serve = Callable[[Request], Callable[[], object]]


@dataclass(frozen=True)
class Entrance:
    """Describes one way in: the places that a stranger fills, how many characters fit, and who serves it."""

    places: Sequence[str]
    rivals: Sequence[Serve]
    most: int = MOST
    lines: Sequence[int] = LINES
    longest_name: int = MOST


def report(*, seed: int = 15, tries: int = 60, rounds: int = 3, shown: int = 6, repeats: int = 15) -> str:
    """Return a table for each entrance of the dearest shape of each place, the worst first.

    Args:
        seed: Of the search.
        tries: Shapes that are made at random for each place, and as many changes of the dearest in each round.
        rounds: Rounds of changes.
        shown: Rows of each entrance.
        repeats: How often what is shown is measured.
    """
    logging.getLogger("meshmw").addHandler(logging.NullHandler())
    logging.getLogger("meshmw").propagate = False
    tables = [_table(name, Search(seed, each, repeats), tries, rounds, shown) for name, each in entrances().items()]
    return "\n\n".join([*tables, _many_lines(Search(seed, Entrance((), [_asgi()]), repeats))])


def _table(name: str, search: Search, tries: int, rounds: int, shown: int) -> str:
    worst = sorted((search.worst(place, tries, rounds) for place in search.entrance.places), key=lambda each: -each[0])
    rows = [
        f"| {str(shape).replace('|', '/')} | {len(shape.text(0, search.entrance.most)) * shape.lines:,} | {times:.1f} |"
        for times, shape in worst[:shown]
    ]
    head = f"| {name}; a valid one takes {search.valid[0]:.0f} us | characters | times |\n|---|---:|---:|"
    return "\n".join([head, *rows])


def _many_lines(search: Search) -> str:
    rows = []
    for lines in MANY:
        nobodys = search.cost(Shape(OTHER, "", ("a",), "", MOST, lines))
        for place in (*sorted(PROPAGATION_HEADERS), "x-request-id", "user-agent", "host"):
            shapes = [Shape(place, "", (piece,), "", MOST, lines) for piece in ("a", "a=1,", ",")]
            cost = max(search.cost(shape) for shape in shapes)
            rows.append(f"| `{place}` | {lines:,} | {cost:.1f} | {cost / nobodys:.1f} |")
    head = "| ASGI, many lines | lines | times | times as many that nobody reads |\n|---|---:|---:|---:|"
    return "\n".join([head, *rows])


class Search:
    """Looks for the dearest shapes of one entrance; the same seed makes the same ones at random."""

    def __init__(self, seed: int, entrance: Entrance, repeats: int = 15) -> None:
        self.entrance, self._repeats = entrance, repeats
        self._random = random.Random(seed)
        self._nonce = 0
        # In microseconds, by whoever serves it.
        self.valid = [self._fastest(serve, self._made_valid, 13 * repeats) for serve in entrance.rivals]

    def worst(self, place: str, tries: int, rounds: int) -> tuple[float, Shape]:
        """Return the dearest shape of a place that was found, and how many times a valid request it costs."""
        found = [(self.cost(shape), shape) for shape in (self._made(place) for _ in range(tries))]
        for _ in range(rounds):
            found = sorted(found, key=lambda each: -each[0])[:10]
            changed = (self._changed(self._random.choice(found)[1]) for _ in range(tries))
            found += [(self.cost(shape), shape) for shape in changed]
        # Noise looks like a cost: what is to be shown is measured again.
        dearest = sorted(found, key=lambda each: -each[0])[:10]
        return max(((self.cost(shape, self._repeats), shape) for _, shape in dearest), key=lambda each: each[0])

    def cost(self, shape: Shape, times: int = 4) -> float:
        """Return how many times a valid request one with a shape costs, by whoever takes longest for it."""
        serves = zip(self.entrance.rivals, self.valid, strict=True)
        return max(self._fastest(serve, lambda: self._request(shape), times) / valid for serve, valid in serves)

    def _made_valid(self) -> Request:
        """Make a valid request whose headers were never seen before."""
        parent = f"00-{self._nonce + 1:032x}-b7ad6b7169203331-01"
        beside = (("tracestate", f"congo=t{self._nonce}"), ("baggage", f"user=alice,tenant={self._nonce}"))
        return Request([*COMMON, ("traceparent", parent), *beside])

    def _made(self, place: str) -> Shape:
        pick = self._random.choice
        pieces = tuple(self._random.choices(PIECES, k=pick((1, 1, 1, 2, 3))))
        lines = 1 if place in (QUERY, PATH, METHOD) else pick(self.entrance.lines)
        return Shape(place, pick(BEGINNINGS), pieces, pick(ENDS), pick(SIZES), lines)

    def _changed(self, shape: Shape) -> Shape:
        other = self._made(shape.place)
        name = self._random.choice(("begin", "pieces", "end", "size", "lines", "pieces"))
        if name == "pieces":
            return replace(shape, pieces=self._random.choice((other.pieces, shape.pieces + other.pieces[:1])))
        return replace(shape, **{name: getattr(other, name)})

    def _request(self, shape: Shape) -> Request:
        text, headers = shape.text(self._nonce, self.entrance.most), [*COMMON, *VALID]
        if shape.place == QUERY:
            return Request(headers, query=text)
        if shape.place == PATH:
            return Request(headers, path=f"/{text}")
        if shape.place == METHOD:
            return Request(headers, method=text)
        if shape.place == NAMES:
            # Servers take no name that is not a token; what else is in it is left out.
            name = "".join(filter(str.isalnum, text.encode("ascii", "ignore").decode()))[: self.entrance.longest_name]
            return Request([*headers, *((f"{name}{n}", "y") for n in range(shape.lines))])
        beside = [pair for pair in headers if pair[0] != shape.place]
        return Request([*beside, *[(shape.place, text)] * shape.lines])

    def _fastest(self, serve: Serve, make: Callable[[], Request], times: int) -> float:
        best = float("inf")
        for _ in range(times):
            self._nonce += 1
            hostile, plain = serve(make()), serve(Request([*COMMON, *VALID]))
            # What made the text has left the processor's caches to others; a server would not.
            plain()
            began = time.perf_counter_ns()
            hostile()
            best = min(best, time.perf_counter_ns() - began)
        flush()
        return best / 1_000


def entrances() -> dict[str, Entrance]:
    """Return every way in, by name, with the defaults and with all formats."""
    provider()
    every = MeshPropagator(("tracecontext", "baggage", "b3", "b3multi"), duplicates="same-trace", prefer="auto")
    options: list[dict[str, Any]] = [{}, {"propagator": every}]
    http = (*HEADERS, "host", *ASKED, NAMES, QUERY, PATH, METHOD)
    messages = (*HEADERS, NAMES)
    return {
        "ASGI": Entrance(http, [_asgi(), _asgi(propagator=every), _asgi(trust=_asks), _asgi(exclude=["/a*b", "/c"])]),
        # The server has joined a header's lines.
        "WSGI": Entrance(http, [_wsgi(), _wsgi(propagator=every), _wsgi(trust=_asks)], lines=(1,)),
        "gRPC": Entrance(
            (*HEADERS, *ASKED, NAMES), [_grpc(), _grpc(propagator=every), _grpc(trust=_asks)], MOST_METADATA
        ),
        "Kafka": Entrance(messages, [_kafka(each) for each in options]),
        "RabbitMQ": Entrance(messages, [_rabbitmq(each) for each in options]),
        "frames": Entrance(messages, [_frame(None), _frame(every)], MOST_FRAME, (1, 1, 2, 8), 200),
        "JSON": Entrance(messages, [_json(None), _json(every)], lines=(1,)),
    }


def _asks(request: RequestView) -> Any:
    return "continue" if request.spiffe_id is None and request.header("x-forwarded-for") != "x" else "restart"


def _run(once: Coroutine[Any, Any, None]) -> None:
    """Run to its end what waits for nothing."""
    try:
        once.send(None)
    except StopIteration:
        return


def _asgi(**options: Any) -> Serve:
    app = asgi.TraceContextMiddleware(asgi_app, **options)

    def serve(request: Request) -> Callable[[], object]:
        scope = scope_of(())
        scope["headers"] = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
        scope |= {"query_string": request.query.encode("latin-1"), "path": request.path, "method": request.method}
        return lambda: _run(app(scope, receive, send))

    return serve


def _wsgi(**options: Any) -> Serve:
    app = wsgi.TraceContextMiddleware(wsgi_app, **options)

    def serve(request: Request) -> Callable[[], object]:
        environ = environ_of(request.headers)
        environ |= {"QUERY_STRING": request.query, "PATH_INFO": request.path, "REQUEST_METHOD": request.method}

        def once() -> None:
            body: Any = app(environ, lambda *_: lambda data: None)
            for _chunk in body:
                pass
            body.close()

        return once

    return serve


class _Call:
    """Stands for grpcio's servicer context, of which a handler's call needs so much."""

    def __init__(self, metadata: Iterable[tuple[str, str]]) -> None:
        self._metadata = tuple(SimpleNamespace(key=key, value=value) for key, value in metadata)
        self._pairs = tuple(metadata)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._pairs

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"

    def is_active(self) -> bool:
        return True

    def add_callback(self, callback: object) -> bool:
        return True

    def code(self) -> None:
        return None


def _grpc(**options: Any) -> Serve:
    interceptor = TraceContextServerInterceptor(**options)
    made = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
    handler = interceptor.intercept_service(lambda _: made, SimpleNamespace(method="/lab.S/one"))

    def serve(request: Request) -> Callable[[], object]:
        call = _Call([(name, value) for name, value in request.headers])
        return lambda: handler.unary_unary(b"x", call)

    return serve


def _kafka(options: dict[str, Any]) -> Serve:
    def serve(request: Request) -> Callable[[], object]:
        headers = [(name, value.encode("latin-1")) for name, value in request.headers]
        record = SimpleNamespace(topic="orders", partition=0, offset=7, key=None, value=b"teapot", headers=headers)

        def once() -> None:
            with kafka.consumer_span(record, **options):
                pass

        return once

    return serve


def _rabbitmq(options: dict[str, Any]) -> Serve:
    def serve(request: Request) -> Callable[[], object]:
        headers: dict[str, Any] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value)
        properties = SimpleNamespace(headers=headers)

        def once() -> None:
            with rabbitmq.consumer_span(
                SimpleNamespace(exchange="", routing_key="orders"), properties, b"x", **options
            ):
                pass

        return once

    return serve


def _frame(propagator: MeshPropagator | None) -> Serve:
    def serve(request: Request) -> Callable[[], object]:
        block = b""
        for name, value in request.headers:
            text = value.encode("latin-1")[: frames.MAX_TEXT_BYTES]
            block += bytes([len(name)]) + name.encode() + len(text).to_bytes(2, "big") + text
        data = frames.MAGIC + bytes([frames.VERSION]) + len(block[:65_535]).to_bytes(2, "big") + block[:65_535]
        return lambda: _process(frames.decode(data, propagator=propagator)[0])

    return serve


def _json(propagator: MeshPropagator | None) -> Serve:
    def serve(request: Request) -> Callable[[], object]:
        message = {frames.JSON_KEY: dict(request.headers)}
        return lambda: _process(frames.extract_json(message, propagator=propagator))

    return serve


def _process(context: Context) -> None:
    """Process a message in a span, as its receiver does."""
    with frames.using(context), provider().get_tracer("receiver").start_as_current_span("message"):
        pass
