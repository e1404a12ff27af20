"""The `OTEL_EXPORTER_OTLP_*` variables that say how one signal travels, in a form that its exporter takes as arguments.

The SDK's exporters read them too, each in its own way: they stop at some values, log a broken header whole, and take
milliseconds for seconds. So whoever makes an exporter does so within `exporting`, which reads all of them and keeps
them out of the environment meanwhile. The variable of a signal wins over the one for all, field by field.

Where the specification gains a variable, name it in `_PARTS` and read it in `_Reader.options`.
https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

from meshmw._notices import quoted
from meshmw._regex import compiled_late
from meshmw.settings._sdk import LARGEST, MOST_SECONDS, hidden, readable_values, replaced
from meshmw.settings._standard import MOST_AS_SECONDS, Standard, decoded, say

T = TypeVar("T")
Signal: TypeAlias = Literal["TRACES", "METRICS"]

_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_PYTHON: Final = "OTEL_PYTHON_EXPORTER_OTLP_"
_PARTS: Final = (
    "ENDPOINT",
    "INSECURE",
    "CERTIFICATE",
    "CLIENT_KEY",
    "CLIENT_CERTIFICATE",
    "HEADERS",
    "TIMEOUT",
    "COMPRESSION",
)
_RETRYABLE: Final = f"{_PYTHON}GRPC_RETRYABLE_ERROR_CODES"
# Of what makes the batches: how long one of them may take, by the specification.
_OF_BATCHES: Final[Mapping[Signal, str]] = {
    "TRACES": "OTEL_BSP_EXPORT_TIMEOUT",
    "METRICS": "OTEL_METRIC_EXPORT_TIMEOUT",
}

_DEFAULT_SECONDS: Final = 10.0
# From one second on, milliseconds are plain.
_PLAIN_MILLISECONDS: Final = 1_000
_NUMBER: Final = compiled_late(r"[0-9]{1,10}(?:\.[0-9]{1,9})?")

# RFC 9110, section 5.6.2; and gRPC's own, over HTTP/2.
_TOKEN: Final = compiled_late(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_METADATA_KEY: Final = compiled_late(r"[0-9a-z_.-]+")
_HEADER_VALUE: Final = compiled_late(r"[\x20-\x7e]*")
# These belong to the message that the exporter makes; gRPC drops some of them, and a server breaks off at others.
_RESERVED: Final = {
    "connection", "content-encoding", "content-length", "content-type", "te", "transfer-encoding", "upgrade"
}  # fmt: skip
_STATUS_CODES: Final = {
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
    "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip


class Held(NamedTuple):
    """Holds what a variable holds, and which one it is.

    Attributes:
        variable: The variable.
        value: Its value.
    """

    variable: str
    value: str


class OtlpOptions:
    """Says how one signal travels. It does not show itself, for headers may hold keys.

    Attributes:
        timeout: The seconds that one export may take.
        compression: `none`, `gzip`, or over HTTP also `deflate`.
        headers: The headers, with names in lower case.
        certificate: The file of the authorities that are trusted, or None for the system's.
        client_certificate: The file of this client's certificate, or None.
        client_key: The file of its key, or None; it goes with a certificate.
        provider: The name of what makes the credentials, or None.
    """

    def __init__(
        self,
        *,
        timeout: float,
        compression: str,
        headers: Mapping[str, str],
        certificate: str | None,
        client_certificate: str | None,
        client_key: str | None,
        provider: Held | None,
    ) -> None:
        self.timeout = timeout
        self.compression = compression
        self.headers = headers
        self.certificate = certificate
        self.client_certificate = client_certificate
        self.client_key = client_key
        self.provider = provider


@contextmanager
def exporting(signal: Signal, *, http: bool, secure: bool) -> Iterator[OtlpOptions]:
    """Return what the variables say of one signal, say what is ignored in them, and hide them meanwhile.

    Args:
        signal: `TRACES` or `METRICS`.
        http: Whether it travels over HTTP, and not over gRPC.
        secure: Whether it speaks TLS; where it does not, nobody looks at certificates.
    """
    reader = _Reader(os.environ, signal, http)  # noqa: TID251
    options = reader.options(secure=secure)
    codes = reader.retryable()
    for level, line in reader.lines:
        say(line, level)
    with hidden(*_names(signal, http)), replaced({_RETRYABLE: codes}):
        yield options


def export_seconds(signal: Signal, *, http: bool) -> float:
    """Return the seconds that one export of a signal may take; nothing is said of its variables."""
    return _Reader(os.environ, signal, http).timeout()  # noqa: TID251


def is_insecure(signal: Signal) -> bool:
    """Say whether gRPC speaks without TLS to an address without a scheme; nothing is said of the variables."""
    return _Reader(os.environ, signal, http=False).insecure()  # noqa: TID251


def _names(signal: Signal, http: bool) -> Iterator[str]:
    for part in _PARTS:
        yield from (f"{_PREFIX}{signal}_{part}", f"{_PREFIX}{part}")
    yield from _providers(signal, http)


def _providers(signal: Signal, http: bool) -> tuple[str, str]:
    prefix = f"{_PYTHON}{'HTTP' if http else 'GRPC'}_"
    return f"{prefix}{signal}_CREDENTIAL_PROVIDER", f"{prefix}CREDENTIAL_PROVIDER"


class _Reader:
    """Reads the variables of one signal, and keeps the lines that are to be said of them, each with its level."""

    def __init__(self, environ: Mapping[str, str], signal: Signal, http: bool) -> None:
        self.lines: list[tuple[int, str]] = []
        self._standard = Standard(environ)
        self._signal = signal
        self._http = http

    def options(self, *, secure: bool) -> OtlpOptions:
        if not self._http:
            # Whoever made the address has read it, without a word.
            self.insecure()
        plain = not secure
        certificate, key = (None, None) if plain else self._client()
        return OtlpOptions(
            timeout=self.timeout(),
            compression=self._compression(),
            headers=self._headers(),
            certificate=None if plain else self._authorities(),
            client_certificate=certificate,
            client_key=key,
            provider=None if plain and not self._http else self._first(*_providers(self._signal, self._http)),
        )

    def _warn(self, line: str) -> None:
        self.lines.append((logging.WARNING, line))

    def _first(self, *variables: str) -> Held | None:
        return next(self._held(*variables), None)

    def _held(self, *variables: str) -> Iterator[Held]:
        for variable in variables:
            value = self._standard.get(variable)
            if value:
                yield Held(variable, value)

    def _both(self, part: str) -> tuple[str, str]:
        return f"{_PREFIX}{self._signal}_{part}", f"{_PREFIX}{part}"

    def _read(self, part: str, read: Callable[[str], T | None], takes: str, default: T) -> tuple[T, Held | None]:
        """Return the first value of use and the variable that holds it; the others are ignored, and that is said."""
        ignored = []
        found, used = default, None
        for held in self._held(*self._both(part)):
            value = read(held.value)
            if value is not None:
                found, used = value, held
                break
            ignored.append(held)
        for held in ignored:
            self._warn(
                f"{held.variable} holds {quoted(held.value)}, which is ignored; it takes {takes}; so it is {found}"
            )
        return found, used

    def timeout(self) -> float:
        takes = f"milliseconds from {MOST_AS_SECONDS + 1} to {LARGEST}, or seconds up to {MOST_AS_SECONDS}"
        seconds, held = self._read("TIMEOUT", _seconds, takes, _DEFAULT_SECONDS)
        if held is not None:
            self._say_what_was_understood(held, seconds)
        # What holds for a batch holds for its export.
        of_batches = _OF_BATCHES[self._signal]
        millis = readable_values({of_batches: self._standard.get(of_batches)})[0].get(of_batches)
        return min(seconds, MOST_SECONDS, MOST_SECONDS if millis is None else int(millis) / 1_000)

    def _say_what_was_understood(self, held: Held, seconds: float) -> None:
        number = float(held.value)
        unit = "as Python's SDK reads it" if number <= MOST_AS_SECONDS else "as the specification's milliseconds"
        line = f"{held.variable} holds {held.value}: {seconds:g} seconds, {unit}"
        if not number:
            self._warn(f"{held.variable} holds {held.value}: no limit, for which {MOST_SECONDS:g} seconds stand")
        elif seconds > MOST_SECONDS:
            self._warn(f"{line}; {MOST_SECONDS:g} seconds are used, the most that one export may take")
        elif MOST_AS_SECONDS < number < _PLAIN_MILLISECONDS:
            self._warn(f"{line}; where you mean seconds, write {number * 1_000:g}")
        else:
            self.lines.append((logging.INFO, line))

    def _compression(self) -> str:
        words = ("gzip", "none", *(["deflate"] if self._http else []))
        takes = f"{', '.join(words[:-1])} or {words[-1]}"
        return self._read("COMPRESSION", lambda text: text.lower() if text.lower() in words else None, takes, "none")[0]

    def insecure(self) -> bool:
        held = self._first(*self._both("INSECURE"))
        if held is not None and held.value.lower() not in ("true", "false"):
            self._warn(f"{held.variable} holds {quoted(held.value)}, which counts as false; it takes true or false")
        return held is not None and held.value.lower() == "true"

    def retryable(self) -> str | None:
        """Return the status codes after which gRPC tries again, or None for those of the specification."""
        held = None if self._http else self._first(_RETRYABLE)
        names = [] if held is None else [name for each in held.value.split(",") if (name := each.strip().upper())]
        for name in (each for each in names if each not in _STATUS_CODES):
            self._warn(f"{_RETRYABLE} holds {quoted(name)}, which is ignored; it takes gRPC's status codes")
        return ",".join(name for name in names if name in _STATUS_CODES) or None

    def _headers(self) -> dict[str, str]:
        held = self._first(*self._both("HEADERS"))
        found: dict[str, str] = {}
        items = [] if held is None else held.value.split(",")
        for number, item in enumerate(items, 1):
            if held is not None and item.strip():
                # Neither a value nor what stands where a name should is ever said: either may be a secret.
                self._header(item, f"{held.variable}: item {number} of {len(items)}", found)
        return found

    def _header(self, item: str, where: str, found: dict[str, str]) -> None:
        """Add one header, and say what is wrong with it."""
        key, equals, text = item.partition("=")
        name, value = (decoded(key.strip()) or "").strip().lower(), decoded(text.strip())
        fault = self._fault(name, equals)
        if fault:
            self._warn(f"{where} {fault}, and is ignored")
            return
        if value is None:
            self._warn(f"{where}, {name}, has a value that is not percent-encoded rightly: it is sent as it stands")
        value = (text if value is None else value).strip(" \t")
        if not _HEADER_VALUE().fullmatch(value):
            self._warn(f"{where}, {name}, has a value with characters that no header holds, and is ignored")
            return
        if name in found:
            self._warn(f"{where}, {name}, is there twice; the last one counts")
        found[name] = value

    def _fault(self, name: str, equals: str) -> str:
        if not equals or not (_TOKEN() if self._http else _METADATA_KEY()).fullmatch(name):
            return "is no key=value pair"
        if name in _RESERVED or (not self._http and name.startswith("grpc-")):
            return f"names {name}, which the exporter writes itself"
        return ""

    def _authorities(self) -> str | None:
        faults, found, instead = [], None, "the authorities of the system are trusted, and no other"
        for held in self._held(*self._both("CERTIFICATE")):
            fault = _fault_of_file(
                held, lambda path: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
            )
            if not fault:
                found, instead = held.value, f"those of {held.variable} are trusted"
                break
            faults.append(fault)
        for fault in faults:
            self._warn(f"{fault}; so {instead}")
        return found

    def _client(self) -> tuple[str | None, str | None]:
        """Return the files of the client's certificate and of its key; none where they do not go together."""
        certificate, key = self._file("CLIENT_CERTIFICATE"), self._file("CLIENT_KEY")
        without = "so this client shows no certificate"
        if certificate is None:
            if key is not None:
                self._warn(f"{key.variable} is ignored, because no variable names a certificate beside it; {without}")
            return None, None
        # One file may hold both.
        key_file = certificate if key is None else key
        try:
            # An empty passphrase, for OpenSSL would ask for one at the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate.value, key_file.value, "")
        except (OSError, ValueError):
            both = certificate.variable if key is None else f"{certificate.variable} and {key.variable}"
            fault = "hold no certificate in PEM with its key, or the key has a passphrase"
            self._warn(f"{both}: the files {fault}; {without}")
            return None, None
        return certificate.value, key_file.value

    def _file(self, part: str) -> Held | None:
        for held in self._held(*self._both(part)):
            fault = _fault_of_file(held, lambda path: None)
            if not fault:
                return held
            self._warn(fault)
        return None


def _seconds(text: str) -> float | None:
    number = float(text) if _NUMBER().fullmatch(text) else None
    if number is None or number > LARGEST:
        return None
    if not number:
        return MOST_SECONDS
    return number if number <= MOST_AS_SECONDS else number / 1_000


def _fault_of_file(held: Held, check: Callable[[str], object]) -> str:
    """Return what is wrong with the file that a variable names, or an empty text."""
    path = Path(held.value)
    why = "it is no file"
    try:
        if path.is_file():
            with path.open("rb"):
                check(held.value)
            return ""
        if not path.exists():
            why = "there is no such file"
    except ssl.SSLError:
        why = "the file holds no certificate in PEM"
    except OSError as error:
        why = error.strerror or "the file cannot be read"
    return f"{held.variable} holds {quoted(held.value, 200)}, which is ignored: {why}"
