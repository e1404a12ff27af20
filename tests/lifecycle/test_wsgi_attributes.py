"""What a WSGI environ says of a request, with what servers leave out and how they hand out bytes (PEP 3333)."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw import wsgi


def told_of(environ):
    def app(environ, start_response):
        start_response("200 OK", [])
        return []

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    list(wsgi.TraceContextMiddleware(app, tracer_provider=provider)({"REQUEST_METHOD": "GET", **environ}, print))
    (span,) = exporter.get_finished_spans()
    return dict(span.attributes)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({}, "/"),
        ({"SCRIPT_NAME": "", "PATH_INFO": ""}, "/"),
        ({"SCRIPT_NAME": "/shop"}, "/shop"),
        ({"SCRIPT_NAME": "/shop", "PATH_INFO": "/items"}, "/shop/items"),
        ({"PATH_INFO": "/caf\xc3\xa9"}, "/caf\xe9"),
        ({"PATH_INFO": "/caf\xe9"}, "/caf\ufffd"),
        ({"PATH_INFO": "/\u20ac"}, "/?"),
    ],
)
def test_the_path_is_the_whole_one_and_never_empty(environ, path):
    assert told_of(environ)["url.path"] == path


@pytest.mark.parametrize(
    ("environ", "address", "port"),
    [
        ({"HTTP_HOST": "items.local:81", "SERVER_NAME": "pod", "SERVER_PORT": "8000"}, "items.local", 81),
        ({"SERVER_NAME": "pod", "SERVER_PORT": "8000"}, "pod", 8000),
        ({"SERVER_NAME": "::1", "SERVER_PORT": "8000"}, "::1", 8000),
        ({"SERVER_NAME": "[::1]", "SERVER_PORT": "8000"}, "::1", 8000),
        ({"HTTP_HOST": "[2001:db8::1]", "SERVER_NAME": "pod", "SERVER_PORT": "80"}, "2001:db8::1", 80),
        ({"SERVER_NAME": "pod", "SERVER_PORT": "http"}, None, None),
        ({}, None, None),
    ],
)
def test_the_server_is_the_one_that_was_asked_for_or_else_its_own(environ, address, port):
    found = told_of(environ)
    assert (found.get("server.address"), found.get("server.port")) == (address, port)


@pytest.mark.parametrize(("protocol", "version"), [("HTTP/1.1", "1.1"), ("HTTP/2.0", "2"), ("h2", "2"), ("", None)])
def test_the_version_is_the_conventions_own(protocol, version):
    for _ in range(2):
        assert told_of({"SERVER_PROTOCOL": protocol}).get("network.protocol.version") == version
