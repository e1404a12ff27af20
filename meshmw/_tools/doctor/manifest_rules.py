"""What is wrong with Istio's objects in files, as findings; `manifests` reads them.

To add a rule, write a function that yields findings and list it at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from meshmw._notices import quoted
from meshmw._tools import Finding, Severity
from meshmw._tools.doctor.filters import FOLLOWED, FOREIGN_HEADERS, is_formatted, is_of_itself
from meshmw._tools.doctor.headers import LISTS
from meshmw._tools.doctor.installation import MeshConfig, Provider
from meshmw._tools.doctor.manifests import Manifests, RouteChange, TracingRule
from meshmw._tools.doctor.telemetry import (
    MergedRule,
    ignored,
    merged_rules,
    overruled,
    provider_of,
    rules_of_all,
)
from meshmw._tools.doctor.tracers import Tracing
from meshmw.settings import Settings
from meshmw.wire.headers import B3_HEADERS

# Where Istio's own Telemetry is, if nothing says another.
_ROOT: Final = "istio-system"
# No tracer writes these two.
_OF_TRACERS: Final = frozenset(FOLLOWED) - {"baggage", "x-request-id"}
_MODES: Final = {"CLIENT", "SERVER"}
_IN_VAIN: Final = "the tracer of the proxy writes it again afterwards: the trace goes on, the change does nothing"


def judge_manifests(manifests: Manifests, settings: Settings | None = None) -> Iterator[Finding]:
    """Yield what is wrong with a set of files.

    Args:
        manifests: What they say.
        settings: Those of the application, for its formats; None where they are not known.
    """
    for check in _CHECKS:
        yield from check(manifests)
    yield from _check_formats(manifests, settings)


def _check_files(manifests: Manifests) -> Iterator[Finding]:
    for where, fault in manifests.unreadable:
        yield Finding(
            "error", "manifest.no-yaml", where, f"it is not YAML: {fault}",
            "nothing in it is applied. istiod takes no mesh configuration that it cannot read: it goes on with its "
            "defaults, without any of your providers, and says so in one line of its log alone",
            "mend the file; render a template before you give it, as `helm template` does",
        )  # fmt: skip
    for mesh in manifests.meshes:
        if mesh.fault:
            yield Finding(
                "error", "mesh-config.refused", mesh.where, mesh.fault,
                "istiod takes nothing of a mesh configuration with such a value: it goes on with its defaults, without "
                "any of your providers, and says so in one line of its log alone; istioctl analyze says nothing",
                "write the value as Istio's reference of MeshConfig has it",
            )  # fmt: skip
        for name in mesh.dropped:
            yield Finding(
                "warning", "mesh-config.dropped", mesh.where, f"it has {name}, with an underscore",
                "istiod takes nothing of it and says nothing, though it takes other names with underscores",
                "write it as defaultConfig and defaultProviders",
            )  # fmt: skip


def _check_others(manifests: Manifests) -> Iterator[Finding]:
    for each in manifests.others:
        if each.is_envoys:
            yield Finding(
                "warning", "unjudged.manifest", each.where, f"it is {each.what}, and is not judged as a manifest",
                "it says which headers a proxy reads, writes and removes", "give the file with --config-dump",
            )  # fmt: skip
            continue
        named = f", and names {', '.join(each.headers)}" if each.headers else ""
        yield Finding(
            "warning" if each.headers else "note", "unjudged.manifest", each.where,
            f"{each.what} is not judged here{named}",
            "it can change how proxies trace, and what they do with trace headers",
            "look at a proxy that has it: `meshmw doctor --envoy-admin URL`, or `--config-dump FILE`",
        )  # fmt: skip
    if manifests.unknown and not (manifests.known or manifests.others):
        yield Finding(
            "warning", "unjudged.manifest", "manifests", f"none of {manifests.unknown} objects is one of Istio's",
            "what your proxies do cannot be judged by these files",
            "give Istio's objects; of other meshes ask a proxy: `meshmw doctor --envoy-admin URL`",
        )  # fmt: skip


def _check_providers(manifests: Manifests) -> Iterator[Finding]:
    named = [(where, name, True) for where, name in _named_tracers(manifests)]
    named += [(where, name, False) for where, name in manifests.logging]
    if named and not manifests.meshes:
        yield Finding(
            "note", "mesh-config.none", named[0][0],
            f"it names {quoted(named[0][1])}, and no mesh configuration is among the files",
            "whether extensionProviders has that name cannot be seen here",
            "give the file with meshConfig too: an IstioOperator, Helm's values, or the ConfigMap istio",
        )  # fmt: skip
    mesh = manifests.usable
    if mesh is None:
        return
    for where, name, traces in named:
        provider = provider_of(manifests, name)
        if provider is None:
            yield _missing_provider(mesh, where, name, traces)
        elif traces and not provider.traces:
            yield Finding(
                "error", "telemetry.provider-cannot-trace", where,
                f"{quoted(name)} is no tracing provider: its kind is {provider.kind or 'unknown to Istio'}",
                "istiod configures no tracing at all for these proxies, and says so in its log alone",
                "name a provider of the kind opentelemetry, or zipkin; keys are written as in Istio's reference",
            )  # fmt: skip


def _missing_provider(mesh: MeshConfig, where: str, name: str, traces: bool) -> Finding:
    there = ", ".join(quoted(provider.name) for provider in mesh.providers)
    return Finding(
        "error" if traces else "warning", "telemetry.provider-missing", where,
        f"it names the provider {quoted(name)}, which {mesh.where} does not have: there are {there}",
        "istiod switches tracing off for these proxies and reports nothing, and istioctl analyze reports nothing either"
        if traces
        else "no access log is written by it, and nothing reports that",
        "use one name in extensionProviders and in the Telemetry object",
    )  # fmt: skip


def _named_tracers(manifests: Manifests) -> list[tuple[str, str]]:
    """Return the places that name the provider of somebody's spans, and its name."""
    traced = [each for each in merged_rules(manifests) if each.traces]
    return list(dict.fromkeys((each.said_at["provider"], each.rule.provider) for each in traced))


