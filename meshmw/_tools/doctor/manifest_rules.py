"""What is wrong with Istio's objects in files, as findings; `manifests` reads them.

To add a rule, write a function that yields findings and list it at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from meshmw._notices import quoted
from meshmw._tools import Finding
from meshmw._tools.doctor.manifests import Manifests, MeshConfig, Provider, TracingRule
from meshmw.settings import Settings

_TRACE_HEADERS: Final = frozenset({"traceparent", "tracestate", "baggage", "b3", "x-request-id"})
# Istio's own default, PILOT_TRACE_SAMPLING.
_DEFAULT_PERCENT: Final = 1.0
# What one rule has from another.
_INHERITED: Final = ("provider", "sampling", "by_request_id", "writes_nothing", "reports")


def judge_manifests(manifests: Manifests, settings: Settings | None = None) -> Iterator[Finding]:
    """Yield what is wrong with a set of files.

    Args:
        manifests: What they say.
        settings: Those of the application, for its formats; None where they are not known.
    """
    for check in _CHECKS:
        yield from check(manifests)
    yield from _check_formats(manifests, settings)


def provider_of(manifests: Manifests, name: str) -> Provider | None:
    """Return an extension provider by its name, as istiod looks it up: without regard to case."""
    mesh = manifests.usable
    known = mesh.providers if mesh is not None else ()
    return next((provider for provider in known if provider.name.casefold() == name.casefold()), None)


def tracing_rules(manifests: Manifests) -> Iterator[TracingRule]:
    """Yield what makes proxies trace: Telemetry's rules, and the mesh configuration where none is for the whole mesh.

    A rule whose spans are not reported makes nobody trace.
    """
    mesh = manifests.usable
    if mesh is not None and mesh.default_provider and not any(_of_all(manifests, mesh)):
        yield TracingRule(where=mesh.where, namespace=mesh.root_namespace, provider=mesh.default_provider)
    yield from (rule for rule in manifests.tracing if effective(manifests, rule).reports)


def effective(manifests: Manifests, rule: TracingRule) -> TracingRule:
    """Return a rule with what it leaves to the rules above it, and to the mesh configuration, filled in."""
    mesh = manifests.usable or MeshConfig(where="")
    levels = [rule, *_above(manifests, rule, mesh), TracingRule(
        where=mesh.where, namespace=mesh.root_namespace, provider=mesh.default_provider,
        sampling=_DEFAULT_PERCENT if mesh.sampling is None else mesh.sampling,
        by_request_id=True, writes_nothing=False, reports=True,
    )]  # fmt: skip

    def nearest(name: str) -> Any:
        return next((said for each in levels if (said := getattr(each, name)) not in (None, "")), "")

    return replace(rule, **{name: nearest(name) for name in _INHERITED})


def _above(manifests: Manifests, rule: TracingRule, mesh: MeshConfig) -> Iterator[TracingRule]:
    """Yield the rules that hold where this one says nothing: the namespace's for one workload's, then the mesh's."""
    if rule.selects:
        yield from (each for each in manifests.tracing if each.namespace == rule.namespace and not each.selects)
    yield from _of_all(manifests, mesh)


def _of_all(manifests: Manifests, mesh: MeshConfig) -> Iterator[TracingRule]:
    yield from (each for each in manifests.tracing if each.namespace == mesh.root_namespace and not each.selects)


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


def _check_providers(manifests: Manifests) -> Iterator[Finding]:
    named = [(where, name, True) for where, name in _named_tracers(manifests).items()]
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


def _named_tracers(manifests: Manifests) -> dict[str, str]:
    """Return the places that name the provider of somebody's spans, and its name."""
    named = {rule.where: rule.provider for rule in tracing_rules(manifests) if rule.provider}
    mesh = manifests.usable
    if mesh is not None and mesh.default_provider and not any(each.provider for each in _of_all(manifests, mesh)):
        named[mesh.where] = mesh.default_provider
    return named


def _check_rules(manifests: Manifests) -> Iterator[Finding]:
    for rule in tracing_rules(manifests):
        found = effective(manifests, rule)
        if not found.provider and manifests.usable is not None:
            yield Finding(
                "error", "telemetry.no-provider", rule.where,
                "it has a tracing rule, and no provider is named anywhere",
                "istiod switches tracing off for these proxies, the tracer of their bootstrap included, and reports "
                "nothing",
                "name a provider in it, in the mesh's own Telemetry, or in meshConfig.defaultProviders.tracing",
            )  # fmt: skip
        if rule.writes_nothing:
            yield Finding(
                "warning", "proxy.injects-nothing", rule.where, "disableContextPropagation is set",
                "proxies export spans and send no headers of their own: what lies behind one hangs beside its spans, "
                "not below",
                "take it away",
            )  # fmt: skip
        yield from _check_sampling(manifests, found)


