"""Sends what the demonstration records to a Jaeger, which it starts or which runs already, and links to its traces."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshmw._tools.http_client import HttpError, exchange
from meshmw._tools.verify.evidence import jaeger_link
from meshmw.testing import OtlpReceiver, ReceivedSpan, free_port, start_process, stop_processes
from sample_apps import NotReadyError

# In the place of an address: the demonstration starts one.
OWN = "own"
# Where it takes OTLP over HTTP by default.
OTLP_PORT = 4318
# In one container: its user interface and OTLP over HTTP.
REMEDY = "docker run --rm -p 16686:16686 -p 4318:4318 jaegertracing/jaeger"
STORE = "memory"


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

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self._sending.shutdown()

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
        raise NotReadyError(f"--jaeger takes a URL such as http://127.0.0.1:16686, or {OWN}, not {url!r}")
    return f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname


def find_jaeger() -> str:
    """Return the program of Jaeger, version 2: what MESHMW_JAEGER names, else `jaeger` on the PATH."""
    # It is no setting of meshmw's, which would say so where the demonstration's client reads its own.
    name = os.environ.pop("MESHMW_JAEGER", "") or "jaeger"
    program = shutil.which(name)
    if program is None:
        raise NotReadyError(
            f"--jaeger: {name!r} is not a program that can be run here: download Jaeger 2 from "
            f"https://www.jaegertracing.io/download/ and name it in MESHMW_JAEGER, or run  {REMEDY}  and give "
            "--jaeger=http://127.0.0.1:16686"
        )
    return str(Path(program).absolute())


@contextlib.contextmanager
def running_jaeger(program: str, say: Callable[[str], None] = lambda what: None) -> Iterator[str]:
    """Run Jaeger on free ports with its store in memory, and return its address, as `JaegerReceiver` takes it."""
    page, otlp = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="sample-apps-jaeger-", ignore_cleanup_errors=True) as folder:
        config, log = Path(folder, "config.yaml"), Path(folder, "log")
        # All JSON is YAML.
        config.write_text(json.dumps(configuration(_place(page), _place(otlp))))
        say(f"starting {program}")
        process = start_process([program, "--config", str(config)], log)
        try:
            _wait_until_served(lambda: process.poll() is not None, (page, otlp), log)
            yield f"{page},{otlp}"
        finally:
            stop_processes([process])


def _place(url: str) -> str:
    return url.removeprefix("http://")


def configuration(page: str, otlp: str) -> dict[str, Any]:
    """Return what Jaeger is to be: OTLP in, the newest traces in memory, its user interface, and no other port."""

    def endpoint(place: str = "") -> dict[str, str]:
        return {"endpoint": place or f"127.0.0.1:{free_port()}"}

    # Its query service would trace itself, and send that to port 4317, whoever listens there.
    query = {"storage": {"traces": STORE}, "http": endpoint(page), "grpc": endpoint(), "enable_tracing": False}
    return {
        "receivers": {"otlp": {"protocols": {"http": endpoint(otlp), "grpc": endpoint()}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": STORE}},
        "extensions": {
            "jaeger_storage": {"backends": {STORE: {"memory": {"max_traces": 10_000}}}},
            "jaeger_query": query,
        },
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}},
        },
    }


def _wait_until_served(has_ended: Callable[[], bool], urls: Iterable[str], log: Path, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    for url in urls:
        while not _answers(url):
            if has_ended() or time.monotonic() > deadline:
                lines = log.read_text(errors="replace").splitlines()
                raise NotReadyError(f"--jaeger: it did not start: {lines[-1] if lines else 'it said nothing'}")
            time.sleep(0.05)


def _answers(url: str) -> bool:
    # Any answer: OTLP's port has no page.
    with contextlib.suppress(HttpError):
        exchange("GET", url, timeout=1)
        return True
    return False
