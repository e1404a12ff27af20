"""What an Envoy does with each trace header, from its arrival to the upstream.

The list comes from Envoy's protos: every field, on a request's way, that removes, sets or adds a request header. One
header is followed through all of them in Envoy's own order: early mutation, the tracer reads, HTTP filters, the route's
own changes, the tracer writes, the filters of the upstream cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final, Literal

from meshmw._tools import JsonValue
from meshmw._tools.doctor.configuration import Configuration, Json, own_name, plain, type_of, typed
from meshmw._tools.doctor.filters import Step, filter_steps, mutations, options, removal
from meshmw._tools.doctor.tracers import Tracing, route_sampling
from meshmw.wire.headers import B3_HEADERS

# Several lines of these are one list.
LISTS: Final = {"baggage", "tracestate"}
# The tracer goes on without these.
_BESIDE_THE_IDS: Final = {"x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "x-datadog-sampling-priority"}

# What a route says to these changes only whether and what they ask.
_ASKS_FOR_ROUTES: Final = ("ExtAuthz", "ExtProc")
_FOLLOWS: Final = "HANDLE_INTERNAL_REDIRECT"

Effect = Literal["removed", "restarted", "overwritten", "doubled", "added", "in vain"]
_State = Literal["caller's", "gone", "planted", "two", "or planted", "owed", "two owed"]
_EFFECTS: Final[Mapping[_State, Effect]] = {
    "gone": "removed",
    "planted": "overwritten",
    "two": "doubled",
    "or planted": "added",
}


@dataclass(frozen=True, slots=True)
class HeaderChange(JsonValue):
    """Holds what becomes of one trace header, and where.

    Attributes:
        header: Its name.
        effect: `removed`: what lies behind gets none. `restarted`: the tracer does not see it, and begins another
            trace. `overwritten`: all requests get one value. `doubled`: there are two lines of it. `added`: requests
            without it get one value. `in vain`: the tracer writes it again afterwards.
        place: Where the configuration says so.
    """

    header: str
    effect: Effect
    place: str


@dataclass(frozen=True, slots=True)
class Way:
    """Holds what happens to trace headers on all ways through one connection manager.

    Attributes:
        changes: What becomes of which header.
        unjudged: What may change headers, and does not say so in a configuration.
        rates: Percentages of requests that start sampled, with the route that says so; empty for the manager's own.
        redirects: Routes that follow redirects themselves.
    """

    changes: tuple[HeaderChange, ...] = ()
    unjudged: tuple[str, ...] = ()
    rates: tuple[tuple[str, float], ...] = ()
    redirects: tuple[str, ...] = ()


def follow(manager: Json, tables: Sequence[Json], configuration: Configuration, tracing: Tracing) -> Way:
    """Follow each trace header through a connection manager.

    Args:
        manager: The connection manager.
        tables: Its route configurations.
        configuration: Where clusters and filters are looked up.
        tracing: What its tracer does.
    """
    changes: dict[HeaderChange, None] = {}
    unjudged: dict[str, None] = {}
    rates: dict[tuple[str, float], None] = {}
    redirects: dict[str, None] = {}
    choosable = _with_filters(configuration)
    # Without routes, the rest of the way is still known.
    for table in tables or ({"vhds": {}},):
        early = list(_early_steps(manager, table))
        for filters in _chains(manager):
            for leaf in _destinations(_leaves(table, configuration.bootstrap), choosable):
                late = [*_filter_steps(filters, leaf, configuration), *leaf.steps()]
                upstream = list(_upstream_steps(filters, leaf, configuration))
                first = [*early, *leaf.steps_of_redirects()]
                steps = [*first, *late, *upstream]
                unjudged.update((step.place, None) for step in steps if step.action == "unjudged")
                changes.update(dict.fromkeys(_changes_on_one_way(first, late, upstream, tracing)))
                rates[("", tracing.random_sampling) if leaf.rate is None else (leaf.name, leaf.rate)] = None
                redirects.update({leaf.name: None} if leaf.redirects else {})
    return Way(tuple(changes), tuple(unjudged), tuple(rates), tuple(redirects))


def _changes_on_one_way(
    early: Sequence[Step], late: Sequence[Step], upstream: Sequence[Step], tracing: Tracing
) -> list[HeaderChange]:
    headers = dict.fromkeys(step.header for step in (*early, *late, *upstream) if step.header)
    found = [change for name in headers if (change := _change_of(name, early, late, upstream, tracing))]
    # With another trace goes another state.
    restarted = any(change.header == "traceparent" and change.effect == "restarted" for change in found)
    return [change for change in found if not (restarted and change.header == "tracestate")]


def _change_of(
    header: str, early: Sequence[Step], late: Sequence[Step], upstream: Sequence[Step], tracing: Tracing
) -> HeaderChange | None:
    """Return what becomes of one header on one way, if anything does."""
    if header not in tracing.writes:
        state, place = _after(header, [*early, *late, *upstream])
        return _as_change(header, state, place)
    # The tracer writes the header anew, from what it read.
    state, place = _after(header, upstream)
    if state != "caller's":
        return _as_change(header, state, place)
    state, place = _after(header, early)
    if state == "gone" and header != "tracestate":
        return None if header in _BESIDE_THE_IDS else HeaderChange(header, "restarted", place)
    if state not in ("caller's", "two"):
        return _as_change(header, state, place)
    _, place = _after(header, [*early, *late])
    if tracing.tracer == "zipkin" and header in B3_HEADERS:
        # It writes B3 as the caller did, in one header or in several, and leaves what it finds in the other form.
        state, planted = _after(header, [*early, *late], "gone")
        if state != "gone":
            return HeaderChange(header, "added", planted)
    return HeaderChange(header, "in vain", place) if place else None


def _after(header: str, steps: Sequence[Step], state: _State = "caller's") -> tuple[_State, str]:
    """Return what is left of the caller's header after these steps, and where the last that counts stands."""
    place = ""
    for step in steps:
        if step.header == header:
            before, state = state, _next(state, step.action)
            place = step.place if state != before else place
    return state, place