def _check_telemetry(manifests: Manifests) -> Iterator[Finding]:
    for each, taken in ignored(manifests):
        yield Finding(
            "warning", "telemetry.ignored", each.where,
            f"the namespace {quoted(each.namespace)} has another Telemetry without a selector: {taken.where}",
            "istiod takes the one alone that was made first, and nothing of the others"
            + ("" if each.created and taken.created else "; which one that is cannot be seen here"),
            "write both into one object",
        )  # fmt: skip


def _check_rules(manifests: Manifests) -> Iterator[Finding]:
    found = [finding for merged in merged_rules(manifests) for finding in _check_rule(manifests, merged)]
    yield from dict.fromkeys(found)


def _check_rule(manifests: Manifests, merged: MergedRule) -> Iterator[Finding]:
    rule = merged.rule
    if not rule.reports:
        return
    if not rule.provider and merged.is_meant and manifests.usable is not None:
        what = {"CLIENT": " for what goes out", "SERVER": " for what comes in"}.get(rule.mode, "")
        yield Finding(
            "error", "telemetry.no-provider", rule.where,
            f"it has a tracing rule{what}, and no provider is named anywhere{what}",
            f"istiod switches tracing off for these proxies{what}, the tracer of their bootstrap included, and reports "
            "nothing",
            "name a provider in it, in the mesh's own Telemetry, or in meshConfig.defaultProviders.tracing",
        )  # fmt: skip
    if rule.writes_nothing:
        yield Finding(
            "warning", "proxy.injects-nothing", merged.said_at["writes_nothing"], "disableContextPropagation is set",
            "proxies export spans and send no headers of their own: what lies behind one hangs beside its spans, "
            "not below",
            "take it away",
        )  # fmt: skip
    yield from _check_sampling(manifests, merged)


