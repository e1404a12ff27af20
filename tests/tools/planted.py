"""A mesh in memory in which one fault is planted: what it logs, echoes and exports is what `verify` has to judge.

edge, then a shop with its sidecar, which calls stock and then price, each with a sidecar of its own. A `Fault` says
what one station does to the headers of the trace, or that it exports nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshmw._tools.verify import follow
from meshmw._tools.verify.evidence import LocalBackend, Watch
from meshmw._tools.verify.journey import Journey
from meshmw._tools.verify.logs import LogTail
from meshmw._tools.verify.probe import Echo, ProbeAnswer, Variant, make_probe
from meshmw.testing import ReceivedSpan

Headers = dict[str, str]
Change = Callable[[Headers], Headers]
OTHER = "f" * 32


def cleared(headers: Headers) -> Headers:
    return {**headers, "traceparent": headers["traceparent"][:-2] + "00"} if "traceparent" in headers else headers


def set_again(headers: Headers) -> Headers:
    return {**headers, "traceparent": headers["traceparent"][:-2] + "01"} if "traceparent" in headers else headers


def lost(headers: Headers) -> Headers:
    return {}


def restarted(headers: Headers) -> Headers:
    return {"traceparent": f"00-{OTHER}-{'a' * 16}-01"}


def malformed(headers: Headers) -> Headers:
    return {**headers, "traceparent": "00-xyz"}


def stateless(headers: Headers) -> Headers:
    return {name: value for name, value in headers.items() if name != "tracestate"}


@dataclass(frozen=True)
class Fault:
    """Says what is planted.

    Attributes:
        changes: What a station does to the headers that it sends, by its name; `edge->shop` is what lies between.
        silent: Stations that export nothing.
        passive: Proxies that pass headers on and trace nothing.
        own: Proxies that record in a trace of their own.
        starts: Stations that begin a trace where there is none.
    """

    changes: Mapping[str, Change] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    passive: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    starts: frozenset[str] = frozenset()


class PlantedMesh:
    """Runs one request through the mesh and has `verify` judge what it left."""

    def __init__(self, folder: Path, fault: Fault, *, cluster: str = "{}") -> None:
        self._folder = folder
        self._fault = fault
        self._cluster = cluster
        self._numbers = itertools.count(16)
        self._spans: list[ReceivedSpan] = []
        self._echoes: list[Echo] = []

    def run(self, variant: Variant = "w3c", *, echo: bool = False, logs: bool = True, spans: bool = True) -> Journey:
        probe = make_probe("http://mesh/", variant)
        names = ("edge", "shop", "stock", "price")
        tails = [LogTail(name, self._folder / f"{name}.log") for name in names] if logs else []
        for name in names:
            (self._folder / f"{name}.log").touch()
        self._agent = probe.agent
        self._edge(dict(probe.trace_headers))
        backends = [LocalBackend("memory", lambda: self._spans, everything=True)] if spans else []
        watch = Watch(tails=tails, backends=backends, timeout=0, settle=0, alone=True)
        return follow(probe, ProbeAnswer(200, tuple(self._echoes) if echo else ()), watch, 0)

    def _edge(self, headers: Headers) -> None:
        headers = self._proxy("edge", "edge", "shop", headers)
        headers = self._proxy("shop", "inbound", "shop", self._change("edge->shop", headers))
        headers = self._application("shop", headers)
        for callee in ("stock", "price"):
            sent = self._change(f"shop application->{callee}", headers)
            sent = self._proxy("shop", callee, callee, sent)
            sent = self._proxy(callee, "inbound", callee, self._change(f"shop->{callee}", sent))
            self._application(callee, sent, leaf=True)

    def _proxy(self, log: str, listener: str, callee: str, headers: Headers) -> Headers:
        name = log if listener == log else f"{log} {listener}"
        came, trace = dict(headers), ""
        if name not in self._fault.passive:
            headers = self._span(name, "SERVER" if listener == "inbound" else "CLIENT", headers, scope="envoy")
            trace = headers.get("traceparent", "")[3:35] if len(headers.get("traceparent", "")) == 55 else ""
        headers = self._change(name, headers)
        own = OTHER if name in self._fault.own else trace
        lines = [
            self._line(listener, callee, came, "DownstreamStart", trace),
            self._line(listener, callee, headers, "DownstreamEnd", own),
        ]
        with (self._folder / f"{log}.log").open("a") as file:
            file.writelines(f"{json.dumps(each)}\n" for each in lines)
        return headers

    def _line(self, listener: str, callee: str, headers: Headers, kind: str, trace: str) -> dict[str, object]:
        return {
            "type": kind,
            "listener": listener,
            "method": "GET",
            "path": "/",
            "response_code": 200,
            "upstream_cluster": self._cluster.format(callee),
            "user_agent": self._agent,
            "request_id": "one",
            "traceparent": headers.get("traceparent"),
            "tracestate": headers.get("tracestate"),
            "trace_id": trace or None,
        }

    def _application(self, name: str, headers: Headers, *, leaf: bool = False) -> Headers:
        self._echoes.append(Echo(f"answer.{name}", {"traceparent": None, "tracestate": None, **headers}))
        full = f"{name} application"
        sent = self._span(full, "SERVER", headers)
        if leaf:
            return sent
        return self._change(full, self._span(full, "CLIENT", sent))

    def _span(self, name: str, kind: str, headers: Headers, scope: str = "meshmw") -> Headers:
        parent = headers.get("traceparent", "")
        is_valid = len(parent) == 55
        if not is_valid and name not in self._fault.starts:
            return headers
        trace, above, flags = (parent[3:35], parent[36:52], parent[53:]) if is_valid else ("e" * 32, "", "01")
        number = f"{next(self._numbers):016x}"
        if flags == "01" and name not in self._fault.silent:
            service = name.partition(" ")[0]
            self._spans.append(
                ReceivedSpan(
                    service=service, name="GET", kind=kind, scope=scope, trace_id=trace, span_id=number,
                    parent_id=above, start_ns=int(number, 16), end_ns=int(number, 16) + 1,
                )
            )  # fmt: skip
        return {**headers, "traceparent": f"00-{trace}-{number}-{flags}"}

    def _change(self, name: str, headers: Headers) -> Headers:
        return self._fault.changes.get(name, dict)(headers)