def _next(state: _State, action: str) -> _State:
    if action in ("owe", "settle") or state in ("owed", "two owed"):
        return _next_of_owed(state, action)
    if action == "remove":
        return "gone"
    if action == "set":
        return "planted"
    if action == "copy":
        # What it is then cannot be judged, and is said by another step.
        return "caller's"
    if action == "repeat":
        return "gone" if state == "gone" else "two"
    if state == "gone":
        return "gone" if action == "replace" else "planted"
    if action == "replace":
        return "planted"
    if action == "append":
        return "two"
    return "or planted" if state == "caller's" else state


def _next_of_owed(state: _State, action: str) -> _State:
    """Return what is left where a level has a line to add, if the header was absent as the level began."""
    if action == "settle":
        return {"owed": "planted", "two owed": "two"}.get(state, state)  # type: ignore[return-value]
    if state in ("owed", "two owed"):
        return "two owed" if action in ("owe", "set", "append") else state
    return {"gone": "owed", "caller's": "or planted"}.get(state, state)  # type: ignore[return-value]


def _as_change(header: str, state: _State, place: str) -> HeaderChange | None:
    if state == "caller's" or (state == "two" and header in LISTS):
        return None
    return HeaderChange(header, _EFFECTS[state], place)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """Holds one way through a route table: what applies to it, the general first, and where it ends."""

    levels: Sequence[tuple[str, Json]]
    cluster: str
    rate: float | None
    redirects: bool
    copied: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.levels[-1][0]

    def steps_of_redirects(self) -> Iterator[Step]:
        """Yield what is taken from the answer that redirects: what it lacks, the request loses."""
        for name in self.copied:
            yield from removal(name, f"response_headers_to_copy of {self.name}")

    def steps(self) -> Iterator[Step]:
        # The most specific one comes first, so that the general one has the last word.
        specific_wins = plain(self.levels[0][1].get("most_specific_header_mutations_wins"), False)
        for place, level in self.levels if specific_wins else reversed(self.levels):
            yield from options(level, place)

    def filter_configs(self, name: str) -> list[tuple[str, Json]]:
        """Return what this way says of a filter, and where, the most specific first."""
        return [
            (place, typed(config))
            for place, level in reversed(self.levels)
            for key, config in level.get("typed_per_filter_config", {}).items()
            if own_name(key) == own_name(name)
        ]


def _destinations(leaves: Iterable[_Leaf], choosable: Iterable[str]) -> Iterator[_Leaf]:
    """Yield each way; where a header or a plugin chooses the cluster, also to those that have filters of their own."""
    for leaf in leaves:
        yield leaf
        if not leaf.cluster:
            yield from (replace(leaf, cluster=name) for name in choosable)


def _with_filters(configuration: Configuration) -> list[str]:
    """Return the clusters that have filters of their own, and of those whose filters are alike only one."""
    found: dict[str, str] = {}
    for name, cluster in configuration.clusters.items():
        if filters := [*_filters_of(cluster)]:
            found.setdefault(repr(filters), name)
    return [*found.values()]


def _filters_of(cluster: Json) -> Iterator[Json]:
    for protocol in cluster.get("typed_extension_protocol_options", {}).values():
        yield from typed(protocol).get("http_filters", ())


def _leaves(table: Json, bootstrap: Json | None) -> Iterator[_Leaf]:
    top = (f"route configuration {table.get('name', '')}".strip(), table)
    for host in table.get("virtual_hosts", ()):
        second = (f"virtual host {host.get('name', '')}".strip(), host)
        for route in chain(host.get("routes", ()), _routes_within(host.get("matcher"))):
            # A redirect or an answer of the proxy's own reaches nobody.
            if "route" in route:
                yield from _leaves_of_route([top, second], route, bootstrap)
    if "vhds" in table:
        yield _Leaf([top], "", None, False)


