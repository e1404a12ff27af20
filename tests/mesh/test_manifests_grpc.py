"""The sidecars of the composition, run by themselves: a gRPC call to the sample's pricing-service, in one trace."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from pathlib import Path

import grpc
import pytest
import yaml
from opentelemetry.sdk.trace import TracerProvider

from meshmw import MeshPropagator
from meshmw.grpc import TraceContextClientInterceptor
from meshmw.testing import (
    OtlpReceiver,
    assert_child_of,
    find_envoy,
    find_span,
    free_port,
    start_process,
    stop_processes,
)
from tests.programs import clean_environment

ROOT = Path(__file__).parents[2]
ENVOYS = ROOT / "sample_apps/mesh/compose/envoy"
SECONDS = 60


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def moved(node, to):
    """A configuration in which each address that is named stands on this machine, at the port given for it."""
    if isinstance(node, dict):
        if "port_value" in node:
            return {"address": "127.0.0.1", "port_value": to[node["address"], node["port_value"]]}
        return {key: moved(value, to) for key, value in node.items()}
    return [moved(value, to) for value in node] if isinstance(node, list) else node


@pytest.fixture
def run_sidecar(tmp_path):
    """Runs one of the composition's Envoys with its addresses moved."""
    with contextlib.ExitStack() as stack:

        def run(name, to, port):
            config = tmp_path / f"{name}.json"
            config.write_text(json.dumps(moved(yaml.safe_load((ENVOYS / f"{name}.yaml").read_text()), to)))
            command = [str(find_envoy()), "--disable-hot-restart", "--concurrency", "1", "-c", str(config)]
            wait_for(stack, start_process(command, tmp_path / name), port, tmp_path / name)

        yield run


def wait_for(stack, process, port, log):
    stack.callback(stop_processes, [process])
    deadline = time.monotonic() + SECONDS
    while not accepts(port):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


@pytest.fixture
def receiver():
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def pricing(tmp_path, receiver):
    port = free_port()
    environment = clean_environment() | {
        "PRICING_PORT": str(port),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
    }
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "sample_apps.pricing"]
        process = start_process(command, tmp_path / "service", environment=environment, cwd=ROOT)
        wait_for(stack, process, port, tmp_path / "service")
        yield port


@pytest.mark.usefixtures("envoys")
def test_checkouts_sidecar_passes_a_grpc_call_on_to_pricings_in_one_trace(run_sidecar, pricing, receiver):
    collector = int(receiver.grpc_endpoint.rpartition(":")[2])
    inbound, rpc = free_port(), free_port()
    beside = {("collector", 4317): collector, ("127.0.0.1", 9901): 0}
    run_sidecar("pricing", beside | {("0.0.0.0", 9000): inbound, ("127.0.0.1", 8000): pricing}, inbound)
    unused = {("0.0.0.0", 9000): free_port(), ("127.0.0.1", 9001): free_port(), ("127.0.0.1", 8000): 9}
    ways = {("127.0.0.1", 9002): rpc, ("pricing", 9000): inbound, ("inventory", 9000): 9}
    run_sidecar("checkout", beside | unused | ways, rpc)

    target = f"127.0.0.1:{rpc}"
    tracer_provider = TracerProvider()
    interceptor = TraceContextClientInterceptor(target, tracer_provider=tracer_provider, propagator=MeshPropagator())
    with grpc.insecure_channel(target) as channel:
        quote = grpc.intercept_channel(channel, interceptor).unary_unary("/shop.Pricing/Quote")
        with tracer_provider.get_tracer("t").start_as_current_span("client") as client:
            answer = quote(json.dumps({"item": "teapot"}).encode(), wait_for_ready=True, timeout=SECONDS)
    assert json.loads(answer) == {"item": "teapot", "price": "19.90"}
    names = {"checkout-sidecar", "pricing-sidecar", "pricing-service"}
    spans = receiver.wait_for(lambda spans: names <= {span.service for span in spans})
    caller, callee, service = (
        find_span(spans, service=name) for name in ("checkout-sidecar", "pricing-sidecar", "pricing-service")
    )
    assert_child_of(callee, caller)
    assert_child_of(service, callee)
    assert {span.trace_id for span in spans} == {f"{client.get_span_context().trace_id:032x}"}
