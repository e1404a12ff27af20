"""Whether every span of a soak is in its own request's tree, and what else went wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from tests.soak.spans import Span
from tests.soak.traffic import Ask, Traffic

_NONE, _NO_TRACE = bytes(8), bytes(16)


def strays(traffic: Traffic, spans: Iterable[Span]) -> Iterator[str]:
    """Tell of each span that is in the wrong tree, and of each request without its SERVER span."""
    by_request: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        by_request[span.request].append(span)
    yield from traffic.wrong
    for unknown in by_request.keys() - range(traffic.count):
        yield f"request {unknown} was never sent: {by_request[unknown][:3]}"
    roots: Counter[bytes] = Counter()
    for ask in traffic.asked:
        found = by_request.get(ask.number, [])
        yield from (f"{ask.number} {ask.route} {ask.sent}: {fault}" for fault in _faults(traffic, ask, found))
        roots.update({span.trace for span in found if span.is_server or span.is_apart})
    yield from (f"trace {trace.hex()} has {count} requests" for trace, count in roots.items() if count > 1)


def _faults(traffic: Traffic, ask: Ask, spans: list[Span]) -> Iterator[str]:
    servers = [span for span in spans if span.is_server]
    # One that a client left may never have been begun.
    if len(servers) != 1 and (servers or ask.act in ("get", "post", "ws")):
        yield f"{len(servers)} SERVER spans, status {ask.status}"
    if ask.act in ("get", "post", "ws") and not ask.status:
        yield "no response"
    if not servers:
        yield from (["spans without a SERVER span"] if spans else [])
        return
    yield from _server_faults(traffic, ask, servers[0])
    for span in spans:
        if not span.is_server:
            yield from _inner_faults(traffic, ask, span, servers[0], {each.span for each in spans})


def _server_faults(traffic: Traffic, ask: Ask, server: Span) -> Iterator[str]:
    theirs = traffic.trace(ask.number)
    if ask.sent == "valid":
        if (server.trace, server.parent) != (theirs, traffic.parent(ask.number)):
            yield f"the SERVER span is in {server.trace.hex()} below {server.parent.hex()}"
        return
    if server.parent != _NONE or server.trace[:4] == theirs[:4]:
        yield f"the SERVER span is no fresh root: {server.trace.hex()} below {server.parent.hex()}"
    if server.link_trace != (theirs if ask.sent == "twice" else _NO_TRACE):
        yield f"the SERVER span links to {server.link_trace.hex()}"


def _inner_faults(traffic: Traffic, ask: Ask, span: Span, server: Span, known: set[bytes]) -> Iterator[str]:
    if span.is_apart:
        if span.parent != _NONE or span.trace == server.trace or span.link_trace not in (_NO_TRACE, server.trace):
            yield f"a detached span is below {span.parent.hex()}"
    elif span.message:
        wanted = traffic.trace(ask.number, span.message), traffic.parent(ask.number, span.message)
        if (span.trace, span.parent) != wanted:
            yield f"message {span.message} is in {span.trace.hex()} below {span.parent.hex()}"
    elif span.trace != server.trace or span.parent not in known:
        yield f"a span is in {span.trace.hex()} below {span.parent.hex()}"