def _check_sampling(manifests: Manifests, merged: MergedRule) -> Iterator[Finding]:
    rule, percent = merged.rule, merged.rule.sampling
    provider = provider_of(manifests, rule.provider)
    if provider is None or provider.kind != "opentelemetry" or provider.samples or not rule.by_request_id:
        return
    where, reason = merged.said_at.get("sampling", rule.where), merged.reason
    if percent is None:
        yield Finding(
            "warning", "unjudged.sampling", where,
            f"which percentage of traces proxies start sampled is not known: {reason}",
            "below 100 % those with Envoy 1.39 or later clear the sampled flag of the other requests, whatever their "
            "caller decided",
            "randomSamplingPercentage: 100 in a Telemetry object, which has the last word",
        )  # fmt: skip
    elif percent < 100:
        others = f"the other {100 - percent:g} % of requests" if percent > 0 else "every request"
        yield Finding(
            "warning", "sampling.proxy-clears-the-flag", where,
            f"proxies start {percent:g} % of traces sampled{f' ({reason})' if reason else ''}, and those with Envoy "
            f"1.39 or later clear the sampled flag of {others}, whatever their caller decided",
            "a trace that the caller records ends here: everything behind it is unsampled",
            "randomSamplingPercentage: 100, or useRequestIdForTraceSampling: false",
        )  # fmt: skip


def _check_percentages(manifests: Manifests) -> Iterator[Finding]:
    odd = [(f"{mesh.where}.defaultConfig.tracing.sampling", mesh.odd_sampling) for mesh in manifests.meshes]
    told = [*manifests.sampling, *manifests.workloads]
    odd += [(each.where, each.odd) for each in told if each.percent is not None]
    odd += [(each.where, f"a Telemetry has the word before it: {place}") for each, place in overruled(manifests)]
    for where, why in odd:
        if why:
            yield Finding(
                "note", "sampling.not-taken", where, "its percentage is not what proxies start sampled", why,
                "randomSamplingPercentage in a Telemetry object: there 0 is 0",
            )  # fmt: skip


def _check_formats(manifests: Manifests, settings: Settings | None) -> Iterator[Finding]:
    if settings is not None and {"b3", "b3multi"} & set(settings.propagators):
        return
    for where, name in _named_tracers(manifests):
        provider = provider_of(manifests, name)
        if provider is not None and provider.formats == ("b3",):
            yield _b3_alone(where, f"its provider {quoted(provider.name)} reads and writes B3 alone")
    mesh = manifests.usable
    if mesh is None or mesh.default_provider or rules_of_all(manifests):
        return
    if mesh.traces and mesh.bootstrap_tracer == "zipkin":
        yield _b3_alone(mesh.where, "where no Telemetry names a provider, the bootstrap's tracer traces: Zipkin's")


def _b3_alone(where: str, what: str) -> Finding:
    return Finding(
        "error", "formats.differ", where, what,
        "an application that speaks traceparent and such a proxy do not read what the other writes: three traces of "
        "one request",
        "a provider of the kind opentelemetry, or traceContextOption: USE_B3_WITH_W3C_PROPAGATION for proxies from "
        "1.28 on, or for the application MESHMW_PROPAGATORS=tracecontext,baggage,b3multi",
    )  # fmt: skip


def _check_zipkin(manifests: Manifests) -> Iterator[Finding]:
    for mesh in manifests.meshes:
        for provider in mesh.providers:
            if provider.short_ids:
                yield Finding(
                    "warning", "zipkin.short-ids", mesh.where,
                    f"the provider {quoted(provider.name)} makes trace ids of 64 bits",
                    "in traceparent they are filled with zeros, which samplers by trace id take for another number",
                    "take enable64bitTraceId away",
                )  # fmt: skip


_Tracers = Sequence[tuple[TracingRule, frozenset[str]]]


class _Written(NamedTuple):
    """Holds which headers tracers write again, whatever a route did to them.

    Attributes:
        everywhere: Those that the tracer of each proxy writes.
        perhaps: Those that proxies write which have a tracer; a route holds for others too.
        somewhere: Those that any tracer at all writes.
    """

    everywhere: frozenset[str] = frozenset()
    perhaps: frozenset[str] = frozenset()
    somewhere: frozenset[str] = frozenset()


