"""The settings: what each is called, its type, its default, what it takes and what it does.

To add one, declare it in `Fields`, in the order in which docs/settings.md shows it. A default that something below the
settings has too is a constant there. What it takes is a `Kind` of `_values`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshmw._notices import DEFAULT_WARN_WINDOW
from meshmw._policy.outbound import (
    DEFAULT_BAGGAGE_TO,
    DEFAULT_HEADER_BUDGET,
    DEFAULT_PASSTHROUGH_HEADERS,
    DEFAULT_PROPAGATE_TO,
    RESERVED_BYTES,
    RESERVED_HEADERS,
)
from meshmw._policy.patterns import DEFAULT_BAGGAGE_KEYS
from meshmw._policy.words import (
    DEFAULT_BATCHING,
    DEFAULT_DUPLICATES,
    DEFAULT_EXPORTER,
    DEFAULT_MESSAGING_PARENT,
    DEFAULT_PREFER,
    DEFAULT_PROPAGATORS,
    DEFAULT_SERVER_SPANS,
    DEFAULT_TRUST,
    Batching,
    Duplicates,
    Exporter,
    Format,
    MessagingParent,
    MetricsExporter,
    Prefer,
    SamplingOwner,
    ServerSpans,
    Trust,
)
from meshmw.settings._values import (
    BATCHING,
    BOOLEAN,
    ENDPOINT,
    HEADER_BUDGET,
    HEADER_NAMES,
    HOSTS,
    KEYS,
    NAME,
    NETWORKS,
    PATHS,
    PROPAGATORS,
    SAMPLING_RULES,
    SOME_KEYS,
    decimal,
    optional,
    setting,
    whole,
    word,
)
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS
from meshmw.wire.traceparent import DEFAULT_TRACEPARENT_POLICY, TraceParentPolicy

# Of baggage. Envoy refuses a request whose headers together pass its budget, so a longer one could never arrive.
MOST_MEMBERS: Final = 1_024
MOST_BYTES: Final = DEFAULT_HEADER_BUDGET[0]


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Declares every setting, in the order in which they are documented."""

    service_name: str | None = setting(
        optional(NAME),
        default=None,
        description="The name of this service in every trace.",
    )
    kubernetes_labels: bool = setting(
        BOOLEAN,
        default=False,
        description="Whether the pod's labels app.kubernetes.io/instance, name and version name the service.",
    )
    propagators: tuple[Format, ...] = setting(
        PROPAGATORS,
        default=DEFAULT_PROPAGATORS,
        description="The header formats that are read and written; W3C trace context decides wherever it is listed.",
    )
    traceparent_policy: TraceParentPolicy = setting(
        word(TraceParentPolicy),
        default=DEFAULT_TRACEPARENT_POLICY,
        description="Whether only version 00 of traceparent is read (strict), or later versions too (w3c).",
    )
    duplicates: Duplicates = setting(
        word(Duplicates),
        default=DEFAULT_DUPLICATES,
        description="What several traceparent lines do: begin a new trace, or keep the trace id that all have.",
    )
    prefer: Prefer = setting(
        word(Prefer),
        default=DEFAULT_PREFER,
        description="Which format decides where a valid traceparent and valid B3 headers disagree.",
    )
    trust: Trust = setting(
        word(Trust),
        default=DEFAULT_TRUST,
        description="Whether a caller's trace and baggage are used, a new trace is linked to it, or both are ignored.",
    )
    trusted_peers: tuple[str, ...] = setting(
        NETWORKS,
        default=(),
        description="The only peers whose traces are continued; for others trust=continue means restart.",
    )
    sampling_owner: SamplingOwner = setting(
        word(SamplingOwner),
        default="parent",
        description="Whether the caller's flag decides what is recorded, or this service, by the trace id.",
    )
    server_spans: ServerSpans = setting(
        word(ServerSpans),
        default=DEFAULT_SERVER_SPANS,
        description="Who makes SERVER spans: meshmw where the host makes none, contrib's middleware, or nobody.",
    )
    exclude: tuple[str, ...] = setting(
        PATHS,
        default=(),
        description="The request paths that get no span: /live means it and all below it, a pattern the whole path.",
    )
    baggage_max_members: int = setting(
        whole(0, MOST_MEMBERS),
        default=MAX_MEMBERS,
        description="The number of baggage members that are kept, in each direction.",
    )
    baggage_max_bytes: int = setting(
        whole(0, MOST_BYTES),
        default=MAX_BYTES,
        description="The bytes of baggage that are kept, in each direction, all header lines together.",
    )
    baggage_keys: tuple[str, ...] = setting(
        KEYS,
        default=DEFAULT_BAGGAGE_KEYS,
        description="The baggage keys that pass, in each direction; where only some are left out, all others pass.",
    )
    baggage_attributes: tuple[str, ...] = setting(
        SOME_KEYS,
        default=(),
        description="The baggage keys whose values become attributes of every span; few values each, no secrets.",
    )
    propagate_to: tuple[str, ...] = setting(
        HOSTS,
        default=DEFAULT_PROPAGATE_TO,
        description="The hosts that outbound calls send trace headers and baggage to.",
    )
    baggage_to: tuple[str, ...] = setting(
        HOSTS,
        default=DEFAULT_BAGGAGE_TO,
        description="The hosts, of those, that are sent baggage; mesh is every mesh-internal name and private address.",
    )
    passthrough_headers: tuple[str, ...] = setting(
        HEADER_NAMES,
        default=DEFAULT_PASSTHROUGH_HEADERS,
        description="The request headers that go out again, unchanged, on outbound calls.",
    )
    header_budget: tuple[int, int] = setting(
        HEADER_BUDGET,
        default=DEFAULT_HEADER_BUDGET,
        description=(
            "The bytes and number of request headers that every proxy accepts; baggage is cut to stay "
            f"{RESERVED_BYTES:,} and {RESERVED_HEADERS} below."
        ),
    )
    messaging_parent: MessagingParent = setting(
        word(MessagingParent),
        default=DEFAULT_MESSAGING_PARENT,
        description="Whether processing one message is a child of what sent it, or a new trace that links to that.",
    )
    exporter: Exporter = setting(
        word(Exporter),
        default=DEFAULT_EXPORTER,
        description="Where spans go: OTLP over gRPC (otlp), OTLP over HTTP (otlp-http), standard output, or nowhere.",
    )
    endpoint: str | None = setting(
        optional(ENDPOINT),
        default=None,
        description="The collector's address; otlp-http adds /v1/traces where it has no path.",
    )
    sampling_ratio: float | None = setting(
        optional(decimal(1, "a number from 0 to 1")),
        default=None,
        description="The share of new traces that is recorded; sampling_owner says who decides for the others.",
    )
    sampling_rules: tuple[str, ...] = setting(
        SAMPLING_RULES,
        default=(),
        description="Shares by request path, the first that fits: where a new trace begins, and 0 in any trace.",
    )
    random_flag: bool = setting(
        BOOLEAN,
        default=True,
        description=(
            "Whether traces that begin here say that their id is random (flags 03, from opentelemetry-sdk 1.42 on), "
            "which older peers refuse."
        ),
    )
    batching: Batching | str = setting(
        BATCHING,
        default=DEFAULT_BATCHING,
        description=(
            "How spans are batched: 512 every 5 seconds of 2,048 that may wait, or (high, from 10,000 a second) 2,048 "
            "every second of 8,192."
        ),
    )
    metrics: MetricsExporter = setting(
        word(MetricsExporter),
        default="none",
        description="Where metrics go: to scrapes of prometheus_client, to a collector over OTLP, or nowhere by us.",
    )
    warn_window: float = setting(
        decimal(86_400, "a number of seconds from 0 to 86400"),
        default=DEFAULT_WARN_WINDOW,
        description="The seconds in which the same warning is not said again.",
    )
    show_log: bool = setting(
        BOOLEAN,
        default=True,
        description="Whether meshmw's log lines go to the server's log or stderr where nobody has set logging up.",
    )
