"""What a public callable says of an option that it does not know, or that holds what it cannot use."""

from __future__ import annotations

import re

import httpx
import httpx2
import pytest
from flask import Flask

import meshmw
from meshmw import MeshPropagator, Settings, SettingsError
from meshmw.asgi import BaggageSizeFilter

CLIENTS = {
    "meshmw.httpx.TraceContextTransport": lambda **options: meshmw.httpx.TraceContextTransport(
        httpx.HTTPTransport(), **options
    ),
    "meshmw.httpx.AsyncTraceContextTransport": lambda **options: meshmw.httpx.AsyncTraceContextTransport(
        httpx.AsyncHTTPTransport(), **options
    ),
    "meshmw.httpx2.TraceContextTransport": lambda **options: meshmw.httpx2.TraceContextTransport(
        httpx2.HTTPTransport(), **options
    ),
    "meshmw.requests.TraceContextAdapter": lambda **options: meshmw.requests.TraceContextAdapter(None, **options),
    "meshmw.aiohttp.TraceContextClientMiddleware": lambda **options: meshmw.aiohttp.TraceContextClientMiddleware(
        **options
    ),
    "meshmw.grpc.TraceContextClientInterceptor": lambda **options: meshmw.grpc.TraceContextClientInterceptor(
        "pricing:50051", **options
    ),
    "meshmw.grpc.client_interceptors": lambda **options: meshmw.grpc.client_interceptors("pricing:50051", **options),
    "meshmw.kafka.consumer_span": lambda **options: meshmw.kafka.consumer_span(None, **options),
    "meshmw.kafka.consume": lambda **options: meshmw.kafka.consume([], **options),
    "meshmw.kafka.instrument": lambda **options: meshmw.kafka.instrument(None, **options),
    "meshmw.rabbitmq.consume": lambda **options: meshmw.rabbitmq.consume([], **options),
    "meshmw.rabbitmq.instrument": lambda **options: meshmw.rabbitmq.instrument(None, **options),
}
SERVERS = {
    "meshmw.asgi.TraceContextMiddleware": lambda **options: meshmw.asgi.TraceContextMiddleware(None, **options),
    "meshmw.wsgi.TraceContextMiddleware": lambda **options: meshmw.wsgi.TraceContextMiddleware(None, **options),
    "meshmw.flask.init_app": lambda **options: meshmw.flask.init_app(Flask("t"), **options),
    "meshmw.grpc.TraceContextServerInterceptor": meshmw.grpc.TraceContextServerInterceptor,
    "meshmw.grpc.AsyncTraceContextServerInterceptor": meshmw.grpc.AsyncTraceContextServerInterceptor,
}
ALL = SERVERS | CLIENTS


@pytest.mark.parametrize("name", ALL)
def test_an_option_that_is_not_known_is_named_with_the_one_that_was_meant(name):
    with pytest.raises(TypeError, match=r"^propagatr is no option \(did you mean propagator\?\); there are .*or"):
        ALL[name](propagatr=None)
    with pytest.raises(TypeError, match=r"^bogus is no option; there are "):
        ALL[name](bogus=None)


@pytest.mark.parametrize("name", ["meshmw.kafka.consumer_span", "meshmw.rabbitmq.consume"])
def test_what_only_the_package_itself_may_choose_is_no_option(name):
    with pytest.raises(TypeError, match=r"^server is no option"):
        ALL[name](server={"server.address": "here"})


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrong", ["b3", 5, MeshPropagator])
def test_what_is_no_propagator_and_what_is_no_tracer_provider_is_refused_at_once(name, wrong):
    with pytest.raises(TypeError, match=f"^propagator takes a MeshPropagator, not {re.escape(repr(wrong))[:20]}"):
        ALL[name](propagator=wrong)
    with pytest.raises(TypeError, match=f"^tracer_provider takes a TracerProvider, not {re.escape(repr(wrong))[:20]}"):
        ALL[name](tracer_provider=wrong)


def test_frames_refuse_what_is_no_propagator():
    with pytest.raises(TypeError, match=r"^propagator takes a MeshPropagator, not 'b3'$"):
        meshmw.frames.encode(propagator="b3")


@pytest.mark.parametrize("name", SERVERS)
def test_a_list_of_patterns_is_a_list_of_texts(name):
    with pytest.raises(ValueError, match=r"^exclude takes a list, not '/'$"):
        SERVERS[name](exclude="/")
    with pytest.raises(ValueError, match=r"^exclude takes a list of texts, and 5 is none$"):
        SERVERS[name](exclude=[5])


def test_untouched_calls_are_a_list_too():
    with pytest.raises(ValueError, match=r"^untouched takes a list, not '/'$"):
        meshmw.grpc.TraceContextServerInterceptor(untouched="/")


@pytest.mark.parametrize("wrong", [-1, "3", True, 2.0, None])
def test_a_limit_is_a_whole_number(wrong):
    said = f"takes a whole number, 0 or more, not {re.escape(repr(wrong))}$"
    for name in ("baggage_max_members", "baggage_max_bytes"):
        with pytest.raises(ValueError, match=f"^{name} {said}"):
            MeshPropagator(**{name: wrong})
    for name in ("max_members", "max_bytes"):
        with pytest.raises(ValueError, match=f"^{name} {said}"):
            BaggageSizeFilter(None, **{name: wrong})
    with pytest.raises(ValueError, match=f"^max_metadata_bytes {said}"):
        meshmw.grpc.client_interceptors("pricing:50051", max_metadata_bytes=wrong)
    with pytest.raises(ValueError, match=r"^header_budget takes "):
        MeshPropagator(header_budget=wrong)


@pytest.mark.parametrize("budget", [20_000, (20_000,), (20_000, 100)])
def test_a_header_budget_may_be_bytes_alone(budget):
    assert Settings(header_budget=budget).header_budget == (20_000, 100)
    whole = MeshPropagator(header_budget=(20_000, 100))._outgoing._scope._budget
    assert vars(MeshPropagator(header_budget=budget)._outgoing._scope._budget) == vars(whole)


@pytest.mark.parametrize("budget", ["61440", (), (61_440, 100, 1), ("61440", 100), (61_440, True), 2_048, (61_440, -1)])
def test_what_is_no_header_budget_is_refused(budget):
    with pytest.raises(ValueError, match=r"header.budget"):
        MeshPropagator(header_budget=budget)


def test_a_header_that_is_not_passed_through_is_shown_short():
    with pytest.raises(ValueError, match=r"not passed through: 'x{60}\.\.\.|not passed through: '(\\x1b)+"):
        MeshPropagator(passthrough_headers=["\x1b" * 1_000])


def test_settings_refuse_a_budget_of_three():
    with pytest.raises(SettingsError, match="header_budget"):
        Settings(header_budget=(61_440, 100, 1))
