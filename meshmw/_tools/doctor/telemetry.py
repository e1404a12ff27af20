"""What istiod makes of all Telemetry objects together: for each set of workloads and each direction, one rule.

istiod begins with the mesh configuration and goes on with the Telemetry of the root namespace, that of the workload's
own namespace, and the one that selects the workload. Each rule writes what it says over what was said before, for what
goes out (CLIENT: a sidecar's outbound listeners, and gateways), for what comes in (SERVER), or for both. So it stands
in `Tracing` and `applicableTelemetries` of pilot/pkg/model/telemetry.go, and in `configureTracingFromTelemetry` of
pilot/pkg/networking/core/tracing.go; `tests/real` holds it against its control plane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from meshmw._tools.doctor.installation import DEFAULT_PERCENT, VARIABLE, MeshConfig, Provider, TraceSampling
from meshmw._tools.doctor.manifests import Manifests, Telemetry, TracingRule

_MODES: Final = ("CLIENT", "SERVER")
# What one rule has from another.
_INHERITED: Final = ("provider", "sampling", "by_request_id", "writes_nothing", "reports")


@dataclass(frozen=True, slots=True)
class MergedRule:
    """Holds what istiod does for some workloads.

    Attributes:
        rule: All of it filled in; its place is the object that is nearest to the workloads.
        said_at: Where each field of it was said; a field that nobody says is not there.
        is_meant: Whether a rule of Telemetry is for this direction, and not the mesh configuration alone.
        reason: Why its percentage is what it is, where no Telemetry says it.
    """

    rule: TracingRule
    said_at: Mapping[str, str]
    is_meant: bool
    reason: str = ""

    @property
    def traces(self) -> bool:
        """Whether proxies get a tracer, as far as the rule goes; whether the provider is there is another question."""
        return bool(self.rule.provider and self.rule.reports)


def provider_of(manifests: Manifests, name: str) -> Provider | None:
    """Return an extension provider by its name, as istiod looks it up: without regard to case."""
    mesh = manifests.usable
    known = mesh.providers if mesh is not None else ()
    return next((provider for provider in known if provider.name.casefold() == name.casefold()), None)


def merged_rules(manifests: Manifests) -> list[MergedRule]:
    """Return what istiod makes of all rules: one for each set of workloads, or two where the directions differ."""
    mesh = manifests.usable or MeshConfig(where="")
    root = rules_of_all(manifests)
    scopes = [root] if root or mesh.default_provider else []
    for each in _namespace_wide(manifests):
        if each.namespace != mesh.root_namespace and (own := _rules_of(manifests, each)):
            scopes.append([*root, *own])
    for each in manifests.telemetry:
        if each.selects and (own := _rules_of(manifests, each)):
            scopes.append([*_above(manifests, each, mesh), *own])
    base = percent_of_istiod(manifests)
    found = [merged for rules in scopes for merged in _merged(mesh, rules, base)]
    # What a workload's annotation says, any Telemetry has the word before.
    return found + [each for workload in manifests.workloads for each in _of_workload(manifests, mesh, workload)[0]]


def rules_of_all(manifests: Manifests) -> list[TracingRule]:
    """Return the rules that hold in the whole mesh."""
    root = (manifests.usable or MeshConfig(where="")).root_namespace
    return [
        rule for each in _namespace_wide(manifests) if each.namespace == root for rule in _rules_of(manifests, each)
    ]


def ignored(manifests: Manifests) -> Iterator[tuple[Telemetry, Telemetry]]:
    """Yield each Telemetry that istiod takes nothing of, with the one that it takes in its place."""
    taken = {each.namespace: each for each in _namespace_wide(manifests)}
    for each in manifests.telemetry:
        first = taken.get(each.namespace, each)
        if not each.selects and each.name != first.name:
            yield each, first


def percent_of_istiod(manifests: Manifests) -> tuple[float | None, str]:
    """Return the percentage that proxies start where no Telemetry says it, and why so; None where it is not known."""
    mesh = manifests.usable
    if mesh is not None and mesh.sampling is not None:
        return mesh.sampling, f"as defaultConfig.tracing.sampling of {mesh.where} says"
    told = {each.percent: each for each in reversed(manifests.sampling)}
    if len(told) > 1:
        places = ", ".join(
            f"{each.where} ({'?' if each.percent is None else f'{each.percent:g}'})" for each in told.values()
        )
        return None, f"{VARIABLE} of istiod differs: {places}"
    for percent, each in told.items():
        return percent, each.odd if percent is None else f"as {VARIABLE} says: {each.where}"
    if mesh is not None and mesh.has_istiod:
        return DEFAULT_PERCENT, "istiod's default"
    return DEFAULT_PERCENT, f"istiod's default; whether its {VARIABLE} says otherwise is not in these files"


def _namespace_wide(manifests: Manifests) -> list[Telemetry]:
    """Return the Telemetry objects without a selector that count: of each namespace the oldest, in all its files."""
    found: dict[str, list[Telemetry]] = {}
    for each in manifests.telemetry:
        if not each.selects:
            found.setdefault(each.namespace, []).append(each)
    oldest = {
        # Where Kubernetes has not said when each was made, nobody knows; the first is as good as any.
        namespace: min(several, key=lambda each: each.created) if all(each.created for each in several) else several[0]
        for namespace, several in found.items()
    }
    return [each for several in found.values() for each in several if each.name == oldest[each.namespace].name]


def _rules_of(manifests: Manifests, telemetry: Telemetry) -> list[TracingRule]:
    place = (telemetry.where, telemetry.namespace)
    return [rule for rule in manifests.tracing if (rule.where, rule.namespace) == place]


def _above(manifests: Manifests, telemetry: Telemetry, mesh: MeshConfig) -> Iterator[TracingRule]:
    """Yield the rules that hold where a selecting one says nothing: the mesh's, then the namespace's."""
    yield from rules_of_all(manifests)
    for each in _namespace_wide(manifests):
        if each.namespace == telemetry.namespace != mesh.root_namespace:
            yield from _rules_of(manifests, each)


def overruled(manifests: Manifests) -> Iterator[tuple[TraceSampling, str]]:
    """Yield each workload whose own percentage counts nowhere, and the Telemetry that has the word."""
    mesh = manifests.usable or MeshConfig(where="")
    for workload in manifests.workloads:
        effective, places = _of_workload(manifests, mesh, workload)
        if places and not effective:
            yield workload, places[0]


def _of_workload(manifests: Manifests, mesh: MeshConfig, workload: TraceSampling) -> tuple[list[MergedRule], list[str]]:
    """Return the rules in which a workload's own percentage counts, and where a Telemetry says another."""
    as_telemetry = Telemetry(where="", name="", namespace=workload.namespace)
    rules = [*_above(manifests, as_telemetry, mesh)]
    base = (workload.percent, "as its annotation says")
    if any(rule.selects and rule.namespace == workload.namespace for rule in manifests.tracing):
        base = (None, "its annotation says one, and a Telemetry that selects it may have the word before that")
    merged = [*_merged(mesh, rules, base)]
    effective = [
        replace(each, rule=replace(each.rule, where=workload.where, namespace=workload.namespace, selects=True))
        for each in merged
        if "sampling" not in each.said_at and each.traces
    ]
    return effective, [each.said_at["sampling"] for each in merged if "sampling" in each.said_at]


