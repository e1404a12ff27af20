"""The OpenTelemetry Collector, which writes each span that it takes into its log, and toxiproxy to cut it off."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from meshmw.testing import OtlpReceiver, ReceivedSpan, free_port, render_tree, start_process, stop_processes

SECONDS = 60
READY = "Everything is ready. Begin running and processing data."
_FIELD = re.compile(r"    (\w[\w ]*?) *: (.*)")
_SERVICE = re.compile(r"     -> service\.name: Str\((.*)\)")


class Collector:
    """Runs the Collector that `recipes/jaeger` builds; a context manager.

    Args:
        program: Where it is.
        folder: Where its configuration and logs go.
        exporters: What it hands spans on to, beside its log, as its configuration has them.
        limit_mib: How much memory its memory limiter lets it have.
    """

    def __init__(
        self, program: Path, folder: Path, *, exporters: Mapping[str, Any] | None = None, limit_mib: int = 512
    ) -> None:
        self.limit_mib = limit_mib
        self._program, self._folder = program, folder
        self._exporters = dict(exporters or {})
        self._grpc, self._http = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self._logs: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Collector:
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            self.start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def grpc_endpoint(self) -> str:
        return f"http://{self._grpc}"

    @property
    def http_endpoint(self) -> str:
        return f"http://{self._http}"

    @property
    def log(self) -> str:
        """What it has written since it was first started."""
        return "".join(path.read_text(errors="replace") for path in self._logs)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The spans in its log, without times and attributes."""
        return spans_in(self.log)

    def start(self) -> None:
        """Start it on the same ports, and wait until it takes spans."""
        config = self._folder / "collector.yaml"
        config.write_text(json.dumps(self._configuration()))
        log = self._folder / f"collector-{len(self._logs)}.log"
        self._process = start_process([str(self._program), "--config", str(config)], log)
        self._logs.append(log)
        deadline = time.monotonic() + SECONDS
        while READY not in log.read_text(errors="replace"):
            assert self._process.poll() is None, f"the Collector ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the Collector is not ready:\n{log.read_text()[-2000:]}"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end; it hands on what it holds."""
        if self._process is not None:
            stop_processes([self._process])

    def kill(self) -> None:
        """End it at once; its ports refuse."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait_for(self, wanted: Callable[[list[ReceivedSpan]], object]) -> list[ReceivedSpan]:
        """Wait until its log shows what is wanted, and return all spans in it."""
        deadline = time.monotonic() + SECONDS
        while not wanted(spans := self.spans):
            assert time.monotonic() < deadline, render_tree(spans)
            time.sleep(0.05)
        return spans

    def _configuration(self) -> dict[str, Any]:
        debug = {"verbosity": "detailed", "use_internal_logger": False}
        return {
            "receivers": {
                "otlp": {"protocols": {"grpc": {"endpoint": self._grpc}, "http": {"endpoint": self._http}}},
            },
            "processors": {
                "memory_limiter": {"check_interval": "50ms", "limit_mib": self.limit_mib, "spike_limit_mib": 1},
                "batch": {"timeout": "50ms"},
            },
            "exporters": {"debug": debug, **self._exporters},
            "service": {
                "pipelines": {
                    "traces": {
                        "receivers": ["otlp"],
                        # The limiter first: what `batch` has taken is accepted, and no client hears of its fate.
                        "processors": ["memory_limiter", "batch"],
                        "exporters": ["debug", *self._exporters],
                    }
                },
                # Its own metrics would take a fixed port.
                "telemetry": {"metrics": {"level": "none"}},
            },
        }


def spans_in(log: str) -> list[ReceivedSpan]:
    """Read what the debug exporter writes of each span at its most verbose."""
    found: list[dict[str, str]] = []
    service = scope = ""
    for line in log.splitlines():
        if named := _SERVICE.fullmatch(line):
            service = named[1]
        elif line.startswith("InstrumentationScope "):
            scope = line.split(" ")[1]
        elif line.startswith("Span #"):
            found.append({"service": service, "scope": scope})
        elif found and (field := _FIELD.fullmatch(line)):
            found[-1][field[1]] = field[2]
    # The last one may not be written to its end.
    return [_span(fields) for fields in found if "Status message" in fields]


def _span(fields: Mapping[str, str]) -> ReceivedSpan:
    return ReceivedSpan(
        service=fields["service"],
        name=fields["Name"],
        kind=fields["Kind"].upper(),
        trace_id=fields["Trace ID"],
        span_id=fields["ID"],
        parent_id=fields["Parent ID"],
        start_ns=0,
        end_ns=0,
        scope=fields["scope"],
        status=fields["Status code"].upper(),
        trace_state=fields.get("TraceState", ""),
    )


class Toward(OtlpReceiver):
    """Stands for a Collector where a mesh takes a receiver: services and sidecars report there."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector

    @property
    def grpc_endpoint(self) -> str:
        return self._collector.grpc_endpoint

    @property
    def http_endpoint(self) -> str:
        return self._collector.http_endpoint


class Toxiproxy:
    """Runs toxiproxy with one proxy before a place; a context manager.

    Args:
        program: Where it is.
        folder: Where its log goes.
        upstream: What the proxy leads to, such as `http://127.0.0.1:4317`.
    """

    def __init__(self, program: Path, folder: Path, upstream: str) -> None:
        self._program, self._log = program, folder / "toxiproxy.log"
        self._upstream = upstream.removeprefix("http://")
        self._listen = f"127.0.0.1:{free_port()}"
        self._port = free_port()

    def __enter__(self) -> Toxiproxy:
        command = [str(self._program), "-host", "127.0.0.1", "-port", str(self._port)]
        self._process = start_process(command, self._log)
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", trust_env=False)
        with contextlib.ExitStack() as stack:
            stack.push(self.__exit__)
            self._wait_until_it_answers()
            self._send("/proxies", {"name": "collector", "listen": self._listen, "upstream": self._upstream})
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        stop_processes([self._process])

    @property
    def endpoint(self) -> str:
        return f"http://{self._listen}"

    def cut(self) -> None:
        """Refuse connections, and break those that are open."""
        self._send("/proxies/collector", {"enabled": False})

    def poison(self, kind: str, stream: str = "downstream", **attributes: int) -> None:
        """Add a toxic to every connection, by its name in toxiproxy."""
        self._send("/proxies/collector/toxics", {"type": kind, "stream": stream, "attributes": attributes})

    def heal(self) -> None:
        """Be a plain proxy again."""
        self._send("/reset", {})

    def _send(self, path: str, body: Mapping[str, Any]) -> None:
        self._api.post(path, json=dict(body)).raise_for_status()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + SECONDS
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return self._api.get("/version").status_code == 200
        except httpx.HTTPError:
            return False
