"""The settings: what each is called, its type, its default, what it takes and what it does.

To add one, declare it in `Fields`, in the order in which docs/settings.md shows it. A default that something below the
settings has too is a constant there. A validator raises a bare `ValueError`: what the user reads is the field's
`takes`, which is made of the words themselves where the type is a set of words.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from meshmw._notices import DEFAULT_WARN_WINDOW
from meshmw._policy.outbound import (
    DEFAULT_BAGGAGE_TO,
    DEFAULT_HEADER_BUDGET,
    DEFAULT_PASSTHROUGH_HEADERS,
    DEFAULT_PROPAGATE_TO,
    RESERVED_BYTES,
    RESERVED_HEADERS,
    Destinations,
    completed_budget,
    passable,
)
from meshmw._policy.patterns import DEFAULT_BAGGAGE_KEYS, BaggageKeys, Networks
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
from meshmw.wire.baggage import MAX_BYTES, MAX_MEMBERS
from meshmw.wire.traceparent import DEFAULT_TRACEPARENT_POLICY, TraceParentPolicy

LONGEST_TEXT: Final = 255
# Of baggage. Envoy refuses a request whose headers together pass its budget, so a longer one could never arrive.
MOST_MEMBERS: Final = 1_024
MOST_BYTES: Final = DEFAULT_HEADER_BUDGET[0]
# A queue of so many spans takes some gigabytes.
MOST_SPANS: Final = 1_048_576
# https://github.com/grpc/grpc/blob/master/doc/naming.md; a host that is called `unix` or `dns` has a port behind it.
_TARGET: Final = re.compile(
    r"(?:unix:(?!\d+\Z)|unix-abstract:(?!\d+\Z)|dns:///|ipv4:(?=[\d.]+:\d)|ipv6:(?=\[))[\x21-\x22\x24\x26-\x3e\x41-\x7e]{1,255}"
)
# A name, with the underscores of Docker's, or an address of IPv6, which has been looked at by then.
_HOST: Final = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|(?=[^:]{0,4}:)[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._~-]{1,32})?"
)
# Marks a setting whose words a variable may spell in any case, as OpenTelemetry's specification asks of enumerations.
ANY_CASE: Final = object()


def split(value: object) -> object:
    """Return a list's items without duplicates, a comma-separated text's too; the one word `none` is the empty list.

    Raises:
        ValueError: The word is spelt `None`, or the like.
    """
    if isinstance(value, str):
        items = _items(value)
        if is_none(value) and items != ["none"]:
            raise ValueError("not none")
        value = [] if items == ["none"] else items
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(dict.fromkeys(value))
    return value


def _items(text: str) -> list[str]:
    """Return the items of a comma-separated text, trimmed."""
    return [item.strip() for item in text.split(",") if item.strip()]


def is_none(text: str) -> bool:
    """Say whether a comma-separated text is the one word `none`, in any case."""
    return [item.lower() for item in _items(text)] == ["none"]


def printable(text: str) -> str:
    """Return a text trimmed.

    Raises:
        ValueError: It is empty, or holds a control character, which would forge lines in a log.
    """
    text = text.strip()
    if not text or not text.isprintable():
        raise ValueError("not printable")
    return text


def as_text(value: object) -> str:
    """Return a setting's value as you would write it into its variable."""
    if isinstance(value, tuple):
        # The two numbers of a budget are no list.
        return ("/" if value and isinstance(value[0], int) else ",").join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def is_target(address: str) -> bool:
    """Say whether an address is one of gRPC's own, such as `unix:/run/otel.sock`, which says nothing of TLS."""
    return _TARGET.fullmatch(address) is not None


def endpoint_url(text: str) -> str:
    """Return the collector's address as a URL, `http://` where no scheme is given; gRPC's own as they are.

    Raises:
        ValueError: No host, a port out of range, another scheme, credentials, or a character that no URL holds.
    """
    url = text.strip()
    if is_target(url):
        return url
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        raise ValueError("not a URL")
    # Credentials would be logged with the address; OTEL_EXPORTER_OTLP_HEADERS is the place for them.
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.hostname or "") or "@" in parts.netloc:
        raise ValueError("not the address of a collector")
    if parts.port == 0:  # reading it raises ValueError above 65,535
        raise ValueError("no such port")
    return url


def spans(text: str) -> int:
    """Return the number of spans that a text spells, from 1 to 1,048,576.

    Raises:
        ValueError: It spells none.
    """
    number = whole_number(text, 1, MOST_SPANS)
    if number is None:
        raise ValueError("no such number")
    return number


def whole_number(text: str, least: int, most: int) -> int | None:
    """Return the whole number within two bounds that a text spells, or None where it spells none."""
    if not text.isdecimal() or len(text) > LONGEST_TEXT or not least <= int(text) <= most:
        return None
    return int(text)


def _batching_by_number(text: str) -> str:
    profile, _, queue = text.partition("/")
    if profile not in get_args(Batching):
        raise ValueError("no such profile")
    spans(queue)
    return text


def _header_budget(value: object) -> object:
    return completed_budget(tuple(value.split("/")) if isinstance(value, str) else value)


