"""What becomes of a trace between the proxies that Istio's control plane configures and services of meshmw."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshmw._tools.doctor.process import ProcessFacts
from meshmw._tools.doctor.proxy import ask_proxy
from meshmw.testing import OtlpReceiver
from tests.real.istio import (
    Pod,
    Shop,
    zipkin_bootstrap,
)
from tests.real.istio_shops import (
    EVERY_HOP,
    Client,
    Start,
    chain,
    diagnosed,
    judged,
)


@pytest.mark.parametrize("name", ["otel", "otel-http", "zipkin-w3c"])
def test_one_request_is_one_trace(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    client: Client,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
) -> None:
    proxies = start(*shops[name].pods())
    seen = shops[name].get(client.headers)
    spans = client.spans(receiver, len(EVERY_HOP))
    assert chain(spans, client.span_id) == EVERY_HOP
    assert len(spans) == len(EVERY_HOP)
    assert seen["inventory"]["tracestate"] == "vendor=1"
    for proxy in proxies.values():
        assert diagnosed(proxy, facts) == set()
    assert judged(shops[name], receiver, tmp_path) == set()


def test_a_request_without_a_trace_is_one_trace_too(
    start: Start, shops: dict[str, Shop], receiver: OtlpReceiver
) -> None:
    start(*shops["otel"].pods())
    seen = shops["otel"].get([])
    trace_id = seen["inventory"]["traceparent"].split("-")[1]
    spans = Client(trace_id).spans(receiver, len(EVERY_HOP))
    assert chain(spans, "") == EVERY_HOP


def test_zipkin_alone_speaks_b3_alone(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    proxies = start(*shops["zipkin"].pods())
    seen = shops["zipkin"].get(client.headers)
    assert seen["checkout"]["x-b3-traceid"] != client.trace_id
    assert seen["checkout"]["traceparent"] == client.traceparent
    assert diagnosed(proxies["checkout"], facts) == {"formats.differ"}
    assert judged(shops["zipkin"], receiver, tmp_path) == {"formats.differ"}


def test_the_tracer_of_the_bootstrap(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts
) -> None:
    """The legacy way: no provider anywhere, `enableTracing`, and a tracer that the agent wrote."""
    shop = shops["bootstrap"]
    address = receiver.http_endpoint.removeprefix("http://")
    proxies = start(*shop.pods(bootstrap=zipkin_bootstrap(address)))
    seen = shop.get(client.headers)
    assert "provider" not in proxies["checkout"].managers()["INBOUND"]["tracing"]
    assert seen["checkout"]["x-b3-traceid"] != client.trace_id
    assert seen["checkout"]["traceparent"] == client.traceparent
    assert diagnosed(proxies["checkout"], facts) == {"formats.differ"}


def test_the_default_of_one_percent_clears_the_flag_which_meshmw_follows(
    start: Start,
    shops: dict[str, Shop],
    client: Client,
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shop = shops["one-percent"]
    proxies = start(*shop.pods())
    assert proxies["checkout"].managers()["INBOUND"]["tracing"]["random_sampling"] == {"value": 1}
    seen = [shop.get(client.headers) for _ in range(6)]
    cleared = [each for each in seen if each["checkout"]["traceparent"].endswith("-00")]
    # Of six requests all keep their flag once in 10^12 times.
    assert cleared
    assert all(each["inventory"]["traceparent"].endswith("-00") for each in cleared)
    assert all(each["checkout"]["traceparent"].split("-")[1] == client.trace_id for each in seen)
    for proxy in proxies.values():
        assert diagnosed(proxy, facts) >= {"sampling.proxy-clears-the-flag"}
    assert judged(shop, receiver, tmp_path) == {"sampling.proxy-clears-the-flag"}


def test_a_rate_in_telemetry(start: Start, shops: dict[str, Shop], client: Client, facts: ProcessFacts) -> None:
    proxies = start(*shops["none"].pods())
    seen = shops["none"].get(client.headers)
    assert seen["checkout"]["traceparent"].endswith("-00")
    assert "sampling.proxy-clears-the-flag" in diagnosed(proxies["gateway"], facts)


def test_sampling_by_the_parent_keeps_the_flag_at_one_percent(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    shop = shops["by-parent"]
    proxies = start(*shop.pods())
    for _ in range(6):
        seen = shop.get(client.headers)
        assert seen["checkout"]["traceparent"].endswith("-01")
        assert seen["inventory"]["traceparent"].endswith("-01")
    for proxy in proxies.values():
        assert "sampling.proxy-clears-the-flag" not in diagnosed(proxy, facts)
    assert judged(shop, receiver, tmp_path) == set()


def test_proxies_that_send_no_headers_of_their_own(
    start: Start, shops: dict[str, Shop], client: Client, receiver: OtlpReceiver, facts: ProcessFacts, tmp_path: Path
) -> None:
    shop = shops["silent"]
    proxies = start(*shop.pods())
    seen = shop.get(client.headers)
    assert seen["checkout"]["traceparent"] == client.traceparent
    spans = client.spans(receiver, len(EVERY_HOP))
    assert sum(span.parent_id == client.span_id for span in spans) > 1
    assert "proxy.injects-nothing" in diagnosed(proxies["checkout"], facts)
    assert judged(shop, receiver, tmp_path) == {"proxy.injects-nothing"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("misspelt", "telemetry.provider-missing"),
        ("no-tracer", "telemetry.provider-cannot-trace"),
        ("rate-alone", "telemetry.no-provider"),
    ],
)
def test_tracing_that_istiod_switches_off_in_silence(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
    code: str,
) -> None:
    shop = shops[name]
    (proxy,) = start(Pod("checkout", name, shop.checkout)).values()
    assert "tracing" not in proxy.managers()["INBOUND"]
    assert diagnosed(proxy, facts) == {"proxy.no-tracing"}
    assert judged(shop, receiver, tmp_path) == {code}


def test_proxies_that_report_nothing_trace_nothing(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    client: Client,
    facts: ProcessFacts,
    tmp_path: Path,
) -> None:
    shop = shops["unreported"]
    proxies = start(*shop.pods())
    assert shop.get(client.headers)["checkout"]["traceparent"] == client.traceparent
    for proxy in proxies.values():
        assert "tracing" not in next(iter(proxy.managers().values()))
        assert diagnosed(proxy, facts) == {"proxy.no-tracing"}
    assert judged(shop, receiver, tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "version", "refuses"),
    [
        ("otel", "1.32.0", False),
        ("otel-http", "1.32.0", False),
        ("zipkin-w3c", "1.32.0", True),
        ("zipkin-w3c", "1.28.0", True),
    ],
)
def test_a_collector_that_the_egress_leaves_out(
    start: Start,
    shops: dict[str, Shop],
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
    version: str,
    refuses: bool,
) -> None:
    shop = shops[f"narrow-{name}"]
    (proxy,) = start(Pod("checkout", shop.namespace, shop.checkout, version=version)).values()
    config = ask_proxy(proxy.admin_url)
    assert bool(config.refused) == refuses
    assert judged(shop, receiver, tmp_path) == {"egress.collector-missing"}
    assert diagnosed(proxy, facts) - {"proxy.lacks"} == (
        {"proxy.refused-listener"} if refuses else {"exporter.proxy-no-cluster"}
    )


@pytest.mark.parametrize("name", ["removes", "removes-b3"])
def test_a_virtual_service_that_removes_and_adds_headers(
    start: Start,
    shops: dict[str, Shop],
    client: Client,
    receiver: OtlpReceiver,
    facts: ProcessFacts,
    tmp_path: Path,
    name: str,
) -> None:
    """By weight, so that Envoy is told to in each of several destinations."""
    shop = shops[name]
    proxies = start(*shop.pods())
    seen = shop.get(client.headers)["inventory"]
    assert seen["x-added"] == "istio"
    assert "baggage" not in seen
    # The OpenTelemetry tracer writes it again.
    assert ("traceparent" in seen) == (name == "removes")
    assert "headers.removed" in diagnosed(proxies["checkout"], facts)
    assert "headers.removed" in judged(shop, receiver, tmp_path)