def _routes_within(value: Any) -> Iterator[Json]:
    """Yield the routes that lie in a matcher's tree."""
    if isinstance(value, Mapping):
        if "route" in value and "match" in value:
            yield value
        else:
            for each in value.values():
                yield from _routes_within(each)
    elif isinstance(value, list):
        for each in value:
            yield from _routes_within(each)


def _leaves_of_route(above: Sequence[tuple[str, Json]], route: Json, bootstrap: Json | None) -> Iterator[_Leaf]:
    match = route.get("match", {})
    path = match.get("prefix") or match.get("path") or match.get("path_separated_prefix") or ""
    levels = [*above, (f"route {route.get('name') or path} of {above[-1][0]}", route)]
    rate = route_sampling(route["tracing"], bootstrap) if "tracing" in route else None
    action = route["route"]
    redirects = "internal_redirect_policy" in action or action.get("internal_redirect_action") == _FOLLOWS
    copied = action.get("internal_redirect_policy", {}).get("response_headers_to_copy", ())
    weighted = action.get("weighted_clusters", {}).get("clusters", ())
    for cluster in weighted:
        name = str(cluster.get("name", ""))
        yield _Leaf([*levels, (f"weighted cluster {name} of {levels[-1][0]}", cluster)], name, rate, redirects, copied)
    if not weighted:
        yield _Leaf(levels, str(action.get("cluster", "")), rate, redirects, copied)


def _chains(manager: Json) -> Iterator[Sequence[Json]]:
    """Yield the HTTP filters of a connection manager, and those of requests that upgrade to another protocol."""
    yield manager.get("http_filters", ())
    for upgrade in manager.get("upgrade_configs", ()):
        if upgrade.get("filters"):
            yield upgrade["filters"]


def _early_steps(manager: Json, table: Json) -> Iterator[Step]:
    place = "early_header_mutation_extensions"
    for extension in manager.get("early_header_mutation_extensions", ()):
        config = typed(extension.get("typed_config"))
        if type_of(config) in ("HeaderMutation", ""):
            yield from mutations(config.get("mutations", ()), place)
        else:
            yield Step("", "unjudged", f"{place}: {extension.get('name', '')}")
    for name in table.get("internal_only_headers", ()):
        yield from removal(name, "internal_only_headers of the route configuration")


def _filter_steps(filters: Sequence[Json], leaf: _Leaf, configuration: Configuration) -> Iterator[Step]:
    for each in filters:
        name = str(each.get("name", ""))
        overrides = leaf.filter_configs(name)
        off = plain(each.get("disabled"), False)
        if overrides:
            off = plain(overrides[0][1].get("disabled"), False) is True
        if off:
            continue
        config = _config_of(each, configuration)
        of_route = [(place, _without_wrapper(override)) for place, override in overrides]
        replaced = any(type_of(inner) == "Config" for _, inner in of_route)
        if config is None:
            yield Step("", "unjudged", f"filter {name}, whose configuration comes by ECDS")
        elif not replaced:
            yield from filter_steps(name, config)
        if replaced:
            # That of header_to_metadata: the most specific takes the place of all others.
            of_route = of_route[:1]
        elif config is not None and plain(config.get("most_specific_header_mutations_wins"), False):
            of_route.reverse()
        for place, inner in of_route:
            if not type_of(inner).startswith(_ASKS_FOR_ROUTES):
                yield from filter_steps(f"{name} of {place}", inner)


def _without_wrapper(override: Json) -> Json:
    return typed(override.get("config")) if type_of(override) == "FilterConfig" else override


def _config_of(each: Json, configuration: Configuration) -> Json | None:
    """Return a filter's configuration; None where it comes by ECDS and is not there."""
    discovery = each.get("config_discovery")
    if discovery is None:
        return typed(each.get("typed_config") or each.get("config"))
    found = configuration.filters.get(str(each.get("name", "")), {}).get("typed_config")
    found = found or discovery.get("default_config")
    return typed(found) if found else None


def _upstream_steps(filters: Sequence[Json], leaf: _Leaf, configuration: Configuration) -> Iterator[Step]:
    """Yield what happens after the tracer has written: filters of the cluster, else those of the router."""
    of_cluster = [*_filters_of(configuration.clusters.get(leaf.cluster, {}))]
    routers = [config for each in filters if type_of(config := typed(each.get("typed_config"))) == "Router"]
    of_router = [each for config in routers for each in config.get("upstream_http_filters", ())]
    yield from _filter_steps(of_cluster or of_router, leaf, configuration)
