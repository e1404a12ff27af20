"""A parent that deferred its decision is asked of the sampler as a root is; every other parent is left alone."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind

from meshmw import MeshPropagator, Settings
from meshmw._telemetry.provider import build_provider
from meshmw._telemetry.span import RemoteParentSampler
from meshmw.asgi import TraceContextMiddleware

IDS = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
DEFERRED, DENIED, ACCEPTED = {"b3": IDS}, {"b3": f"{IDS}-0"}, {"b3": f"{IDS}-1"}


def is_sampled(root: Sampler, carrier: dict[str, str], *, deeper: bool = False) -> bool:
    tracer = TracerProvider(sampler=RemoteParentSampler(ParentBased(root))).get_tracer("test")
    context = MeshPropagator(["b3", "tracecontext"]).extract(carrier)
    span = tracer.start_span("server", context)
    if deeper:
        span = tracer.start_span("inner", trace.set_span_in_context(span, context))
    return span.get_span_context().trace_flags.sampled


@pytest.mark.parametrize("deeper", [False, True])
@pytest.mark.parametrize(("root", "expected"), [(ALWAYS_ON, True), (ALWAYS_OFF, False)])
def test_a_deferred_decision_is_the_root_samplers(root: Sampler, expected: bool, deeper: bool) -> None:
    assert is_sampled(root, DEFERRED, deeper=deeper) is expected


@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF])
@pytest.mark.parametrize(("carrier", "expected"), [(DENIED, False), (ACCEPTED, True)])
def test_a_decision_that_came_in_is_followed(root: Sampler, carrier: dict[str, str], expected: bool) -> None:
    assert is_sampled(root, carrier) is expected


def test_a_w3c_parent_beside_a_deferred_b3_of_another_trace_decides() -> None:
    denied = {**DEFERRED, "traceparent": "00-11111111111111111111111111111111-2222222222222222-00"}
    assert is_sampled(ALWAYS_ON, denied) is False


def test_a_root_is_the_root_samplers_and_the_description_too() -> None:
    sampler = RemoteParentSampler(ParentBased(ALWAYS_ON))
    assert sampler.should_sample(None, 1, "root").decision.is_sampled()
    assert sampler.should_sample(Context(), 1, "root").decision.is_sampled()
    assert sampler.get_description() == ParentBased(ALWAYS_ON).get_description()


class TestOwner:
    """Who decides: the caller's flag, or this service by trace id."""

    REMOTE = "00-{}-b7ad6b7169203331-{}"

    def is_sampled(self, traceparent: str, **how: Any) -> bool:
        provider, _ = build_provider(Settings(exporter="none", **how))
        context = MeshPropagator().extract({"traceparent": traceparent})
        span = provider.get_tracer("test").start_span("server", context)
        inner = provider.get_tracer("test").start_span("inner", trace.set_span_in_context(span, context))
        flags = span.get_span_context().trace_flags
        assert inner.get_span_context().trace_flags == flags
        assert flags.random_trace_id == (traceparent[-2:] in ("02", "03"))
        return flags.sampled

    @pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
    def test_the_parent_decides_by_default_whatever_the_ratio(self, flags: str) -> None:
        traceparent = self.REMOTE.format("1" * 32, flags)
        assert self.is_sampled(traceparent, sampling_ratio=0.0) is (flags in ("01", "03"))

    @pytest.mark.parametrize("flags", ["00", "01", "02", "03"])
    @pytest.mark.parametrize(("ratio", "expected"), [(None, True), (1.0, True), (0.0, False)])
    def test_the_service_decides_where_it_owns_the_decision(
        self, flags: str, ratio: float | None, expected: bool
    ) -> None:
        traceparent = self.REMOTE.format("1" * 32, flags)
        assert self.is_sampled(traceparent, sampling_owner="service", sampling_ratio=ratio) is expected

    @pytest.mark.parametrize(
        "trace_id", ["0" * 17 + "1" * 15, "f" * 32, "1" * 16 + "3" + "f" * 15, "1" * 16 + "c" * 16]
    )
    def test_services_of_one_ratio_decide_alike_by_trace_id(self, trace_id: str) -> None:
        decisions = {
            self.is_sampled(self.REMOTE.format(trace_id, flags), sampling_owner="service", sampling_ratio=0.5)
            for flags in ("00", "01")
        }
        assert decisions == {int(trace_id[16:], 16) < 2**63}


