"""Set-ups of an Envoy, and what doctor has to say of each. `test_doctor_oracle` plants them in a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.tools.doctor_parts import (
    ADD,
    ALONE,
    APPEND,
    B3,
    B3_SINGLE,
    GONE,
    LUA_OFF,
    ONE,
    OTHER,
    PLANTED,
    REMOVE,
    REMOVE_B3,
    REMOVER,
    SET,
    UNSAMPLED,
    W3C,
    Json,
    adding,
    asking,
    behind_a_matcher,
    both,
    copying,
    early,
    ids,
    limiting,
    lua,
    lua_of,
    mutating,
    off,
    one_of,
    overriding,
    per_route,
    router_with,
    setting,
    specific_wins,
    to_metadata,
    transforming,
)


@dataclass(frozen=True)
class Row:
    """One set-up, and what doctor has to say of it.

    Attributes:
        manager: Fields of the connection manager.
        tracer: The tracer's name in `TRACERS`; None for no `tracing` at all.
        tracing: More fields of `tracing`.
        routing: Fields of the route configuration, virtual host, route, and weighted cluster.
        filters: HTTP filters before the router.
        upstream: HTTP filters of the cluster.
        sends: The headers of the request.
        path: Its path.
        body: Its body, JSON; none for a GET.
        says: The codes about headers that doctor must give, beside what the upstream saw.
        unseen: A code that this request cannot show.
        unjudged: Whether doctor says that it cannot judge this.
    """

    says: tuple[str, ...] = ()
    tracer: str | None = None
    tracing: Json = field(default_factory=dict)
    manager: Json = field(default_factory=dict)
    table: Json = field(default_factory=dict)
    host: Json = field(default_factory=dict)
    route: Json = field(default_factory=dict)
    weight: Json = field(default_factory=dict)
    filters: Sequence[Json] = ()
    upstream: Sequence[Json] = ()
    sends: Mapping[str, str] = field(default_factory=lambda: W3C)
    path: str = "/"
    body: str = ""
    unseen: str = ""
    unjudged: bool = False


REMOVED, RESTARTED = ("headers.removed",), ("headers.removed-early",)
CLEARED, SETS = ("sampling.proxy-clears-the-flag",), ("sampling.proxy-sets-the-flag",)
OVERWRITTEN, DOUBLED, ADDED = ("headers.overwritten",), ("headers.doubled",), ("headers.added",)
IF_ABSENT = adding("ADD_IF_ABSENT")
ABSENT_B3 = setting(f"{OTHER}-2222222222222222-1", "b3")

ROWS: dict[str, Row] = {
    "nothing": Row(),
    "otel": Row(tracer="otel"),
    "b3, w3c": Row(tracer="b3"),
    "b3": Row(tracer="b3", sends=B3),
    "b3+w3c, w3c": Row(tracer="b3+w3c"),
    "b3+w3c, b3": Row(tracer="b3+w3c", sends=B3),
    "datadog": Row(tracer="datadog"),
    "skywalking": Row(tracer="skywalking"),
    "xray": Row(tracer="xray"),
    "fluentd": Row(tracer="fluentd"),
    "fluentd, route removes": Row(tracer="fluentd", route=REMOVE),
    "fluentd, early removes": Row(RESTARTED, tracer="fluentd", manager=early({"remove": "traceparent"}), sends=ALONE),
    "fluentd, random 0": Row(tracer="fluentd", tracing={"random_sampling": {"value": 0}}),
    # Routes, at each level, without a tracer.
    "table removes": Row(REMOVED, table=REMOVE),
    "host removes": Row(REMOVED, host=REMOVE),
    "route removes": Row(REMOVED, route=REMOVE),
    "weight removes": Row(REMOVED, weight=REMOVE),
    "route removes in capitals": Row(REMOVED, route={"request_headers_to_remove": ["TraceParent"]}),
    "route removes baggage": Row(REMOVED, route={"request_headers_to_remove": ["baggage"]}),
    "route removes b3": Row(REMOVED, route=REMOVE_B3, sends=B3),
    "route removes single b3": Row(REMOVED, route=REMOVE_B3, sends=B3_SINGLE),
    "route appends": Row(DOUBLED, route=adding()),
    "route sets": Row(OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS_OR_ADD")),
    "route replaces": Row(OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS")),
    "route adds": Row(("headers.added",), route=adding("ADD_IF_ABSENT"), sends={}),
    # Whether a header is absent is asked before any is written.
    "route adds twice": Row(ADDED, route=both(IF_ABSENT, IF_ABSENT), sends={}),
    "host adds, route adds": Row(ADDED, host=IF_ABSENT, route=IF_ABSENT, sends={}),
    "route sets and adds": Row(OVERWRITTEN, route=both(setting(PLANTED), IF_ABSENT)),
    "route removes, adds": Row(OVERWRITTEN, route={**ONE, **IF_ABSENT}, sends=ALONE),
    "route removes, adds twice": Row(DOUBLED, route={**ONE, **both(IF_ABSENT, IF_ABSENT)}, sends=ALONE),
    "route removes, sets and adds": Row(DOUBLED, route={**ONE, **both(setting(PLANTED), IF_ABSENT)}, sends=ALONE),
    "route removes, adds and appends": Row(DOUBLED, route={**ONE, **both(IF_ABSENT, adding())}, sends=ALONE),
    "route removes, adds and replaces": Row(
        OVERWRITTEN, route={**ONE, **both(IF_ABSENT, adding("OVERWRITE_IF_EXISTS"))}, sends=ALONE
    ),
    "route removes, adds twice, host sets": Row(
        OVERWRITTEN, route={**ONE, **both(IF_ABSENT, IF_ABSENT)}, host=setting(PLANTED), sends=ALONE
    ),
    "filter adds twice": Row(ADDED, filters=[mutating(ADD, ADD)], sends={}),
    "filter removes, adds twice": Row(OVERWRITTEN, filters=[mutating(GONE[0], ADD, ADD)], sends=ALONE),
    "otel, route adds": Row(tracer="otel", route=adding("ADD_IF_ABSENT"), sends={}),
    "otel, early adds": Row(("headers.added",), tracer="otel", manager=early(ADD), sends={}),
    "route sets, old": Row(OVERWRITTEN, route=adding(append=False)),
    "route sets its own": Row(route=adding("OVERWRITE_IF_EXISTS_OR_ADD", value="%REQ(traceparent)%")),
    "route appends its own": Row(DOUBLED, route=adding(value="%REQ(traceparent)%")),
    "route sets nothing": Row(route=adding("OVERWRITE_IF_EXISTS_OR_ADD", value="")),
    "route sets emptiness": Row(
        OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS_OR_ADD", value="", keep_empty_value=True)
    ),
    "route removes and appends": Row(OVERWRITTEN, route={**ONE, **adding()}),
    "route removes, host appends": Row(OVERWRITTEN, route=ONE, host=adding()),
    "host removes, route appends": Row(REMOVED, host=REMOVE, route=adding()),
    "host removes, route appends, specific wins": Row(
        OVERWRITTEN, host=ONE, route=adding(), table={"most_specific_header_mutations_wins": True}
    ),
    "route appends baggage": Row(route=adding(header="baggage", value="a=b")),
    "route sets baggage": Row(OVERWRITTEN, route=adding("OVERWRITE_IF_EXISTS", header="baggage", value="a=b")),
    "route appends and sets": Row(DOUBLED, route=both(adding(), adding("OVERWRITE_IF_EXISTS_OR_ADD"))),
    "route removes and appends its own": Row(REMOVED, route={**ONE, **adding(value="%REQ(traceparent)%")}),
    "host removes, route appends its own": Row(REMOVED, host=ONE, route=adding(value="%REQ(traceparent)%")),
    "host appends, route appends its own": Row(DOUBLED, host=adding(), route=adding(value="%REQ(traceparent)%")),
    "route sets its own, in a newer word": Row(route=setting("%REQUEST_HEADER(TraceParent)%")),
    "route sets its own, or another": Row(route=setting("%REQ(traceparent?x-was)%")),
    "route sets its own, cut too late": Row(route=setting("%REQ(traceparent):200%")),
    "route sets its own, cut": Row(route=setting("%REQ(traceparent):30%"), unjudged=True),
    "route sets another": Row(route=setting("%REQ(x-was)%"), unjudged=True),
    "route removes, and sets what a filter has kept": Row(
        filters=[mutating({"append": setting("%REQ(traceparent)%", "x-was")["request_headers_to_add"][0]})],
        route={**ONE, **setting("%REQ(x-was)%")},
        unjudged=True,
    ),
    "route sets a percent sign": Row(OVERWRITTEN, route=setting(f"{PLANTED}%%")),
    "route keeps a copy": Row(route=adding(header="x-was", value="%REQ(traceparent)%")),
    # The same where a tracer writes.
    "otel, table removes": Row(tracer="otel", table=REMOVE),
    "otel, weight removes": Row(tracer="otel", weight=REMOVE),
    "otel, route sets": Row(tracer="otel", route=adding("OVERWRITE_IF_EXISTS_OR_ADD")),
    "otel, route appends": Row(tracer="otel", route=adding()),
    "otel, route removes baggage": Row(REMOVED, tracer="otel", route={"request_headers_to_remove": ["baggage"]}),
    "b3, route removes w3c": Row(REMOVED, tracer="b3", route=REMOVE),
    "b3, route removes b3": Row(tracer="b3", route=REMOVE_B3, sends=B3),
    "b3, route removes single b3": Row(tracer="b3", route=REMOVE_B3, sends=B3_SINGLE),
    # Zipkin's tracer writes B3 in the form that it has read.
    "b3, single": Row(tracer="b3", sends=B3_SINGLE),
    "b3+w3c, single": Row(tracer="b3+w3c", sends=B3_SINGLE),
    "b3, route sets single b3": Row(ADDED, tracer="b3", route=ABSENT_B3, sends=B3),
    "b3, route sets single b3, w3c": Row(ADDED, tracer="b3", route=ABSENT_B3),
    "b3, route sets single b3, single": Row(
        ADDED, tracer="b3", route=ABSENT_B3, sends=B3_SINGLE, unseen="headers.added"
    ),
    "b3, route replaces single b3": Row(
        tracer="b3", route=adding("OVERWRITE_IF_EXISTS", "b3", f"{OTHER}-2222222222222222-1"), sends=B3_SINGLE
    ),
    "b3, route sets several b3, single": Row(ADDED, tracer="b3", route=setting(OTHER, "x-b3-traceid"), sends=B3_SINGLE),
    "b3+w3c, route appends single b3": Row(
        ADDED, tracer="b3+w3c", route=adding(header="b3", value=f"{OTHER}-2222222222222222-1")
    ),
    "b3, early removes single b3": Row(RESTARTED, tracer="b3", manager=early({"remove": "b3"}), sends=B3_SINGLE),
    "b3, upstream removes single b3": Row(REMOVED, tracer="b3", upstream=[mutating({"remove": "b3"})], sends=B3_SINGLE),
    "b3+w3c, route removes traceparent": Row(tracer="b3+w3c", route={"request_headers_to_remove": ["traceparent"]}),
    "b3+w3c, route removes tracestate": Row(
        REMOVED, tracer="b3+w3c", route={"request_headers_to_remove": ["tracestate"]}
    ),
    "b3, route sets": Row(OVERWRITTEN, tracer="b3", route=adding("OVERWRITE_IF_EXISTS_OR_ADD")),
    "datadog, route removes": Row(tracer="datadog", route=REMOVE),
    "skywalking, route removes": Row(REMOVED, tracer="skywalking", route=REMOVE),
    # The header_mutation filter.
    "filter removes": Row(REMOVED, filters=[mutating(*GONE)]),
    "filter appends": Row(DOUBLED, filters=[mutating(APPEND)]),
    "filter sets": Row(OVERWRITTEN, filters=[mutating(SET)]),
    "filter removes by prefix": Row(
        REMOVED, filters=[mutating({"remove_on_match": {"key_matcher": {"prefix": "trace"}}})]
    ),
    "filter removes by contains": Row(
        REMOVED, filters=[mutating({"remove_on_match": {"key_matcher": {"contains": "RACEPAR", "ignore_case": True}}})]
    ),
    "filter removes others": Row(filters=[mutating({"remove_on_match": {"key_matcher": {"suffix": "-else"}}})]),
    "filter removes by pattern": Row(
        filters=[mutating({"remove_on_match": {"key_matcher": {"safe_regex": {"regex": "trace.*"}}}})], unjudged=True
    ),
    "otel, filter removes": Row(tracer="otel", filters=[mutating(*GONE)]),
    "b3, filter removes": Row(REMOVED, tracer="b3", filters=[mutating(*GONE)]),
    "filter off by itself": Row(filters=[{**mutating(*GONE), "disabled": True}]),
    "filter off for a route": Row(filters=[mutating(*GONE)], route=off("envoy.filters.http.header_mutation")),
    "filter off, on for a route": Row(REMOVED, filters=[{**mutating(), "disabled": True}], route=per_route(*GONE)),
    "filter removes for a route": Row(REMOVED, filters=[mutating()], route=per_route(*GONE)),
    "filter removes for a host": Row(REMOVED, filters=[mutating()], host=per_route(*GONE)),
    "filter removes for a table": Row(REMOVED, filters=[mutating()], table=per_route(*GONE)),
    "filter removes for a weight": Row(REMOVED, filters=[mutating()], weight=per_route(*GONE)),
    # Before the tracer.
    "early removes": Row(REMOVED, manager=early(*GONE)),
    "otel, early removes": Row(RESTARTED, tracer="otel", manager=early(*GONE)),
    "otel, early removes tracestate": Row(REMOVED, tracer="otel", manager=early({"remove": "tracestate"})),
    "otel, early sets": Row(OVERWRITTEN, tracer="otel", manager=early(SET)),
    "otel, early appends": Row(tracer="otel", manager=early(APPEND)),
    "b3, early removes": Row(REMOVED, tracer="b3", manager=early(*GONE)),
    "b3, early removes b3": Row(RESTARTED, tracer="b3", manager=early({"remove": "x-b3-traceid"}), sends=B3),
    "b3+w3c, early removes": Row(RESTARTED, tracer="b3+w3c", manager=early({"remove": "traceparent"})),
    "datadog, early removes": Row(RESTARTED, tracer="datadog", manager=early(*GONE)),
    # After the tracer.
    "upstream removes": Row(REMOVED, upstream=[mutating(*GONE)]),
    "otel, upstream removes": Row(REMOVED, tracer="otel", upstream=[mutating(*GONE)]),
    "otel, upstream sets": Row(OVERWRITTEN, tracer="otel", upstream=[mutating(SET)]),
    "otel, router removes": Row(REMOVED, tracer="otel", manager=router_with(mutating(*GONE))),
    "router removes, the cluster has its own": Row(manager=router_with(mutating(*GONE)), upstream=[mutating()]),
    "otel, router removes, the cluster has its own": Row(
        tracer="otel", manager=router_with(mutating(*GONE)), upstream=[mutating()]
    ),
    # Injection and sampling.
    "otel, no propagation": Row(("proxy.injects-nothing",), tracer="otel", tracing={"no_context_propagation": True}),
    "otel, no propagation, route removes": Row(
        ("proxy.injects-nothing", "headers.removed"),
        unseen="proxy.injects-nothing",
        tracer="otel",
        tracing={"no_context_propagation": True},
        route=REMOVE,
    ),
    "b3, no propagation": Row(
        ("proxy.injects-nothing",), tracer="b3", tracing={"no_context_propagation": True}, sends=B3
    ),
    "otel, random 0": Row(CLEARED, tracer="otel", tracing={"random_sampling": {"value": 0}}),
    "otel, overall 0": Row(CLEARED, tracer="otel", tracing={"overall_sampling": {"value": 0}}),
    "otel, client 0": Row(tracer="otel", tracing={"client_sampling": {"value": 0}}),
    "otel, route 0": Row(CLEARED, tracer="otel", route={"tracing": {"random_sampling": {"numerator": 0}}}),
    "otel, route overall 0": Row(CLEARED, tracer="otel", route={"tracing": {"overall_sampling": {"numerator": 0}}}),
    "otel, random 0, route 100": Row(
        tracer="otel", tracing={"random_sampling": {"value": 0}}, route={"tracing": {"operation": "x"}}
    ),
    "otel, random 0, no request id": Row(
        tracer="otel", tracing={"random_sampling": {"value": 0}}, manager=ids(use_request_id_for_trace_sampling=False)
    ),
    "otel, route 0, no request id": Row(
        tracer="otel",
        route={"tracing": {"random_sampling": {"numerator": 0}}},
        manager=ids(use_request_id_for_trace_sampling=False),
    ),
    # Samplers. Where a request is not to be traced, none of them is asked.
    "otel, always on": Row(SETS, tracer="otel always_on", unseen=SETS[0]),
    "otel, always on, unsampled": Row(SETS, tracer="otel always_on", sends=UNSAMPLED),
    "otel, all by ids, unsampled": Row(SETS, tracer="otel all told", sends=UNSAMPLED),
    "otel, unsampled": Row(tracer="otel", sends=UNSAMPLED),
    "otel, always on, random 0": Row(
        CLEARED + SETS, tracer="otel always_on", tracing={"random_sampling": {"value": 0}}, unseen=SETS[0]
    ),
    "otel, always on, random 0, no request id": Row(
        SETS,
        unseen=SETS[0],
        tracer="otel always_on",
        tracing={"random_sampling": {"value": 0}},
        manager=ids(use_request_id_for_trace_sampling=False),
    ),
    "otel, by ids": Row(CLEARED, tracer="otel trace_id_ratio_based"),
    "otel, by ids, no request id": Row(
        CLEARED, tracer="otel trace_id_ratio_based", manager=ids(use_request_id_for_trace_sampling=False)
    ),
    "otel, by ids, none told": Row(CLEARED, tracer="otel none told"),
    "otel, by parent": Row(tracer="otel parent_based"),
    "otel, by parent, random 0": Row(CLEARED, tracer="otel parent_based", tracing={"random_sampling": {"value": 0}}),
    "otel, dynatrace": Row(tracer="otel dynatrace", unjudged=True),
    "b3, random 0": Row(tracer="b3", tracing={"random_sampling": {"value": 0}}, sends=B3),
    "b3+w3c, random 0": Row(tracer="b3+w3c", tracing={"random_sampling": {"value": 0}}),
    "datadog, random 0": Row(tracer="datadog", tracing={"random_sampling": {"value": 0}}),
    "b3+w3c, overall 0": Row(tracer="b3+w3c", tracing={"overall_sampling": {"value": 0}}),
    "datadog, overall 0": Row(tracer="datadog", tracing={"overall_sampling": {"value": 0}}),
    # Others.
    "internal only, not the edge": Row(REMOVED, table={"internal_only_headers": ["traceparent"]}),
    "internal only, the edge": Row(
        REMOVED, table={"internal_only_headers": ["traceparent"]}, manager={"use_remote_address": True}
    ),
    "otel, internal only": Row(
        RESTARTED, tracer="otel", table={"internal_only_headers": ["traceparent"]}, manager={"use_remote_address": True}
    ),
    "transform removes": Row(REMOVED, filters=[transforming(*GONE)], body="{}"),
    "transform sets": Row(OVERWRITTEN, filters=[transforming(SET)], body="{}"),
    "otel, transform removes": Row(tracer="otel", filters=[transforming(*GONE)], body="{}"),
    "asks another service": Row(filters=[asking("SEND")], unjudged=True),
    "asks another service, not of requests": Row(filters=[asking("SKIP")]),
    "asks another service, which may tell otherwise": Row(
        filters=[asking("SKIP", allow_mode_override=True)], unjudged=True
    ),
    "asks for rate limits": Row(filters=[limiting()], unjudged=True),
    "lua": Row(filters=[lua("'trace' .. 'parent'")], unjudged=True),
    "lua that names it": Row(filters=[lua("'traceparent'")], unjudged=True),
    # Contour gives each proxy such a placeholder, and a function for responses where a route changes cookies.
    "lua that does nothing": Row(filters=[lua_of("-- Placeholder. function envoy_on_request")]),
    "lua of responses": Row(tracer="otel", filters=[lua_of("function envoy_on_response(h) end")]),
    "lua under another name": Row(filters=[lua_of(f"_G['envoy_on_' .. 'request'] = {REMOVER}")], unjudged=True),
    "contour": Row(
        tracer="otel",
        tracing={"random_sampling": {"value": 100}, "overall_sampling": {"value": 100}, "spawn_upstream_span": True},
        filters=[lua_of("-- Placeholder for overrides.")],
        manager={"use_remote_address": True, "preserve_external_request_id": True},
    ),
    "lua off": Row(filters=[lua("'traceparent'")], route=LUA_OFF),
    "lua off by filter config": Row(filters=[lua("'traceparent'")], host=off("envoy.filters.http.lua")),
    "b3+w3c, internal redirect": Row(
        tracer="b3+w3c",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "datadog, internal redirect": Row(
        tracer="datadog",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "otel, internal redirect, no request id": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
        manager=ids(use_request_id_for_trace_sampling=False),
    ),
    "otel, internal redirect, no reason": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
        manager=ids(pack_trace_reason=False),
    ),
    "filter behind a matcher": Row(REMOVED, filters=[behind_a_matcher(mutating(*GONE))]),
    "filter among others": Row(REMOVED, filters=[one_of(mutating(*GONE))]),
    "filter of two names": Row(
        filters=[{**mutating(*GONE), "name": "mine"}], route=off("envoy.filters.http.header_mutation"), says=REMOVED
    ),
    "header to metadata": Row(REMOVED, filters=[to_metadata("traceparent", remove=True)]),
    "header to metadata, but for a route": Row(
        filters=[to_metadata("traceparent", remove=True)], route=overriding(to_metadata("x-else", remove=True))
    ),
    "header to metadata, for a route": Row(
        REMOVED,
        filters=[to_metadata("x-else")],
        host=overriding(to_metadata("x-else")),
        route=overriding(to_metadata("traceparent", remove=True)),
    ),
    "filter, the general wins": Row(
        OVERWRITTEN, filters=[mutating()], host=per_route(SET), route=per_route({"remove": "traceparent"})
    ),
    "filter, the specific wins": Row(
        REMOVED,
        filters=[specific_wins(mutating())],
        host=per_route(SET),
        route=per_route({"remove": "traceparent"}),
    ),
    "internal redirect copies": Row(REMOVED, path="/redirect", route=copying("traceparent")),
    "internal redirect copies others": Row(path="/redirect", route=copying("x-else")),
    "b3+w3c, internal redirect copies": Row(
        RESTARTED, tracer="b3+w3c", path="/redirect", route=copying("traceparent", "x-b3-traceid")
    ),
    "otel, internal redirect": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={"route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "otel, internal redirect, route removes": Row(
        CLEARED,
        tracer="otel",
        path="/redirect",
        route={**REMOVE, "route": {"internal_redirect_policy": {"max_internal_redirects": 1}}},
    ),
    "otel, removes b3": Row(REMOVED, tracer="otel", route=REMOVE_B3, sends={**W3C, **B3_SINGLE}),
}
