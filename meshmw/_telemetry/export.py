"""The exporters of spans and metrics that the settings ask for, each imported only when it is asked for.

The one of our own writes spans to standard output, as a tree that a person can read: one block for each request that
this process served, when the request's own span ends. Its first line has the trace id, by which any backend finds the
rest of the trace, and says whether the trace began here.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from meshmw._notices import LOGGER, Throttle, escaped, quoted, shown
from meshmw._otel_exporters import renew_export_lock, ticker_of, watch_answers, write_by
from meshmw._telemetry.collector import GuardedMetricExporter
from meshmw._telemetry.otlp import request_bytes
from meshmw._telemetry.reachability import note_answer, note_error
from meshmw.errors import IncompatibleExporterError, MissingExtraError, SettingsError
from meshmw.settings import (
    Held,
    OtlpOptions,
    Settings,
    Signal,
    exporting,
    is_insecure,
    is_target,
    metrics_endpoint,
    metrics_over_http,
    say,
)

# Bytes of spans in one request. gRPC takes 4 MiB; nginx, which may stand before a collector, takes 1 MiB of HTTP, where
# the last span of a batch, of up to 128 KiB, and the resource must still fit in.
_GRPC_BYTES: Final = 2_000_000
_HTTP_BYTES: Final = 900_000

_TAKES_HTTP: Final = "exporter=otlp-http takes host:port or an http:// or https:// URL"
_PORTS: Final = {"otlp": 4317, "otlp-http": 4318}
_DEFAULTS: Final = {exporter: f"http://localhost:{port}" for exporter, port in _PORTS.items()}

_NO_SPANS: Final = "MESHMW_EXPORTER=none"
NO_METRICS: Final = "MESHMW_METRICS=none"

# gRPC waits longer and longer between two attempts to connect, up to 2 minutes, and up to as long for an answer to one:
# spans would be lost for so long after a collector that swallowed packets is back. Milliseconds;
# the exporter's own annotation of its argument says texts, where gRPC takes numbers.
_RECONNECTING: Final[Any] = (("grpc.max_reconnect_backoff_ms", 10_000), ("grpc.min_reconnect_backoff_ms", 10_000))

# So many spans wait for the end of their requests, then all are written as they are; and so many are remembered.
_MOST: Final = 2_048
_SAID: Final = ("http.response.status_code", "rpc.response.status_code")


def endpoint_of(settings: Settings) -> str | None:
    """Return the address that spans go to, complete, or None where they do not go to a collector."""
    if settings.exporter not in _DEFAULTS:
        return None
    url = settings.endpoint or _DEFAULTS[settings.exporter]
    if settings.exporter == "otlp-http" and not is_target(url) and not urlsplit(url).path:
        return urlsplit(url)._replace(path="/v1/traces").geturl()
    return url


def shown_endpoint(settings: Settings) -> str | None:
    """Return the address as it may stand in a log: without a query, in which some vendors take a key."""
    endpoint = endpoint_of(settings)
    return endpoint and _without_query(endpoint)


def build_exporter(settings: Settings) -> SpanExporter | None:
    """Return the exporter, or None where spans go nowhere.

    Raises:
        MissingExtraError: The OTLP exporter is not installed.
        SettingsError: The address is one of gRPC's and spans go over HTTP, or there are no credentials as asked for.
    """
    endpoint = endpoint_of(settings)
    if settings.exporter == "console":
        return TreeSpanExporter()
    if endpoint is None:
        return None
    _warn_of_port(endpoint, settings.exporter, Settings.origins().get("endpoint", "endpoint (MESHMW_ENDPOINT)"))
    if settings.exporter == "otlp-http":
        if is_target(endpoint):
            raise SettingsError([f"MESHMW_ENDPOINT holds {quoted(endpoint)}, an address of gRPC's: {_TAKES_HTTP}"])
        return _spans_over_http(endpoint)
    # Of a standard variable the path is gone by now, and said.
    path = "" if is_target(endpoint) else urlsplit(endpoint).path.rstrip("/")
    if path:
        LOGGER.warning("endpoint (MESHMW_ENDPOINT) holds a path, %s, which is ignored: gRPC has none", quoted(path))
    return _spans_over_grpc(endpoint)


def _warn_of_port(endpoint: str, exporter: str, where: str) -> None:
    """Say where an address has no port that a collector listens at, or the other protocol's."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https"):
        return
    # A vendor's address with TLS needs no port, and gRPC's default is that of TLS.
    if parts.port is None and parts.scheme == "http":
        LOGGER.warning(
            "%s holds %s, which has no port: write %s:%d, where collectors listen",
            where,
            quoted(_without_query(endpoint)),
            f"{parts.scheme}://{parts.netloc}",
            _PORTS[exporter],
        )
    other = next((each for each, port in _PORTS.items() if port == parts.port and each != exporter), None)
    if other is not None:
        LOGGER.warning(
            "%s holds port %d, which is that of exporter=%s: set MESHMW_EXPORTER=%s, or write port %d",
            where,
            parts.port,
            other,
            other,
            _PORTS[exporter],
        )


