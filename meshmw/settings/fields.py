"""The settings themselves: each with its default, what it takes and what it does."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from meshmw.settings.values import (
    BaggageBytes,
    BaggageMembers,
    BatchProfile,
    BudgetBytes,
    BudgetCount,
    Cidrs,
    Duplicates,
    Endpoint,
    Exporter,
    Formats,
    HeaderNames,
    Hosts,
    KeyPatterns,
    MessagingParent,
    Metrics,
    Paths,
    Policy,
    Prefer,
    QueueSize,
    Ratio,
    SamplingOwner,
    SamplingRules,
    Seconds,
    ServerSpans,
    Text,
    Trust,
)


class Fields(BaseSettings):
    """Declares every setting, in the order in which they are documented."""

    model_config = SettingsConfigDict(env_prefix="MESHMW_", frozen=True, extra="forbid")

    service_name: Text | None = Field(
        default=None,
        description="The name of this service in every trace.",
        json_schema_extra={"takes": "1 to 255 printable characters"},
    )
    service_version: Text | None = Field(
        default=None,
        description="The version of this service in every trace.",
        json_schema_extra={"takes": "1 to 255 printable characters"},
    )
    kubernetes_labels: bool = Field(
        default=False,
        description="Whether the pod's labels app.kubernetes.io/instance, name and version name the service.",
        json_schema_extra={"takes": "true or false"},
    )
    propagators: Formats = Field(
        default=("tracecontext", "baggage"),
        description="The header formats that are read and written; W3C trace context decides wherever it is listed.",
        json_schema_extra={"takes": "a list of tracecontext, baggage, b3, b3multi; or none"},
    )
    traceparent_policy: Policy = Field(
        default="strict",
        description="Whether only version 00 of traceparent is read (strict), or later versions too (w3c).",
        json_schema_extra={"takes": "strict or w3c"},
    )
    duplicates: Duplicates = Field(
        default="restart",
        description="What several traceparent lines do: begin a new trace, or keep the trace id that all have.",
        json_schema_extra={"takes": "restart or same-trace"},
    )
    prefer: Prefer = Field(
        default="w3c",
        description="Which format decides where a valid traceparent and valid B3 headers disagree.",
        json_schema_extra={"takes": "w3c, b3 or auto"},
    )
    trust: Trust = Field(
        default="continue",
        description="Whether a caller's trace and baggage are used, a new trace is linked to it, or both are ignored.",
        json_schema_extra={"takes": "continue, restart or ignore"},
    )
    trusted_peers: Cidrs = Field(
        default=(),
        description="The only peers whose traces are continued; for others trust=continue means restart.",
        json_schema_extra={"takes": "a list of addresses and CIDRs"},
    )
    sampling_owner: SamplingOwner = Field(
        default="parent",
        description="Whether the caller's flag decides what is recorded, or this service, by the trace id.",
        json_schema_extra={"takes": "parent or service"},
    )
    server_spans: ServerSpans = Field(
        default="auto",
        description="Who makes SERVER spans: meshmw where the host makes none, contrib's middleware, or nobody.",
        json_schema_extra={"takes": "auto, contrib or off"},
    )
    exclude: Paths = Field(
        default=(),
        description="The request paths that get no span: /live means it and all below it, a pattern the whole path.",
        json_schema_extra={"takes": "a list of paths that begin with /, or of patterns with * and ?"},
    )
    baggage_max_members: BaggageMembers = Field(
        default=64,
        description="The number of baggage members that are kept, in each direction.",
        json_schema_extra={"takes": "a number from 0 to 1024"},
    )
    baggage_max_bytes: BaggageBytes = Field(
        default=8192,
        description="The bytes of baggage that are kept, in each direction, all header lines together.",
        json_schema_extra={"takes": "a number from 0 to 61440"},
    )
    baggage_allow: KeyPatterns = Field(
        default=(),
        description="The baggage keys that pass, in each direction; none given let all pass.",
        json_schema_extra={"takes": "a list of keys, or of patterns with * and ?"},
    )
    baggage_deny: KeyPatterns = Field(
        default=(),
        description="The baggage keys that do not pass, in each direction, whatever is allowed.",
        json_schema_extra={"takes": "a list of keys, or of patterns with * and ?"},
    )
    baggage_attributes: KeyPatterns = Field(
        default=(),
        description="The baggage keys whose values become attributes of every span; few values each, no secrets.",
        json_schema_extra={"takes": "a list of keys, or of patterns with * and ?"},
    )
    propagate_to: Hosts = Field(
        default=("*",),
        description="The hosts that outbound calls send trace headers and baggage to.",
        json_schema_extra={
            "takes": "a list of mesh, names, .suffixes, patterns with * or ?, addresses and CIDRs, * for all; or none"
        },
    )
    baggage_to: Hosts = Field(
        default=("mesh",),
        description="The hosts, of those, that are sent baggage; mesh is every mesh-internal name and private address.",
        json_schema_extra={
            "takes": "a list of mesh, names, .suffixes, patterns with * or ?, addresses and CIDRs, * for all; or none"
        },
    )
    passthrough_headers: HeaderNames = Field(
        default=("x-request-id",),
        description="The request headers that go out again, unchanged, on outbound calls.",
        json_schema_extra={"takes": "a list of up to 32 header names, no trace header and none of HTTP's own; or none"},
    )
    header_budget_bytes: BudgetBytes = Field(
        default=61_440,
        description="The bytes of request headers that every proxy accepts; baggage is cut to stay 2,048 below.",
        json_schema_extra={"takes": "a number from 4096 to 8388608"},
    )
    header_budget_count: BudgetCount = Field(
        default=100,
        description="The request headers that every proxy accepts; baggage is cut to stay 10 below.",
        json_schema_extra={"takes": "a number from 20 to 10000"},
    )
    messaging_parent: MessagingParent = Field(
        default="parent",
        description="Whether processing one message is a child of what sent it, or a new trace that links to that.",
        json_schema_extra={"takes": "parent or link"},
    )
    exporter: Exporter = Field(
        default="otlp",
        description="Where spans go: OTLP over gRPC (otlp), OTLP over HTTP (otlp-http), standard output, or nowhere.",
        json_schema_extra={"takes": "otlp, otlp-http, console or none"},
    )
    endpoint: Endpoint | None = Field(
        default=None,
        description="The collector's address; otlp-http adds /v1/traces where it has no path.",
        json_schema_extra={"takes": "host:port or an http:// or https:// URL without credentials"},
    )
    sampling_ratio: Ratio | None = Field(
        default=None,
        description="The share of new traces that is recorded; sampling_owner says who decides for the others.",
        json_schema_extra={"takes": "a number from 0 to 1"},
    )
    sampling_rules: SamplingRules = Field(
        default=(),
        description="Shares by request path, the first that fits: where a new trace begins, and 0 in any trace.",
        json_schema_extra={"takes": "a list of paths or patterns, each with a share, such as /health=0,/api/*=0.5"},
    )
    random_flag: bool = Field(
        default=True,
        description="Whether traces that begin here say that their id is random (flags 03), which older peers refuse.",
        json_schema_extra={"takes": "true or false"},
    )
    batch_profile: BatchProfile = Field(
        default="moderate",
        description="How spans are batched: 512 every 5 seconds, or (high, from 10,000 a second) 2,048 every second.",
        json_schema_extra={"takes": "moderate or high"},
    )
    queue_size: QueueSize | None = Field(
        default=None,
        description="The spans that may wait: the profile's 2,048 or 8,192, a number, or by the container's memory.",
        json_schema_extra={"takes": "a number from 1 to 1048576, or auto"},
    )
    metrics: Metrics = Field(
        default="none",
        description="Where metrics go: to scrapes of prometheus_client, to a collector over OTLP, or nowhere by us.",
        json_schema_extra={"takes": "prometheus, otlp or none"},
    )
    warn_window: Seconds = Field(
        default=60.0,
        description="The seconds in which the same warning is not said again.",
        json_schema_extra={"takes": "a number of seconds from 0 to 86400"},
    )
    sdk_disabled: bool = Field(
        default=False,
        description="Whether to record no spans; headers are still passed on.",
        json_schema_extra={"takes": "true or false"},
    )
