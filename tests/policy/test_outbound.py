"""Which host gets what, at every hop; and a request is never made too big for the proxies on its way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from typing import Any

import httpx
import pytest
from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from meshmw import MeshPropagator
from meshmw.httpx import TraceContextTransport

INBOUND = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "baggage": "user=alice;p=1,tenant=5",
    "x-request-id": "abc",
}


def sent_to(
    url: str,
    propagator: MeshPropagator,
    *,
    headers: dict[str, str] | None = None,
    redirect: str | None = None,
    provider: TracerProvider | None = None,
    inbound: dict[str, str] = INBOUND,
) -> httpx.Headers:
    """Send a request within the context of an inbound one, and return the headers of its last hop."""
    got: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        got.append(request)
        return (
            httpx.Response(302, headers={"location": redirect}) if redirect and len(got) == 1 else httpx.Response(200)
        )

    transport = TraceContextTransport(
        httpx.MockTransport(answer), propagator=propagator, tracer_provider=provider or TracerProvider()
    )
    token = otel_context.attach(propagator.extract(inbound))
    try:
        with httpx.Client(transport=transport, follow_redirects=True) as client:
            client.get(url, headers=headers)
    finally:
        otel_context.detach(token)
    return got[-1].headers


class TestScope:
    @pytest.mark.parametrize(
        "url", ["http://inventory", "http://a.default.svc.cluster.local:81/x", "http://10.1.2.3", "http://[fd00::1]:80"]
    )
    def test_a_host_in_the_mesh_gets_all(self, url: str) -> None:
        headers = sent_to(url, MeshPropagator())
        assert headers["baggage"] == INBOUND["baggage"]
        assert headers["x-request-id"] == "abc"
        assert headers["x-meshmw-sent"] == headers["traceparent"][36:]
        assert headers["traceparent"].startswith(INBOUND["traceparent"][:35])

    def test_a_stranger_gets_the_trace_and_no_baggage_which_is_said_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        propagator = MeshPropagator()
        for _ in range(2):
            headers = sent_to("https://api.example.com", propagator, headers={"Baggage": "by=hand"})
            assert "baggage" not in headers
            assert "x-meshmw-sent" not in headers
            assert headers["traceparent"].startswith(INBOUND["traceparent"][:35])
            assert headers["x-request-id"] == "abc"
        (line,) = [record.getMessage() for record in caplog.records if "api.example.com" in record.getMessage()]
        assert "MESHMW_BAGGAGE_TO" in line
        assert "alice" not in caplog.text

    def test_hosts_are_named_for_a_while_only(self, caplog: pytest.LogCaptureFixture) -> None:
        propagator = MeshPropagator()
        for number in range(300):
            sent_to(f"https://{number}.example.com", propagator)
        assert len([r for r in caplog.records if "is not in the mesh" in r.getMessage()]) == 256

    def test_a_host_out_of_scope_gets_nothing_not_even_what_the_caller_wrote(self) -> None:
        by_hand = {"Traceparent": INBOUND["traceparent"], "B3": "0", "baggage": "by=hand", "x-request-id": "mine"}
        headers = sent_to("https://api.example.com", MeshPropagator(propagate_to=["mesh"]), headers=by_hand)
        assert not {"traceparent", "tracestate", "b3", "baggage", "x-meshmw-sent"} & headers.keys()
        assert headers["x-request-id"] == "mine"

    def test_a_host_out_of_scope_does_not_get_the_request_id_either(self) -> None:
        assert "x-request-id" not in sent_to("https://api.example.com", MeshPropagator(propagate_to=["mesh"]))

    @pytest.mark.parametrize("propagate_to", [["*"], ["mesh"]])
    def test_a_redirect_to_a_stranger_takes_nothing_along_that_he_is_not_to_get(self, propagate_to: list[str]) -> None:
        propagator = MeshPropagator(propagate_to=propagate_to)
        by_hand = {"baggage": "by=hand", "traceparent": INBOUND["traceparent"]}
        headers = sent_to("http://shop/", propagator, headers=by_hand, redirect="https://evil.example/")
        assert "baggage" not in headers
        assert ("traceparent" in headers) == (propagate_to == ["*"])

    def test_baggage_goes_where_the_setting_sends_it(self) -> None:
        propagator = MeshPropagator(baggage_to=[".example.com"])
        assert sent_to("https://api.example.com", propagator)["baggage"] == INBOUND["baggage"]
        assert "baggage" not in sent_to("http://inventory", propagator)

    def test_what_is_said_of_the_call_is_said_anew(self) -> None:
        provider = TracerProvider(sampler=ALWAYS_OFF)
        stale = {"X-Meshmw-Sent": "3333333333333333-01"}
        headers = sent_to("http://shop", MeshPropagator(), headers=stale, provider=provider)
        assert headers.get_list("x-meshmw-sent") == [headers["traceparent"][36:]]
        assert headers["x-meshmw-sent"].endswith("-00")


class TestBudget:
    def test_baggage_gives_way_before_a_proxy_refuses_the_request(self, caplog: pytest.LogCaptureFixture) -> None:
        propagator = MeshPropagator(header_budget=(2_500, 100))
        with caplog.at_level(logging.WARNING):
            cookies = ({"cookie": "c" * length} for length in range(50, 300))
            sent = (sent_to("http://shop", propagator, headers=cookie)["baggage"] for cookie in cookies)
            assert next(baggage for baggage in sent if baggage != INBOUND["baggage"]) == "user=alice;p=1"
        assert propagator.rejections.counts == {("baggage", "header_budget"): 1}
        assert "1 members are not sent" in caplog.text
        assert "alice" not in caplog.text

    def test_where_other_headers_alone_are_too_big_it_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        propagator = MeshPropagator(header_budget=(2_500, 100))
        headers = sent_to("http://shop", propagator, headers={"cookie": "c" * 3000})
        assert "baggage" not in headers
        assert len(headers["cookie"]) == 3000
        assert "a proxy may answer 431" in caplog.text


class TestWhatTheCallerWrote:
    def test_baggage_by_hand_is_no_sign_of_a_proxy_that_strips(self, caplog: pytest.LogCaptureFixture) -> None:
        propagator = MeshPropagator()
        headers: dict[str, str] = {"baggage": "a=1"}
        propagator.inject(headers, Context())
        assert headers["baggage"] == "a=1"
        assert propagator.rejections.counts == {}
        assert not caplog.records

    @pytest.mark.parametrize("current", [{}, {"baggage": "b=2"}])
    def test_the_context_decides_of_baggage_by_hand_as_soon_as_it_holds_a_trace(self, current: dict[str, str]) -> None:
        propagator = MeshPropagator()
        context = propagator.extract({"traceparent": INBOUND["traceparent"], **current})
        headers: dict[str, str] = {"Baggage": "a=1"}
        propagator.inject(headers, context)
        assert {name: value for name, value in headers.items() if name.lower() == "baggage"} == current
        inbound = {"traceparent": INBOUND["traceparent"], **current}
        sent = sent_to("http://shop", propagator, headers={"Baggage": "a=1"}, inbound=inbound)
        assert sent.get("baggage") == current.get("baggage")

    def test_baggage_by_hand_is_the_callers_where_it_is_no_format_of_ours(self) -> None:
        propagator = MeshPropagator(["tracecontext"])
        headers: dict[str, str] = {"Baggage": "a=1"}
        propagator.inject(headers, propagator.extract(INBOUND))
        assert headers["Baggage"] == "a=1"

    def test_a_malformed_header_by_hand_is_said_to_be_the_callers(self, caplog: pytest.LogCaptureFixture) -> None:
        propagator = MeshPropagator()
        headers = {"Traceparent": "00-xyz", "x-meshmw-sent": "junk"}
        propagator.inject(headers, propagator.extract({}))
        assert headers == {}
        assert "written by hand on an outbound call, and is not sent" in caplog.text

    @pytest.mark.parametrize("inbound", [{}, {"baggage": "a=1"}, {"x-request-id": "a"}])
    @pytest.mark.parametrize("formats", [("tracecontext", "baggage"), ("b3",), ()])
    def test_nobody_else_says_what_our_client_sent(self, inbound: dict[str, str], formats: tuple[Any, ...]) -> None:
        propagator = MeshPropagator(formats)
        for name in ("x-meshmw-sent", "X-Meshmw-Sent"):
            headers = {name: "b7ad6b7169203331-01", "accept": "*/*"}
            propagator.inject(headers, propagator.extract(inbound))
            assert name not in headers
            assert headers["accept"] == "*/*"

    @pytest.mark.parametrize("formats", [("tracecontext", "baggage"), ("b3",), ("baggage",), ()])
    def test_what_is_malformed_does_not_go_out_whatever_the_formats(self, formats: tuple[Any, ...]) -> None:
        propagator = MeshPropagator(formats)
        headers = {"B3": "junk", "X-B3-Flags": "debug", "traceparent": "00-xyz", "tracestate": "=", "baggage": "=,a=1"}
        propagator.inject(headers, propagator.extract({}))
        assert headers == {"baggage": "a=1"}

    def test_what_was_said_of_another_call_does_not_stay_on_a_carrier(self) -> None:
        headers = {"X-Meshmw-Sent": "junk"}
        propagator = MeshPropagator()
        propagator.inject(headers, propagator.extract(INBOUND))
        assert headers.keys() == {"traceparent", "baggage", "x-request-id"}

    def test_a_key_that_is_no_text_is_left_out_and_nothing_raises(self) -> None:
        headers: dict[str, str] = {}
        context = baggage.set_baggage(7, "x", baggage.set_baggage("a", "1"))  # type: ignore[arg-type]
        MeshPropagator().inject(headers, context)
        assert headers == {"baggage": "a=1"}


class SeveralValues(MutableMapping[str, str]):
    """Keeps several values of one name, as the headers of many clients do; to delete a name removes them all."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = list(pairs)

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, name: str) -> str:
        values = [value for found, value in self.pairs if found.lower() == name.lower()]
        if not values:
            raise KeyError(name)
        return values[0]

    def __setitem__(self, name: str, value: str) -> None:
        self.pairs.append((name, value))

    def __delitem__(self, name: str) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0].lower() != name.lower()]