def otlp_reader(settings: Settings) -> PeriodicExportingMetricReader:
    """Return what sends all metrics to the collector.

    Raises:
        MissingExtraError: The OTLP exporter is not installed.
    """
    http = metrics_over_http(settings.exporter)
    by_default = f"{_DEFAULTS['otlp-http']}/v1/metrics" if http else _DEFAULTS["otlp"]
    endpoint = metrics_endpoint(settings.exporter, settings.endpoint, http=http) or by_default
    exporter = _metrics_over_http(endpoint) if http else _metrics_over_grpc(endpoint)
    guarded = GuardedMetricExporter(exporter, _without_query(endpoint), settings.warn_window)
    return CheckedMetricReader(guarded, settings.warn_window)


class CheckedMetricReader(PeriodicExportingMetricReader):
    """Reads and sends all metrics every minute, or OTEL_METRIC_EXPORT_INTERVAL, and checks that a flush arrived.

    Args:
        exporter: Where the metrics go.
        warn_window: Seconds between two warnings that an export was ended by what is no failure.
        options: As the SDK's reader takes them.
    """

    def __init__(self, exporter: MetricExporter, warn_window: float = math.inf, **options: Any) -> None:
        self._flushed = exporter.force_flush
        self._throttle = Throttle(warn_window)
        super().__init__(exporter, **options)
        if hasattr(os, "register_at_fork"):
            reader = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: renew_export_lock(reader()))

    def collect(self, timeout_millis: float = 10_000) -> None:  # type: ignore[misc]  # final in the SDK
        """Collect and send; whatever that raises ends no thread but the caller's."""
        try:
            # The SDK attaches to the context, and where an export is interrupted it does not detach.
            copy_context().run(super().collect, timeout_millis)
        except BaseException as error:
            if threading.current_thread() is not ticker_of(self):
                raise
            if self._throttle.opens() is not None:
                LOGGER.warning("metrics are missing of one export, which %s ended", escaped(repr(error), 200))

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send all metrics.

        Raises:
            ConnectionError: They did not arrive; the meter provider looks at nothing else.
        """
        super().force_flush(timeout_millis)
        if not self._flushed(timeout_millis):
            raise ConnectionError("the metrics did not arrive")
        return True


def speaks_tls(endpoint: str, signal: Signal) -> bool:
    """Say whether the exporter of a signal speaks TLS to an address: its scheme says it, or else the variables."""
    scheme = urlsplit(endpoint).scheme
    return scheme == "https" or (scheme != "http" and not is_insecure(signal))


def _spans_over_grpc(endpoint: str) -> SpanExporter:
    with importing("opentelemetry.exporter.otlp.proto.grpc", "the OTLP exporter for gRPC", "otlp", _NO_SPANS):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    _warn_under_gevent()
    with _over_grpc(endpoint, "TRACES") as arguments:
        exporter = OTLPSpanExporter(**arguments)
    write_by(exporter, request_bytes, _GRPC_BYTES)
    watch_answers(exporter, note_answer, note_error)
    return exporter


def _metrics_over_grpc(endpoint: str) -> MetricExporter:
    with importing("opentelemetry.exporter.otlp.proto.grpc", "the OTLP exporter for gRPC", "otlp", NO_METRICS):
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    _warn_under_gevent()
    with _over_grpc(endpoint, "METRICS") as arguments:
        exporter = OTLPMetricExporter(**arguments)
    watch_answers(exporter, note_answer, note_error)
    return exporter


def _spans_over_http(endpoint: str) -> SpanExporter:
    with importing("opentelemetry.exporter.otlp.proto.http", "the OTLP exporter for HTTP", "otlp", _NO_SPANS):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    with _over_http(endpoint, "TRACES") as arguments:
        exporter = OTLPSpanExporter(**arguments)
    write_by(exporter, request_bytes, _HTTP_BYTES)
    return exporter


def _metrics_over_http(endpoint: str) -> MetricExporter:
    with importing("opentelemetry.exporter.otlp.proto.http", "the OTLP exporter for HTTP", "otlp", NO_METRICS):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    with _over_http(endpoint, "METRICS") as arguments:
        return OTLPMetricExporter(**arguments)


@contextmanager
def _over_grpc(endpoint: str, signal: Signal) -> Iterator[dict[str, Any]]:
    """Return the arguments of an exporter for gRPC, which is to be made in the block."""
    import grpc  # type: ignore[import-untyped]

    secure = speaks_tls(endpoint, signal)
    with exporting(signal, http=False, secure=secure) as options:
        # gRPC takes bytes for these names, and sends them in base64.
        headers = [(name, text.encode() if name.endswith("-bin") else text) for name, text in options.headers.items()]
        yield {
            "endpoint": endpoint,
            "insecure": not secure,
            "credentials": _credentials(options) if secure else None,
            "headers": tuple(headers),
            "timeout": options.timeout,
            "compression": grpc.Compression.Gzip if options.compression == "gzip" else grpc.Compression.NoCompression,
            "channel_options": _RECONNECTING,
        }


def _credentials(options: OtlpOptions) -> Any:
    import grpc

    if options.provider is not None:
        return _provided(options.provider, grpc.ChannelCredentials)
    files = (options.certificate, options.client_key, options.client_certificate)
    return grpc.ssl_channel_credentials(*(Path(each).read_bytes() if each else None for each in files))


@contextmanager
def _over_http(endpoint: str, signal: Signal) -> Iterator[dict[str, Any]]:
    """Return the arguments of an exporter for HTTP, which is to be made in the block."""
    from opentelemetry.exporter.otlp.proto.http import Compression
    from requests import Session

    from meshmw._telemetry.http_session import BoundedSession, bounded

    with exporting(signal, http=True, secure=speaks_tls(endpoint, signal)) as options:
        yield {
            "endpoint": endpoint,
            "certificate_file": options.certificate,
            "client_key_file": options.client_key,
            "client_certificate_file": options.client_certificate,
            "headers": dict(options.headers),
            "timeout": options.timeout,
            "compression": Compression(options.compression),
            "session": (
                bounded(_provided(options.provider, Session), endpoint) if options.provider else BoundedSession()
            ),
        }


def _provided(provider: Held, kind: type) -> Any:
    """Return what a credential provider makes, which must be of a kind.

    Raises:
        SettingsError: It is not installed, it raises, or it makes something else. To send without credentials is what
            nobody asked for.
    """
    from importlib.metadata import entry_points  # takes 20 ms, for the few who name a provider

    fault = f"{provider.variable} holds what OpenTelemetry refuses: {quoted(provider.value)}"
    found = tuple(entry_points(group="opentelemetry_otlp_credential_provider", name=provider.value))
    if not found:
        raise SettingsError([f"{fault}, and no such credential provider is installed"])
    try:
        made = found[0].load()()
    except Exception as error:
        raise SettingsError([f"{fault}, which raises {escaped(f'{type(error).__name__}: {error}', 200)}"]) from error
    if not isinstance(made, kind):
        raise SettingsError([f"{fault}, which makes a {type(made).__name__}, and not a {kind.__name__}"])
    return made


@contextmanager
def importing(package: str, what: str, extra: str, instead: str) -> Iterator[None]:
    """Import an exporter in the block, and say what is wrong where that fails, and what to set to do without it.

    Raises:
        MissingExtraError: *package*, or one that the extra brings with it, is not installed.
        IncompatibleExporterError: It is installed and cannot be imported, such as beside another release of the SDK.
    """
    try:
        yield
    except Exception as error:
        absent = (error.name or package) if isinstance(error, ModuleNotFoundError) else ""
        is_own = f"{package}.".startswith(f"{absent}.") or absent.startswith(package)
        # The SDK is there: what is missing of it is not of its release.
        if absent and (is_own or not absent.startswith("opentelemetry.")):
            # Of interest is which package is missing, and not where it was asked for.
            raise MissingExtraError(what, extra, instead) from None
        raise IncompatibleExporterError(what, extra, escaped(f"{type(error).__name__}: {error}", 200)) from error


def _without_query(endpoint: str) -> str:
    return endpoint.partition("?")[0]


def _warn_under_gevent() -> None:
    """Say that gRPC waits outside of gevent's sight, where gevent has made threads greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        # Of spans and of metrics alike.
        say(
            "gevent runs this process, and exporter=otlp waits for the collector in gRPC, which gevent cannot see: no "
            "request is served meanwhile, for up to 10 seconds where it does not answer. Set MESHMW_EXPORTER=otlp-http"
        )


