"""The types of the settings: how a text becomes a value, and which values are refused.

A validator raises `ValueError`; the words a user reads are those of the field's `takes`, so no reason is repeated here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from meshmw.policy.addresses import Networks
from meshmw.policy.baggage_keys import BaggageKeys
from meshmw.policy.destinations import Destinations
from meshmw.policy.passthrough import passable


def words(value: object) -> object:
    """Split a comma-separated text, trimmed and without duplicates; the one word `none` is the empty list."""
    if isinstance(value, str):
        items = [item.strip() for item in value.split(",")]
        kept = tuple(dict.fromkeys(item for item in items if item))
        return () if [item.lower() for item in kept] == ["none"] else kept
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(dict.fromkeys(item.strip() for item in value))
    return value


def _lower(value: object) -> object:
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, (list, tuple)):
        return tuple(item.lower() if isinstance(item, str) else item for item in value)
    return value


def printable(text: str) -> str:
    """Return the text trimmed; refuse control characters, which would forge lines in a log."""
    text = text.strip()
    if not text or not text.isprintable():
        raise ValueError("not printable")
    return text


def endpoint_url(text: str) -> str:
    """Return the collector's address as a URL, `http://` where no scheme is given.

    Raises:
        ValueError: No host, a port out of range, another scheme, credentials, or a character that no URL holds.
    """
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        raise ValueError("not a URL")
    # Credentials would be logged with the address; OTEL_EXPORTER_OTLP_HEADERS is the place for them.
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("not the address of a collector")
    if parts.port == 0:  # reading it raises ValueError above 65,535
        raise ValueError("no such port")
    return url


def _path_pattern(text: str) -> str:
    if not text.startswith(("/", "*")) or not text.isprintable():
        raise ValueError("not a path")
    return text


def _sampling_rule(text: str) -> str:
    pattern, _, ratio = text.rpartition("=")
    if not 0 <= float(ratio) <= 1:
        raise ValueError("not a share")
    return f"{_path_pattern(pattern.strip())}={ratio.strip()}"


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


LONGEST_TEXT: Final = 255

Text: TypeAlias = Annotated[str, AfterValidator(printable), Field(max_length=LONGEST_TEXT)]
Format: TypeAlias = Literal["tracecontext", "baggage", "b3", "b3multi"]
Formats: TypeAlias = Annotated[tuple[Format, ...], NoDecode, BeforeValidator(words), BeforeValidator(_lower)]
Policy: TypeAlias = Annotated[Literal["strict", "w3c"], BeforeValidator(_lower)]
Duplicates: TypeAlias = Annotated[Literal["restart", "same-trace"], BeforeValidator(_lower)]
Prefer: TypeAlias = Annotated[Literal["w3c", "b3", "auto"], BeforeValidator(_lower)]
Trust: TypeAlias = Annotated[Literal["continue", "restart", "ignore"], BeforeValidator(_lower)]
SamplingOwner: TypeAlias = Annotated[Literal["parent", "service"], BeforeValidator(_lower)]
ServerSpans: TypeAlias = Annotated[Literal["auto", "contrib", "off"], BeforeValidator(_lower)]
MessagingParent: TypeAlias = Annotated[Literal["parent", "link"], BeforeValidator(_lower)]
Host: TypeAlias = Annotated[str, AfterValidator(_host_pattern)]
Hosts: TypeAlias = Annotated[tuple[Host, ...], NoDecode, BeforeValidator(words)]
Cidr: TypeAlias = Annotated[str, AfterValidator(_cidr)]
Cidrs: TypeAlias = Annotated[tuple[Cidr, ...], NoDecode, BeforeValidator(words)]
KeyPattern: TypeAlias = Annotated[str, AfterValidator(_key_pattern)]
KeyPatterns: TypeAlias = Annotated[tuple[KeyPattern, ...], NoDecode, BeforeValidator(words)]
Path: TypeAlias = Annotated[str, AfterValidator(_path_pattern)]
Paths: TypeAlias = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(words)]
HeaderName: TypeAlias = Annotated[str, AfterValidator(_header_name)]
HeaderNames: TypeAlias = Annotated[
    tuple[HeaderName, ...], NoDecode, Field(max_length=32), BeforeValidator(words), BeforeValidator(_lower)
]
Exporter: TypeAlias = Annotated[Literal["otlp", "otlp-http", "console", "none"], BeforeValidator(_lower)]
MetricsExporter: TypeAlias = Literal["prometheus", "otlp", "none"]
Metrics: TypeAlias = Annotated[MetricsExporter, BeforeValidator(_lower)]
BatchProfile: TypeAlias = Annotated[Literal["moderate", "high"], BeforeValidator(_lower)]
QueueSize: TypeAlias = Annotated[Annotated[int, Field(ge=1, le=1_048_576)] | Literal["auto"], BeforeValidator(_lower)]
SamplingRule: TypeAlias = Annotated[str, AfterValidator(_sampling_rule)]
SamplingRules: TypeAlias = Annotated[tuple[SamplingRule, ...], NoDecode, BeforeValidator(words)]
Endpoint: TypeAlias = Annotated[str, AfterValidator(endpoint_url)]
Ratio: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
# Envoy refuses a request whose headers together pass 60 KiB, so a longer baggage could never arrive.
BaggageBytes: TypeAlias = Annotated[int, Field(ge=0, le=61_440)]
BaggageMembers: TypeAlias = Annotated[int, Field(ge=0, le=1_024)]
# Envoy's own `max_request_headers_kb` ends at 8,192.
BudgetBytes: TypeAlias = Annotated[int, Field(ge=4_096, le=8_388_608)]
BudgetCount: TypeAlias = Annotated[int, Field(ge=20, le=10_000)]