def _written_again(manifests: Manifests, tracers: _Tracers, namespace: str) -> _Written:
    """Return what tracers write again, where a route of this namespace holds."""
    mesh, each = manifests.usable, [headers for _, headers in tracers]
    somewhere = frozenset[str]().union(*each)
    # Where proxies report nothing they have no tracer that would write.
    if not each or any(merged.rule.writes_nothing or not merged.rule.reports for merged in merged_rules(manifests)):
        return _Written(somewhere=somewhere)
    covered: dict[str, set[str]] = {}
    for rule, _ in tracers:
        if not rule.selects:
            covered.setdefault(rule.namespace, set()).update({rule.mode} if rule.mode else _MODES)
    if mesh is None:
        # Nobody knows the provider.
        here = covered.get(_ROOT, set()) | covered.get(namespace, set())
        return _Written(perhaps=_OF_TRACERS if "CLIENT" in here else frozenset())
    by_all = frozenset(FOLLOWED).intersection(*each)
    if covered.get(mesh.root_namespace) == _MODES:
        return _Written(by_all, somewhere=somewhere)
    # A route holds where a request goes out, but for waypoints, where it comes in.
    here = covered.get(mesh.root_namespace, set()) | covered.get(namespace, set())
    return _Written(perhaps=by_all if "CLIENT" in here else frozenset(), somewhere=somewhere)


def _written_by(provider: Provider | None) -> frozenset[str]:
    return frozenset() if provider is None else Tracing(tracer=provider.kind, formats=provider.formats).writes


def _check_routes(manifests: Manifests) -> Iterator[Finding]:
    tracers = [
        (each.rule, _written_by(provider_of(manifests, each.rule.provider)))
        for each in merged_rules(manifests)
        if each.traces
    ]
    removed: dict[tuple[str, Severity, str], list[str]] = {}
    for change in manifests.changed:
        again = _written_again(manifests, tracers, change.namespace)
        if change.header not in FOLLOWED or (change.how == "set" and is_of_itself(change.value, change.header)):
            continue
        if change.header == "x-request-id" and not _is_filled_in(change):
            yield _of_request_id(change)
        elif change.how != "remove":
            yield from _of_writing(change, again)
        elif change.header in again.everywhere:
            removed.setdefault((change.where, "note", _IN_VAIN), []).append(change.header)
        else:
            why = "what lies behind it never sees the caller's headers" + _unless(change, again)
            removed.setdefault((change.where, _weight(change, again), why), []).append(change.header)
    for (where, severity, why), names in removed.items():
        code = "headers.removed-in-vain" if why == _IN_VAIN else "headers.removed"
        what = f"it removes {', '.join(sorted(set(names)))}"
        yield Finding(severity, code, where, what, why, "take the names out of `remove`")


def _is_filled_in(change: RouteChange) -> bool:
    return is_formatted(change.value) and not is_of_itself(change.value, change.header)


def _of_request_id(change: RouteChange) -> Finding:
    code = "request-id.removed" if change.how == "remove" else "request-id.changed"
    return Finding(
        "warning", code, change.where, f"it {change.how}s x-request-id",
        "each hop behind it decides anew what is sampled, and logs cannot be joined", "leave the header alone",
    )  # fmt: skip


def _of_writing(change: RouteChange, again: _Written) -> Iterator[Finding]:
    what, fix = f"it {change.how}s {change.header}", f"take the name out of {change.how}"
    # Zipkin's tracer writes B3 in the form that came, and leaves what it finds in the other.
    if change.header in again.everywhere - B3_HEADERS:
        yield Finding("note", "headers.removed-in-vain", change.where, what, _IN_VAIN, fix)
    elif _is_filled_in(change):
        yield Finding(
            "warning", "unjudged.filter", change.where, f"{what} to {quoted(change.value)}",
            "what Envoy makes of that cannot be judged here" + _unless(change, again), fix,
        )  # fmt: skip
    elif change.how == "set":
        yield Finding(
            _weight(change, again), "headers.overwritten", change.where, what,
            "the caller's value ends here, and all requests get one" + _unless(change, again), fix,
        )  # fmt: skip
    # Several lines of these are one list.
    elif change.header not in LISTS:
        yield Finding(
            _weight(change, again), "headers.doubled", change.where, what,
            "two lines are malformed: applications take the first, the last, or none" + _unless(change, again), fix,
        )  # fmt: skip