class TreeSpanExporter(SpanExporter):
    """Writes spans to standard output: kind, name, milliseconds, status, each below its parent."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[ReadableSpan]] = {}
        # Span ids: what ends after its parent, such as a background task, waits for nothing.
        self._written: deque[int] = deque(maxlen=_MOST)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write each trace whose first span of this process is among the spans."""
        for span in spans:
            trace_id, parent = span.context.trace_id, span.parent
            self._waiting.setdefault(trace_id, []).append(span)
            if parent is None or parent.is_remote or parent.span_id in self._written:
                self._write(trace_id)
        if sum(map(len, self._waiting.values())) > _MOST:
            self.shutdown()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Write what still waits for the end of its request."""
        for trace_id in list(self._waiting):
            self._write(trace_id)

    def _write(self, trace_id: int) -> None:
        spans = self._waiting.pop(trace_id)
        self._written.extend(span.context.span_id for span in spans)
        # Where a terminal is no Unicode, such as a Windows pipe, the lines of the tree would fail the whole of it.
        encoding = sys.stdout.encoding or "utf-8"
        text = "\n".join(_lines(spans)).encode(encoding, "backslashreplace").decode(encoding)
        print(text, file=sys.stdout, flush=True)


def _lines(spans: Sequence[ReadableSpan]) -> list[str]:
    ids = {span.context.span_id for span in spans}
    below: dict[int, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else 0
        below.setdefault(parent, []).append(span)
    rows = [row for top in below[0] for row in _rows(top, below)]
    width = max(len(text) for text, _ in rows)
    first = f"trace {format_trace_id(spans[0].context.trace_id)}  {_origin(below[0][0])}"
    return ["", first, *(f"  {text.ljust(width)}  {end}" for text, end in rows)]


def _rows(top: ReadableSpan, below: dict[int, list[ReadableSpan]]) -> Iterator[tuple[str, str]]:
    # A stack rather than recursion: spans may lie within each other by the thousand.
    waiting = [(top, "", "")]
    while waiting:
        span, lead, rest = waiting.pop()
        kind = "" if span.kind is SpanKind.INTERNAL else f"{span.kind.name} "
        yield f"{lead}{kind}{shown(span.name, 80)}", _end(span)
        children = below.pop(span.context.span_id, [])[::-1]
        # The stack is emptied from its end: the last child, which has the corner, lies at the bottom.
        waiting += [(child, f"{rest}└─ ", f"{rest}   ") for child in children[:1]]
        waiting += [(child, f"{rest}├─ ", f"{rest}│  ") for child in children[1:]]


def _end(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    # Whom a client called is not in its span's name.
    names = ("server.address", *_SAID) if span.kind is SpanKind.CLIENT else _SAID
    said = [str(attributes[name]) for name in names if name in attributes]
    if span.status.status_code is StatusCode.ERROR:
        said.append(f"ERROR {attributes.get('error.type', '')}".rstrip())
    milliseconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
    return "  ".join([f"{milliseconds:.1f} ms".rjust(10), *(shown(text, 80) for text in said)])


def _origin(span: ReadableSpan) -> str:
    if span.parent is None:
        return "began here"
    if span.parent.is_remote:
        return f"continues the caller's span {format_span_id(span.parent.span_id)}"
    return f"below the span {format_span_id(span.parent.span_id)}, which was written before, or has not ended"
