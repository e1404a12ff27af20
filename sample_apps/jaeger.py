"""Sends what the demonstration records to a Jaeger that runs already, and says where it shows a trace."""

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from meshmw._tools.http_client import HttpError, exchange
from meshmw._tools.verify.evidence import jaeger_link
from meshmw.testing import OtlpReceiver, ReceivedSpan
from sample_apps import NotReadyError

# Where it takes OTLP over HTTP by default.
OTLP_PORT = 4318
# In one container: its user interface and OTLP over HTTP.
REMEDY = "docker run --rm -p 16686:16686 -p 4318:4318 jaegertracing/jaeger"


class JaegerReceiver(OtlpReceiver):
    """A collector that hands each export on.

    Args:
        address: Jaeger's user interface, such as `http://127.0.0.1:16686`, and after a comma, where it is not port 4318
            of the same host, the URL at which it takes OTLP over HTTP.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.page, _, otlp = address.partition(",")
        host = _host(self.page)
        self.otlp = (otlp or f"http://{host}:{OTLP_PORT}").rstrip("/")
        _host(self.otlp)
        # Order is kept, and no service waits.
        self._sending = ThreadPoolExecutor(1, "jaeger")

    def require(self) -> None:
        """See before anything starts that it takes spans; an empty export is one too."""
        try:
            self._post(b"")
        except HttpError as error:
            raise NotReadyError(f"--jaeger: {self.otlp} takes no spans ({error}): run  {REMEDY}") from None

    def take(self, request: Any) -> None:
        super().take(request)
        self._sending.submit(self._send, request.SerializeToString())

    def links(self, spans: Iterable[ReceivedSpan]) -> list[str]:
        return [jaeger_link(self.page, each) for each in dict.fromkeys(span.trace_id for span in spans)]

    def _send(self, body: bytes) -> None:
        try:
            self._post(body)
        except HttpError as error:
            print(f"jaeger   lost spans: {error}", file=sys.stderr)

    def _post(self, body: bytes) -> None:
        headers = {"content-type": "application/x-protobuf"}
        answer = exchange("POST", f"{self.otlp}/v1/traces", headers=headers, content=body)
        if answer.status_code >= 300:
            raise HttpError(f"it answered {answer.status_code}")


def _host(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NotReadyError(f"--jaeger takes a URL such as http://127.0.0.1:16686, not {url!r}")
    return f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