def _merged(mesh: MeshConfig, rules: Sequence[TracingRule], base: tuple[float | None, str]) -> Iterator[MergedRule]:
    by_mode = {mode: _of_mode(mesh, rules, mode, base) for mode in _MODES}
    client, server = by_mode.values()
    if client == server:
        yield client
        return
    for mode, merged in by_mode.items():
        yield replace(merged, rule=replace(merged.rule, mode=mode))


def _of_mode(mesh: MeshConfig, rules: Sequence[TracingRule], mode: str, base: tuple[float | None, str]) -> MergedRule:
    nearest = rules[-1] if rules else TracingRule(where=mesh.where, namespace=mesh.root_namespace)
    percent, reason = base
    merged = replace(
        nearest, mode="", provider=mesh.default_provider, sampling=percent,
        by_request_id=True, writes_nothing=False, reports=True,
    )  # fmt: skip
    said_at = {"provider": mesh.where} if mesh.default_provider else {}
    meant = [rule for rule in rules if rule.mode in ("", mode)]
    for rule in meant:
        said = {name: value for name in _INHERITED if (value := getattr(rule, name)) not in (None, "")}
        merged = replace(merged, **said)
        said_at |= dict.fromkeys(said, rule.where)
    return MergedRule(merged, said_at, bool(meant), "" if "sampling" in said_at else reason)
