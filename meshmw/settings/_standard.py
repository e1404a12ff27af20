"""The standard `OTEL_*` variables: those that stand in for a setting, and single ones that others ask for.

The OpenTelemetry specification asks that an unknown value be warned of and ignored, so nothing here is ever a fault:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/

Where a variable shall stand in for one more setting, name it in `VARIABLES` and give `Standard.read` a reader.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, get_args
from urllib.parse import unquote_to_bytes, urlsplit

from meshmw._notices import LOGGER, quoted, without_secrets
from meshmw._policy.words import (
    DEFAULT_BATCHING,
    DEFAULT_EXPORTER,
    DEFAULT_PROPAGATORS,
    FORMATS,
    Exporter,
    MetricsExporter,
)
from meshmw._regex import compiled_late
from meshmw.settings._schema import Fields
from meshmw.settings._values import (
    LONGEST_TEXT,
    MOST_SPANS,
    as_text,
    endpoint_url,
    is_target,
    printable,
    whole_number,
)

VARIABLES: Mapping[str, tuple[str, ...]] = {
    "service_name": ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"),
    "propagators": ("OTEL_PROPAGATORS",),
    "exporter": ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    "endpoint": ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    "batching": ("OTEL_BSP_MAX_QUEUE_SIZE",),
    "metrics": ("OTEL_METRICS_EXPORTER",),
}

_FORMATS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in FORMATS},
    # The name under which the package registers its own propagator.
    "meshmw": DEFAULT_PROPAGATORS,
}
_HTTP: Final[Exporter] = "otlp-http"
_HTTP_WORD: Final = "http/protobuf"
_PROTOCOLS = {"grpc": "otlp", _HTTP_WORD: _HTTP}
# RFC 3986, section 2.1.
_BROKEN_ESCAPE: Final = compiled_late("%(?![0-9A-Fa-f]{2})")
ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
# Up to here a number of a timeout is seconds, as Python's SDK reads some variables: nobody means a tenth of a second.
# Above, it is the specification's milliseconds: nobody waits for two minutes.
MOST_AS_SECONDS: Final = 120
_NOTHING: Final[Mapping[str, Any]] = {}
_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)
_EXPORTERS = {"otlp_proto_grpc": "otlp", "otlp_proto_http": "otlp-http", "console": "console", "none": "none"}


def is_blank(text: str) -> bool:
    """Say whether a variable holds nothing, which the specification calls unset; templates leave lone commas too."""
    return not text.replace(",", " ").strip()


class Standard:
    """Reads the standard variables, and keeps what is to be warned of.

    Attributes:
        environ: The variables.
        decided: What an argument or a `MESHMW_*` variable decided: it is not read here, nor warned of.
        warnings: One line for each value that is not known.
    """

    def __init__(self, environ: Mapping[str, str], decided: Mapping[str, Any] = _NOTHING) -> None:
        self.environ = environ
        self.decided = decided
        self.warnings: list[str] = []

    def read(self) -> dict[str, tuple[Any, str]]:
        """Return each value that is set and known, with the variable that holds it."""
        readers: Mapping[str, Callable[[], tuple[Any, str] | None]] = {
            "service_name": lambda: self._text("OTEL_SERVICE_NAME") or self._attribute("service.name"),
            "propagators": self._propagators,
            "exporter": self._exporter,
            "endpoint": self._endpoint,
            "batching": self._batching,
            "metrics": self._metrics,
        }
        found = {name: self._read(name, read) for name, read in readers.items() if name not in self.decided}
        return {name: value for name, value in found.items() if value is not None}

    def _read(self, name: str, read: Callable[[], tuple[Any, str] | None]) -> tuple[Any, str] | None:
        said = len(self.warnings)
        found = read()
        value = getattr(Fields, name) if found is None else found[0]
        # Which value counts instead is known only when all that the variables hold is read.
        instead = f"; so {name} is {without_secrets(as_text(value)) or 'left unset'}"
        self.warnings[said:] = [f"{warning}{instead}" for warning in self.warnings[said:]]
        return found

    def get(self, variable: str) -> str:
        """Return what a variable holds, trimmed; an empty text where it holds nothing."""
        value = self.environ.get(variable, "")
        return "" if is_blank(value) else value.strip()

    def _ignore(self, variable: str, value: str, takes: str) -> None:
        self.warnings.append(f"{variable} holds {quoted(value)}, which is ignored; meshmw takes {takes}")

    def _text(self, variable: str) -> tuple[str, str] | None:
        return self._printable(variable, self.get(variable))

    def _printable(self, variable: str, value: str) -> tuple[str, str] | None:
        if not value:
            return None
        try:
            text = printable(value)
        except ValueError:
            text = ""
        if 0 < len(text) <= LONGEST_TEXT:
            return text, variable
        self._ignore(variable, value, f"1 to {LONGEST_TEXT} printable characters")
        return None

    def _attribute(self, key: str) -> tuple[str, str] | None:
        # A second reader, because whoever makes the resource says what is broken in the variable.
        return self._printable(ATTRIBUTES, Standard(self.environ).attributes().get(key, ""))

    def attributes(self) -> dict[str, str]:
        """Return what OTEL_RESOURCE_ATTRIBUTES holds, keys and values percent-decoded; nothing where a pair is broken.

        Of a key that stands there twice the last value counts, unless that is empty. The specification discards all of
        the variable at any error (https://opentelemetry.io/docs/specs/otel/resource/sdk/).
        """
        found: dict[str, str] = {}
        for item in filter(str.strip, self.get(ATTRIBUTES).split(",")):
            key, equals, value = (decoded(part.strip()) for part in item.partition("="))
            if not key or not equals or value is None:
                fault = "which is no key=value pair with valid percent-encoding"
                remedy = "all of it is ignored, as OpenTelemetry's specification asks"
                self.warnings.append(f"{ATTRIBUTES} holds {quoted(item.strip())}, {fault}; {remedy}")
                return {}
            found[key] = value or found.get(key, "")
        return found

    def _names(self, variable: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.strip().lower() for name in self.get(variable).split(",") if name.strip()))

    def _propagators(self) -> tuple[tuple[str, ...], str] | None:
        variable = "OTEL_PROPAGATORS"
        names = self._names(variable)
        if "none" in names:
            return (), variable
        for name in names:
            if name not in _FORMATS:
                self._ignore(variable, name, ", ".join((*_FORMATS, "none")))
        formats = tuple(dict.fromkeys(format_ for name in names for format_ in _FORMATS.get(name, ())))
        return (formats, variable) if formats else None

    def _exporter(self) -> tuple[str, str] | None:
        variable = "OTEL_TRACES_EXPORTER"
        protocol = self._protocol()
        known = {"otlp": protocol[0] if protocol else "otlp", **_EXPORTERS}
        chosen: tuple[str, str] | None = None
        for name in self._names(variable):
            if name not in known or chosen:
                self._ignore(variable, name, f"one of {', '.join(known)}")
            else:
                chosen = known[name], variable
        return chosen or protocol

    def _protocol(self) -> tuple[str, str] | None:
        return self.protocol(*VARIABLES["exporter"][1:])

    def protocol(self, *variables: str) -> tuple[str, str] | None:
        """Return the exporter of the protocol that the first of these variables names."""
        for variable in variables:
            value = self.get(variable).lower()
            if value == "http/json":
                # Whoever writes this has a collector's HTTP port in mind, which takes both at the same address.
                self.warnings.append(
                    f"{variable} holds {quoted(value)}, which meshmw does not send; it sends {_HTTP_WORD}"
                )
                return _HTTP, variable
            if value in _PROTOCOLS:
                return _PROTOCOLS[value], variable
            if value:
                self._ignore(variable, value, " or ".join(_PROTOCOLS))
        return None

    def _endpoint(self) -> tuple[str, str] | None:
        return self.endpoint(VARIABLES["endpoint"], "TRACES", http=self._is_http())

    def endpoint(self, variables: Sequence[str], signal: str, *, http: bool) -> tuple[str, str] | None:
        """Return the address that the first of these variables holds, complete for this signal over HTTP."""
        for variable in variables:
            value = self.get(variable)
            try:
                url = self._url(value, signal, http=http) if value else ""
            except ValueError:
                # Some vendors take a key in the query.
                self._ignore(variable, value.partition("?")[0], "a URL such as http://127.0.0.1:4317")
                continue
            if is_target(url):
                return url, variable
            if url:
                if not http:
                    self._ignore_path(variable, url)
                    url = urlsplit(url)._replace(path="", query="").geturl()
                base = variable == "OTEL_EXPORTER_OTLP_ENDPOINT"
                return (_signal_url(url, signal.lower(), base=base) if http else url), variable
        return None

    def _ignore_path(self, variable: str, url: str) -> None:
        path = urlsplit(url).path.rstrip("/")
        if path:
            self.warnings.append(f"{variable} holds a path, {quoted(path)}, which is ignored: gRPC has none")

    def _is_http(self) -> bool:
        # A second reader, so that what the first one warns of is said once.
        found = Standard(self.environ)._exporter() or (DEFAULT_EXPORTER, "")
        return bool(self.decided.get("exporter", found[0]) == _HTTP)

    def _url(self, address: str, signal: str, *, http: bool) -> str:
        if http and is_target(address):
            raise ValueError("no URL")
        if "://" in address or is_target(address):
            return endpoint_url(address)
        word = self.get(f"OTEL_EXPORTER_OTLP_{signal}_INSECURE") or self.get("OTEL_EXPORTER_OTLP_INSECURE")
        # Over HTTP the specification knows no address without a scheme.
        secure = word.lower() == "false" if http else word.lower() != "true"
        return endpoint_url(f"{'https' if secure else 'http'}://{address}")

    def count(self, variable: str, most: int) -> int | None:
        """Return a variable's whole number above zero, or None where it holds none."""
        value = self.get(variable)
        number = whole_number(value, 1, most)
        if value and number is None:
            self._ignore(variable, value, f"a number from 1 to {most}")
        return number

    def _batching(self) -> tuple[str, str] | None:
        # The profile stays what it is by default; the variable says only how many spans may wait.
        variable = "OTEL_BSP_MAX_QUEUE_SIZE"
        queue = self.count(variable, MOST_SPANS)
        return None if queue is None else (f"{DEFAULT_BATCHING}/{queue}", variable)

    def _metrics(self) -> tuple[str, str] | None:
        # Other exporters are not ours to set up, and the variable may be meant for a provider that is there already.
        variable = "OTEL_METRICS_EXPORTER"
        known = [name for name in self._names(variable) if name in get_args(MetricsExporter)]
        return (known[0], variable) if known else None

    def boolean(self, variable: str) -> bool:
        """Say whether a variable is `true`, in any case; whatever else it holds is false, as the specification says."""
        value = self.get(variable).lower()
        if value not in ("", "true", "false"):
            self._ignore(variable, value, "true or false; it counts as false")
        return value == "true"


def decoded(text: str) -> str | None:
    """Return a text percent-decoded, or None where an escape is broken, or what is escaped is no UTF-8."""
    if _BROKEN_ESCAPE().search(text):
        return None
    try:
        # Bytes of the environment that are no text become a question mark: OTLP could not carry them.
        return unquote_to_bytes(text.encode("utf-8", "replace")).decode()
    except UnicodeDecodeError:
        return None


def _signal_url(url: str, signal: str, *, base: bool) -> str:
    # The variable for all signals holds a base, to which the signal's path is added; the one for a signal is complete,
    # and without a path it means the root.
    parts = urlsplit(url)
    path = f"{parts.path.removesuffix('/')}/v1/{signal}" if base else parts.path or "/"
    return parts._replace(path=path).geturl()


def metrics_over_http(exporter: str) -> bool:
    """Say whether metrics go over HTTP: as their own variable says; or as spans do, by *exporter*; or as all do."""
    standard = Standard(os.environ)  # noqa: TID251
    own = standard.protocol("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL")
    warn(standard)
    if own is not None:
        return own[0] == _HTTP
    if exporter in ("otlp", _HTTP):
        return exporter == _HTTP
    for_all = Standard(os.environ).protocol("OTEL_EXPORTER_OTLP_PROTOCOL")  # noqa: TID251
    return for_all is not None and for_all[0] == _HTTP


def metrics_endpoint(exporter: str, endpoint: str | None, *, http: bool) -> str | None:
    """Return the URL that metrics go to, or None where nothing says it.

    That is what their own variable says; else the collector of spans, where *endpoint* is no standard variable's and
    the protocol is the same; else what OTEL_EXPORTER_OTLP_ENDPOINT says.

    Args:
        exporter: The setting, of spans.
        endpoint: The setting, of spans.
        http: Whether metrics go over HTTP.
    """
    standard = Standard(os.environ, {"exporter": exporter})  # noqa: TID251
    own = standard.endpoint(["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"], "METRICS", http=http)
    warn(standard)
    if own is not None:
        return own[0]
    if endpoint is not None and http == (exporter == _HTTP) and endpoint != standard.read().get("endpoint", [None])[0]:
        return _beside_traces(endpoint) if http else endpoint
    standard.warnings.clear()
    for_all = standard.endpoint(["OTEL_EXPORTER_OTLP_ENDPOINT"], "METRICS", http=http)
    # Where spans travel likewise, the settings have said what is wrong with it.
    if http != (exporter == _HTTP):
        warn(standard)
    return for_all and for_all[0]


def _beside_traces(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.removesuffix('/').removesuffix('/v1/traces')}/v1/metrics").geturl()


def warn(standard: Standard) -> None:
    """Say what is ignored in the variables that were read."""
    for warning in standard.warnings:
        say(warning)


@contextmanager
def each_line_once() -> Iterator[None]:
    """Say each line of a variable once in the block: what several parts read, each of them would speak of."""
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def say(line: str, level: int = logging.WARNING) -> None:
    """Log a line about a variable, unless it was said in this `each_line_once`."""
    said = _SAID.get()
    if said is None or line not in said:
        LOGGER.log(level, "%s", line)
    if said is not None:
        said.add(line)


def first_of(*variables: str) -> str:
    """Return what the first of these variables that holds anything holds, or an empty text."""
    values = (os.environ.get(variable, "").strip() for variable in variables)  # noqa: TID251
    return next(filter(None, values), "")


def is_set(variable: str) -> bool:
    """Say whether a variable holds anything."""
    return bool(first_of(variable))


def sdk_disabled() -> bool:
    """Say whether OTEL_SDK_DISABLED is true; warn of what is neither true nor false, which is false."""
    standard = Standard(os.environ)  # noqa: TID251
    disabled = standard.boolean("OTEL_SDK_DISABLED")
    warn(standard)
    return disabled


def is_true(variable: str) -> bool:
    """Say whether a variable switches something on."""
    return first_of(variable).lower() in ("1", "on", "true", "yes")


def count_in(variable: str, most: int = MOST_SPANS) -> int | None:
    """Return the whole number above zero in a variable; warn of anything else, which is ignored."""
    standard = Standard(os.environ)  # noqa: TID251
    found = standard.count(variable, most)
    standard.warnings = [f"{warning}; its default is used" for warning in standard.warnings]
    if variable == "OTEL_BSP_SCHEDULE_DELAY" and found is not None:
        standard.warnings += doubts_of_interval(variable, found)
    warn(standard)
    return found


def doubts_of_interval(variable: str, millis: int) -> list[str]:
    """Return a line where an interval is so short that whoever wrote it may have meant seconds."""
    if millis > MOST_AS_SECONDS:
        return []
    return [f"{variable} holds {millis}: {millis} milliseconds; where you mean seconds, write {millis * 1_000}"]


def resource_attributes() -> dict[str, str]:
    """Return the attributes that OTEL_RESOURCE_ATTRIBUTES gives the service; what is broken in it, `readable` says."""
    return Standard(os.environ).attributes()  # noqa: TID251