def _check_sampling(manifests: Manifests, rule: TracingRule) -> Iterator[Finding]:
    provider = provider_of(manifests, rule.provider)
    percent = rule.sampling
    if provider is None or percent is None or not rule.by_request_id:
        return
    if provider.kind == "opentelemetry" and percent < 100 and not provider.samples:
        yield Finding(
            "warning", "sampling.proxy-clears-the-flag", rule.where,
            f"proxies start {percent:g} % of traces sampled, and those with Envoy 1.39 or later clear the sampled flag "
            f"of the other {100 - percent:g} % of requests, whatever their caller decided",
            "a trace that the caller records ends here: everything behind it is unsampled",
            "randomSamplingPercentage: 100, or useRequestIdForTraceSampling: false",
        )  # fmt: skip


def _check_formats(manifests: Manifests, settings: Settings | None) -> Iterator[Finding]:
    if settings is not None and {"b3", "b3multi"} & set(settings.propagators):
        return
    for where, name in _named_tracers(manifests).items():
        provider = provider_of(manifests, name)
        if provider is not None and provider.formats == ("b3",):
            yield _b3_alone(where, f"its provider {quoted(provider.name)} reads and writes B3 alone")
    mesh = manifests.usable
    if mesh is None or mesh.default_provider or any(_of_all(manifests, mesh)):
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


def _written_again(manifests: Manifests) -> set[str]:
    """Return the headers that all tracers write again, whatever a route did to them."""
    kinds = [provider_of(manifests, name) for name in _named_tracers(manifests).values()]
    # Where proxies report nothing they have no tracer that would write.
    if not kinds or any(rule.writes_nothing or rule.reports is False for rule in manifests.tracing):
        return set()
    formats = [each.formats if each is not None else () for each in kinds]
    found = {"traceparent"} if all("w3c" in each for each in formats) else set()
    # Zipkin's tracer leaves tracestate to itself.
    return found | ({"tracestate"} if all(each == ("w3c",) for each in formats) else set())


def _check_writing(manifests: Manifests) -> Iterator[Finding]:
    again = _written_again(manifests)
    for where, how, names in manifests.written:
        verb, done = ("sets", "headers.overwritten") if how == "set" else ("adds", "headers.doubled")
        if "x-request-id" in names:
            yield Finding(
                "warning", "request-id.changed", where, f"it {verb} x-request-id",
                "each hop behind it decides anew what is sampled, and logs cannot be joined", "leave the header alone",
            )  # fmt: skip
        # Several lines of these are one list.
        lists = {"tracestate", "baggage"} if how == "add" else set()
        for name in sorted((_TRACE_HEADERS - {"x-request-id"} - lists) & set(names)):
            if name in again:
                yield Finding(
                    "note", "headers.removed-in-vain", where, f"it {verb} {name}",
                    "the tracer of the proxy writes it again afterwards: the trace goes on, the change does nothing",
                    f"take the name out of {how}",
                )  # fmt: skip
            else:
                yield Finding(
                    "error" if name in ("traceparent", "b3") else "warning", done, where, f"it {verb} {name}",
                    "the caller's value ends here, and all requests get one"
                    if how == "set"
                    else "two lines are malformed: applications take the first, the last, or none",
                    f"take the name out of {how}",
                )  # fmt: skip


def _check_patches(manifests: Manifests) -> Iterator[Finding]:
    for where, names in manifests.patches:
        named = f", and names {', '.join(names)}" if names else ""
        yield Finding(
            "warning" if names else "note", "unjudged.filter", where, f"it patches what istiod gives to proxies{named}",
            "a patch can change anything, trace headers and tracers included",
            "look at a proxy that has it: `istioctl proxy-config all POD -o json > dump.json`, then `meshmw doctor "
            "--config-dump dump.json`",
        )  # fmt: skip


def _check_removal(manifests: Manifests) -> Iterator[Finding]:
    again = _written_again(manifests)
    for where, names in manifests.removed:
        removed = _TRACE_HEADERS & set(names)
        if "x-request-id" in removed:
            yield Finding(
                "warning", "request-id.removed", where, "it removes x-request-id",
                "each hop behind it decides anew what is sampled, and logs cannot be joined", "leave the header alone",
            )  # fmt: skip
        trace = sorted(removed - {"x-request-id"})
        if trace and set(trace) <= again:
            yield Finding(
                "note", "headers.removed-in-vain", where, f"it removes {', '.join(trace)}",
                "the tracer of the proxy writes them again afterwards: the trace goes on, the removal does nothing",
                "take the names out of `remove`",
            )  # fmt: skip
        elif trace:
            yield Finding(
                "error", "headers.removed", where, f"it removes {', '.join(trace)}",
                "what lies behind it never sees the caller's headers", "take the names out of `remove`",
            )  # fmt: skip


def _check_egress(manifests: Manifests) -> Iterator[Finding]:
    for where, namespaces in manifests.egress:
        for provider in {each.name: each for each in _tracing_providers(manifests)}.values():
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


def _tracing_providers(manifests: Manifests) -> Iterator[Provider]:
    for rule in tracing_rules(manifests):
        provider = provider_of(manifests, effective(manifests, rule).provider)
        if provider is not None and provider.traces:
            yield provider


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
    _check_providers,
    _check_rules,
    _check_zipkin,
    _check_removal,
    _check_writing,
    _check_patches,
    _check_egress,
    _check_log,
)