def _weight(change: RouteChange, again: _Written) -> Severity:
    if change.header in again.everywhere | again.perhaps:
        return "warning"
    if change.header in FOREIGN_HEADERS - again.somewhere:
        # To remove what neither a tracer nor a W3C application uses is to tidy up.
        return "note"
    if change.header in B3_HEADERS:
        return "note" if again.somewhere and "b3" not in again.somewhere else "error"
    return "error" if change.how == "remove" or change.header == "traceparent" else "warning"


def _unless(change: RouteChange, again: _Written) -> str:
    if change.header not in again.everywhere | again.perhaps:
        return ""
    return ", unless the tracer of the proxy writes it again: not each proxy that the route is for is sure to have one"


def _check_patches(manifests: Manifests) -> Iterator[Finding]:
    for where, names in manifests.patches:
        named = f", and names {', '.join(names)}" if names else ""
        yield Finding(
            "warning" if names else "note", "unjudged.filter", where, f"it patches what istiod gives to proxies{named}",
            "a patch can change anything, trace headers and tracers included",
            "look at a proxy that has it: `istioctl proxy-config all POD -o json > dump.json`, then `meshmw doctor "
            "--config-dump dump.json`",
        )  # fmt: skip


def _check_egress(manifests: Manifests) -> Iterator[Finding]:
    for where, own, namespaces in manifests.egress:
        for provider in _providers_within(manifests, own):
            namespace = _namespace_of(provider.collector)
            if namespace and not {namespace, "*"} & set(namespaces):
                yield Finding(
                    "error", "egress.collector-missing", where,
                    f"its egress hosts leave out {quoted(namespace)}, the namespace of the collector "
                    f"{quoted(provider.collector)}",
                    "the proxy is told to send spans to a cluster that it does not get, and "
                    + ("refuses the whole listener" if provider.kind == "zipkin" else "loses them in silence"),
                    f'add "{namespace}/*" to egress.hosts',
                )  # fmt: skip


def _providers_within(manifests: Manifests, namespace: str) -> list[Provider]:
    """Return the tracing providers of proxies in a namespace; in the root namespace a Sidecar is for all proxies."""
    root = manifests.usable.root_namespace if manifests.usable is not None else _ROOT
    rules = merged_rules(manifests)
    if namespace != root:
        own = [each for each in rules if each.rule.namespace == namespace]
        has_its_own = any(not each.rule.selects for each in own)
        rules = own if has_its_own else own + [each for each in rules if each.rule.namespace == root]
    found = {each.rule.provider: provider_of(manifests, each.rule.provider) for each in rules if each.traces}
    return [provider for provider in found.values() if provider is not None and provider.traces]


def _namespace_of(service: str) -> str:
    """Return the namespace of a service as providers name it: `namespace/host`, or a host `name.namespace.svc...`."""
    namespace, slash, _ = service.partition("/")
    labels = service.split(".")
    if slash:
        return namespace
    return labels[1] if len(labels) > 2 and labels[2] == "svc" else ""


def _check_log(manifests: Manifests) -> Iterator[Finding]:
    for mesh in manifests.meshes:
        if mesh.logs_traceparent is False and not manifests.logging:
            yield Finding(
                "note", "access-log.not-logged", mesh.where, "its access log does not print traceparent",
                "where a trace ends cannot be seen afterwards", "`meshmw mesh-config istio` prints a format that does",
            )  # fmt: skip


_CHECKS: Final[tuple[Callable[[Manifests], Iterator[Finding]], ...]] = (
    _check_files,
    _check_others,
    _check_providers,
    _check_telemetry,
    _check_rules,
    _check_percentages,
    _check_zipkin,
    _check_routes,
    _check_patches,
    _check_egress,
    _check_log,
)