def _path_pattern(text: str) -> str:
    if not text.startswith(("/", "*")) or not text.isprintable():
        raise ValueError("not a path")
    return text


def _sampling_rule(text: str) -> str:
    pattern, _, ratio = text.rpartition("=")
    if not 0 <= float(ratio) <= 1:
        raise ValueError("not a share")
    return f"{_path_pattern(pattern.strip())}={ratio.strip()}"


def _lower(value: object) -> object:
    if isinstance(value, str):
        return value.lower()
    if isinstance(value, (list, tuple)):
        return tuple(item.lower() if isinstance(item, str) else item for item in value)
    return value


def _header_name(name: str) -> str:
    return passable([name])[0]


def _host_pattern(text: str) -> str:
    Destinations([text])
    return text


def _cidr(text: str) -> str:
    Networks([text])
    return text


def _key_pattern(text: str) -> str:
    BaggageKeys([text])
    return text


def _asked_for(patterns: tuple[str, ...]) -> tuple[str, ...]:
    BaggageKeys(patterns, opt_in=True)
    return patterns


Text: TypeAlias = Annotated[str, AfterValidator(printable), Field(max_length=LONGEST_TEXT)]
Formats: TypeAlias = Annotated[tuple[Format, ...], ANY_CASE, NoDecode, BeforeValidator(split)]
Host: TypeAlias = Annotated[str, AfterValidator(_host_pattern)]
Hosts: TypeAlias = Annotated[tuple[Host, ...], NoDecode, BeforeValidator(split)]
Cidr: TypeAlias = Annotated[str, AfterValidator(_cidr)]
Cidrs: TypeAlias = Annotated[tuple[Cidr, ...], NoDecode, BeforeValidator(split)]
KeyPattern: TypeAlias = Annotated[str, AfterValidator(_key_pattern)]
KeyPatterns: TypeAlias = Annotated[tuple[KeyPattern, ...], NoDecode, BeforeValidator(split)]
Path: TypeAlias = Annotated[str, AfterValidator(_path_pattern)]
Paths: TypeAlias = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split)]
SamplingRule: TypeAlias = Annotated[str, AfterValidator(_sampling_rule)]
SamplingRules: TypeAlias = Annotated[tuple[SamplingRule, ...], NoDecode, BeforeValidator(split)]
HeaderName: TypeAlias = Annotated[str, AfterValidator(_header_name)]
# A header's name is the same in any case, so it is no word that could be misspelt by it.
HeaderNames: TypeAlias = Annotated[
    tuple[HeaderName, ...], NoDecode, Field(max_length=32), BeforeValidator(split), BeforeValidator(_lower)
]
# Envoy's own `max_request_headers_kb` ends at 8,192.
BudgetBytes: TypeAlias = Annotated[int, Field(ge=4_096, le=8_388_608)]
BudgetHeaders: TypeAlias = Annotated[int, Field(ge=20, le=10_000)]
Budget: TypeAlias = Annotated[tuple[BudgetBytes, BudgetHeaders], NoDecode, BeforeValidator(_header_budget)]
BaggageBytes: TypeAlias = Annotated[int, Field(ge=0, le=MOST_BYTES)]
BaggageMembers: TypeAlias = Annotated[int, Field(ge=0, le=MOST_MEMBERS)]
BatchingByNumber: TypeAlias = Annotated[str, AfterValidator(_batching_by_number)]
Endpoint: TypeAlias = Annotated[str, AfterValidator(endpoint_url)]
Ratio: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]

_TAKES_HOSTS: Final = "a list of mesh, names, .suffixes, patterns with * or ?, addresses and CIDRs, * for all; or none"
_TAKES_KEYS: Final = "a list of keys or patterns with * and ?, and of those to leave out, each with ! before it"
_TAKES_SOME_KEYS: Final = (
    "a list of keys or patterns with * and ?; beside them, a pattern with ! before it leaves keys out"
)