class TestRoutes:
    """A share of its own for a request's path: where this process decides, and never, which holds in any trace."""

    RULES = ("/health=0", "/api/slow/*=1", "/api/*=0.0", "/half=0.5")
    SAMPLED, UNSAMPLED = (
        {"traceparent": f"00-{'1' * 16}{'c' * 16}-b7ad6b7169203331-{flags}"} for flags in ("01", "00")
    )

    def is_sampled(
        self,
        path: str | None,
        headers: dict[str, str] | None = None,
        *,
        kind: SpanKind = SpanKind.SERVER,
        key: str = "url.path",
        **how: Any,
    ) -> bool:
        provider, _ = build_provider(Settings(exporter="none", sampling_rules=self.RULES, **how))
        context = MeshPropagator(["b3", "tracecontext"]).extract(headers or {}, Context())
        span = provider.get_tracer("t").start_span("s", context, kind, path and {key: path})
        if headers:
            assert span.get_span_context().trace_id == int("1" * 16 + "c" * 16, 16)
        return span.get_span_context().trace_flags.sampled

    @pytest.mark.parametrize(
        ("path", "expected"),
        [("/health", False), ("/health/live", False), ("/healthy", True), ("/api/slow/x", True), ("/api/x", False)],
    )
    def test_the_first_rule_that_fits_decides_for_a_new_trace(self, path: str, expected: bool) -> None:
        assert self.is_sampled(path) is expected
        assert self.is_sampled(f"{path}?q=/", key="http.target") is expected

    def test_never_holds_for_a_caller_who_records(self) -> None:
        assert self.is_sampled("/health", self.SAMPLED) is False

    def test_another_share_leaves_the_caller_his_decision(self) -> None:
        assert self.is_sampled("/api/slow/x", self.UNSAMPLED) is False
        assert self.is_sampled("/half", self.SAMPLED) is True

    def test_where_this_service_decides_the_rule_does(self) -> None:
        assert self.is_sampled("/api/slow/x", self.UNSAMPLED, sampling_owner="service", sampling_ratio=0) is True
        assert self.is_sampled("/half", self.SAMPLED, sampling_owner="service") is False
        deferred = {"b3": f"{'1' * 16}{'c' * 16}-b7ad6b7169203331"}
        assert self.is_sampled("/half", deferred) is False
        assert self.is_sampled("/other", deferred) is True

    @pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.INTERNAL, SpanKind.CONSUMER])
    def test_only_requests_that_are_served_have_routes(self, kind: SpanKind) -> None:
        assert self.is_sampled("/health", kind=kind) is True

    def test_a_request_without_a_path_has_no_rule(self) -> None:
        assert self.is_sampled(None) is True

    def test_a_context_that_is_current_counts_as_one_that_is_given(self) -> None:
        provider, _ = build_provider(Settings(exporter="none", sampling_owner="service", sampling_ratio=0))
        token = attach(MeshPropagator().extract(self.SAMPLED, Context()))
        try:
            span = provider.get_tracer("t").start_span("s")
        finally:
            detach(token)
        assert span.get_span_context().trace_flags.sampled is False

    @pytest.mark.parametrize(("path", "recorded"), [("/health", False), ("/items", True)])
    @pytest.mark.parametrize("host", ["bare", "fastapi"])
    def test_a_real_request_is_asked_about_by_its_path(self, host: str, path: str, recorded: bool) -> None:
        provider, _ = build_provider(Settings(exporter="none", sampling_rules=self.RULES))
        seen: list[bool] = []

        async def bare(scope: Any, receive: Any, send: Any) -> None:
            seen.append(trace.get_current_span().is_recording())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        app: Any = bare
        if host == "fastapi":
            app = FastAPI(telemetry={"tracer_provider": provider})
            app.mount("/", bare)
        wrapped = (
            app
            if host == "fastapi"
            else TraceContextMiddleware(bare, tracer_provider=provider, propagator=MeshPropagator())
        )

        async def ask() -> None:
            transport = httpx.ASGITransport(wrapped)
            async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
                await client.get(path, headers=self.SAMPLED)

        asyncio.run(ask())
        assert seen == [recorded]
        provider.shutdown()
