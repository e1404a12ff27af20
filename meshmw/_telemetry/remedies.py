"""What helps where an export fails, by what the failure says of itself. Imported when the first one does."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_CERTIFICATE: Final = (
    "its certificate is not trusted: name the file of its authority in OTEL_EXPORTER_OTLP_CERTIFICATE, and write the "
    "host that the certificate names"
)
_CLIENT: Final = (
    "it asks for a certificate of this client: name its files in OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and "
    "OTEL_EXPORTER_OTLP_CLIENT_KEY"
)
_NO_TLS: Final = "does not speak TLS: {write_http}set OTEL_EXPORTER_OTLP_INSECURE=true for an address without a scheme"
_OVER_HTTP: Final = "it speaks HTTP/1, and not gRPC: set MESHMW_EXPORTER=otlp-http, or write its port of gRPC"
_OVER_GRPC: Final = "it speaks gRPC, and not HTTP/1: set MESHMW_EXPORTER=otlp, or write its port of HTTP"

_GUESS: Final = "where it"

# What grpcio, urllib3 and OpenSSL say, and what then helps; the first that fits. Where nothing but a closed connection
# is seen, TLS is one reason among others.
_WITH_TLS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in (
        (r"CERTIFICATE.VERIFY.FAILED|hostname (?:mismatch|verification)|doesn't match", _CERTIFICATE),
        (r"CERTIFICATE.REQUIRED|alert bad certificate|ALERT_BAD_CERTIFICATE|HANDSHAKE_FAILURE", _CLIENT),
        (r"WRONG.VERSION.NUMBER|record layer failure|unknown protocol|\bHTTP.REQUEST\b", f"it {_NO_TLS}"),
        (r"handshake|EOF|socket closed|connection (?:aborted|reset)", f"{_GUESS} {_NO_TLS}"),
    )
)
_SURELY_WITH_TLS: Final = _WITH_TLS[:3]
_WITHOUT_TLS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in (
        (r"frame type (?:79|80|84)\b|frame.{0,40}HTTP/1", _OVER_HTTP),
        (r"BadStatusLine\(.{0,8}\\x00", _OVER_GRPC),
        (
            r"socket closed|closed connection|connection (?:aborted|reset)|broken pipe|batch code: 400|parsing HTTP/2",
            f"{_GUESS} speaks TLS: {{write_https}}",
        ),
    )
)


def remedy_for(endpoint: str, reason: str, *, has_arrived: bool = False) -> str:
    """Return what helps against the failure of an export, or an empty text where nothing in its words says it.

    Args:
        endpoint: The collector's address, as it stands in the log.
        reason: What the exporter says.
        has_arrived: Whether an export has arrived before: a connection that closes is then no sign of TLS.
    """
    parts = urlsplit(endpoint)
    rules = {"http": _WITHOUT_TLS, "https": _WITH_TLS}.get(parts.scheme, _SURELY_WITH_TLS)
    for pattern, remedy in rules:
        if pattern.search(reason) and not (has_arrived and remedy.startswith(_GUESS)):
            # An address of gRPC's own, such as `unix:/run/otel.sock`, takes no scheme.
            write_http = f"write http://{parts.netloc}, or " if parts.netloc else ""
            return remedy.format(write_http=write_http, write_https=f"write https://{parts.netloc}")
    return ""