def test_a_mapping_with_several_values_of_a_name_gets_each_header_once() -> None:
    carrier = SeveralValues(("Baggage", "a=1"), ("x-other", "1"), ("baggage", "b=2"))
    propagator = MeshPropagator()
    propagator.inject(carrier, propagator.extract(INBOUND))
    assert carrier.pairs == [("x-other", "1"), *INBOUND.items()]


class TestPassthrough:
    @pytest.mark.parametrize(
        "name", ["authorization", "Cookie", "x-forwarded-client-cert", "host", "traceparent", "x-é", "a\r\nb", ""]
    )
    def test_credentials_and_what_is_no_name_are_never_passed_through(self, name: str) -> None:
        with pytest.raises(ValueError, match="not passed through"):
            MeshPropagator(passthrough_headers=[name])

    def test_only_the_request_id_goes_to_strangers(self) -> None:
        propagator = MeshPropagator(passthrough_headers=["x-request-id", "x-tenant"])
        inbound = {**INBOUND, "x-tenant": "north"}
        assert sent_to("http://shop", propagator, inbound=inbound)["x-tenant"] == "north"
        strangers = sent_to("https://api.example.com", propagator, inbound=inbound)
        assert strangers["x-request-id"] == "abc"
        assert "x-tenant" not in strangers

    def test_with_a_host_that_is_not_to_get_it_a_mapping_gets_no_baggage(self) -> None:
        propagator = MeshPropagator()
        context = propagator.extract(INBOUND)
        there: dict[str, str] = {}
        here: dict[str, str] = {}
        propagator.inject_for("api.example.com", there, context)
        propagator.inject_for("shop", here, context)
        assert "baggage" not in there
        assert here["baggage"] == INBOUND["baggage"]