class Fields(BaseSettings):
    """Declares every setting, in the order in which they are documented."""

    model_config = SettingsConfigDict(env_prefix="MESHMW_", frozen=True, extra="forbid")

    service_name: Text | None = Field(
        default=None,
        description="The name of this service in every trace.",
        json_schema_extra={"takes": "1 to 255 printable characters"},
    )
    kubernetes_labels: bool = Field(
        default=False,
        description="Whether the pod's labels app.kubernetes.io/instance, name and version name the service.",
        json_schema_extra={"takes": "true or false"},
    )
    propagators: Formats = Field(
        default=DEFAULT_PROPAGATORS,
        description="The header formats that are read and written; W3C trace context decides wherever it is listed.",
    )
    traceparent_policy: Annotated[TraceParentPolicy, ANY_CASE] = Field(
        default=DEFAULT_TRACEPARENT_POLICY,
        description="Whether only version 00 of traceparent is read (strict), or later versions too (w3c).",
    )
    duplicates: Annotated[Duplicates, ANY_CASE] = Field(
        default=DEFAULT_DUPLICATES,
        description="What several traceparent lines do: begin a new trace, or keep the trace id that all have.",
    )
    prefer: Annotated[Prefer, ANY_CASE] = Field(
        default=DEFAULT_PREFER,
        description="Which format decides where a valid traceparent and valid B3 headers disagree.",
    )
    trust: Annotated[Trust, ANY_CASE] = Field(
        default=DEFAULT_TRUST,
        description="Whether a caller's trace and baggage are used, a new trace is linked to it, or both are ignored.",
    )
    trusted_peers: Cidrs = Field(
        default=(),
        description="The only peers whose traces are continued; for others trust=continue means restart.",
        json_schema_extra={"takes": "a list of addresses and CIDRs"},
    )
    sampling_owner: Annotated[SamplingOwner, ANY_CASE] = Field(
        default="parent",
        description="Whether the caller's flag decides what is recorded, or this service, by the trace id.",
    )
    server_spans: Annotated[ServerSpans, ANY_CASE] = Field(
        default=DEFAULT_SERVER_SPANS,
        description="Who makes SERVER spans: meshmw where the host makes none, contrib's middleware, or nobody.",
    )
    exclude: Paths = Field(
        default=(),
        description="The request paths that get no span: /live means it and all below it, a pattern the whole path.",
        json_schema_extra={"takes": "a list of paths that begin with /, or of patterns with * and ?"},
    )
    baggage_max_members: BaggageMembers = Field(
        default=MAX_MEMBERS,
        description="The number of baggage members that are kept, in each direction.",
        json_schema_extra={"takes": f"a number from 0 to {MOST_MEMBERS}"},
    )
    baggage_max_bytes: BaggageBytes = Field(
        default=MAX_BYTES,
        description="The bytes of baggage that are kept, in each direction, all header lines together.",
        json_schema_extra={"takes": f"a number from 0 to {MOST_BYTES}"},
    )
    baggage_keys: KeyPatterns = Field(
        default=DEFAULT_BAGGAGE_KEYS,
        description="The baggage keys that pass, in each direction; where only some are left out, all others pass.",
        json_schema_extra={"takes": f"{_TAKES_KEYS}; or none"},
    )
    baggage_attributes: Annotated[KeyPatterns, AfterValidator(_asked_for)] = Field(
        default=(),
        description="The baggage keys whose values become attributes of every span; few values each, no secrets.",
        json_schema_extra={"takes": _TAKES_SOME_KEYS},
    )
    propagate_to: Hosts = Field(
        default=DEFAULT_PROPAGATE_TO,
        description="The hosts that outbound calls send trace headers and baggage to.",
        json_schema_extra={"takes": _TAKES_HOSTS},
    )
    baggage_to: Hosts = Field(
        default=DEFAULT_BAGGAGE_TO,
        description="The hosts, of those, that are sent baggage; mesh is every mesh-internal name and private address.",
        json_schema_extra={"takes": _TAKES_HOSTS},
    )
    passthrough_headers: HeaderNames = Field(
        default=DEFAULT_PASSTHROUGH_HEADERS,
        description="The request headers that go out again, unchanged, on outbound calls.",
        json_schema_extra={"takes": "a list of up to 32 header names, no trace header and none of HTTP's own; or none"},
    )
    header_budget: Budget = Field(
        default=DEFAULT_HEADER_BUDGET,
        description=(
            "The bytes and number of request headers that every proxy accepts; baggage is cut to stay "
            f"{RESERVED_BYTES:,} and {RESERVED_HEADERS} below."
        ),
        json_schema_extra={"takes": "bytes from 4096 to 8388608, alone or with /20 to /10000 headers"},
    )
    messaging_parent: Annotated[MessagingParent, ANY_CASE] = Field(
        default=DEFAULT_MESSAGING_PARENT,
        description="Whether processing one message is a child of what sent it, or a new trace that links to that.",
    )
    exporter: Annotated[Exporter, ANY_CASE] = Field(
        default=DEFAULT_EXPORTER,
        description="Where spans go: OTLP over gRPC (otlp), OTLP over HTTP (otlp-http), standard output, or nowhere.",
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
    batching: Annotated[Batching | BatchingByNumber, ANY_CASE] = Field(
        default=DEFAULT_BATCHING,
        description=(
            "How spans are batched: 512 every 5 seconds of 2,048 that may wait, or (high, from 10,000 a second) 2,048 "
            "every second of 8,192."
        ),
        json_schema_extra={
            "takes": "moderate or high; with /auto the container's memory says how many may wait, with /9000 you do"
        },
    )
    metrics: Annotated[MetricsExporter, ANY_CASE] = Field(
        default="none",
        description="Where metrics go: to scrapes of prometheus_client, to a collector over OTLP, or nowhere by us.",
    )
    warn_window: Seconds = Field(
        default=DEFAULT_WARN_WINDOW,
        description="The seconds in which the same warning is not said again.",
        json_schema_extra={"takes": "a number of seconds from 0 to 86400"},
    )
    show_log: bool = Field(
        default=True,
        description="Whether meshmw's log lines go to the server's log or stderr where nobody has set logging up.",
        json_schema_extra={"takes": "true or false"},
    )
