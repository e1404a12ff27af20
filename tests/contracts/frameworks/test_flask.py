"""What Flask runs around a view: hooks, teardown functions, generators, async views and its test client."""

from __future__ import annotations

import pytest
from flask import Blueprint, Flask, abort, g, stream_with_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import meshmw.flask
from meshmw import MeshPropagator

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


class Service:
    """A Flask application with our middleware, and what its parts saw."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.app = Flask("shop")
        meshmw.flask.init_app(self.app, tracer_provider=self.provider, propagator=MeshPropagator())
        self.seen = []

    def see(self, what):
        self.seen.append((what, f"{trace.get_current_span().get_span_context().trace_id:032x}"))

    def get(self, path="/x"):
        return self.app.test_client().get(path, headers=HEADERS, buffered=True)

    def saw(self, *expected):
        return self.seen == [(what, TRACE_ID) for what in expected]

    @property
    def span(self):
        (only,) = self.exporter.get_finished_spans()
        assert f"{only.parent.span_id:016x}" == PARENT_ID
        return only


@pytest.fixture
def service():
    return Service()


def test_every_hook_of_application_and_blueprint_sees_the_trace(service):
    shop = Blueprint("shop", "shop")
    for owner, name in ((service.app, "app"), (shop, "blueprint")):
        owner.before_request(lambda name=name: service.see(f"{name} before"))
        owner.after_request(lambda response, name=name: service.see(f"{name} after") or response)
        owner.teardown_request(lambda error, name=name: service.see(f"{name} teardown"))
    service.app.teardown_appcontext(lambda error: service.see("context teardown"))

    @shop.get("/<item>")
    def view(item):
        service.see("view")
        return item

    service.app.register_blueprint(shop, url_prefix="/items")
    assert service.get("/items/7").text == "7"
    assert service.saw(
        "app before",
        "blueprint before",
        "view",
        "blueprint after",
        "app after",
        "blueprint teardown",
        "app teardown",
        "context teardown",
    )
    assert service.span.name == "GET /items/<item>"


def test_a_teardown_function_sees_the_error_of_its_view_within_the_trace(service):
    errors = []

    @service.app.teardown_request
    def end(error):
        service.see("teardown")
        errors.append(error)

    @service.app.get("/x")
    def view():
        raise LookupError("out of stock")

    assert service.get().status_code == 500
    assert [str(error) for error in errors] == ["out of stock"]
    assert service.saw("teardown")
    assert service.span.attributes["http.response.status_code"] == 500
    assert service.span.status.status_code is StatusCode.ERROR


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_teardown_function_that_fails_passes_its_error_on_and_ends_the_span(service):
    @service.app.teardown_request
    def end(error):
        raise LookupError("cannot close")

    service.app.get("/x")(lambda: "ok")
    with pytest.raises(LookupError):
        service.get()
    assert service.span.status.status_code is StatusCode.ERROR
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(("status", "is_error"), [(404, False), (503, True)])
def test_an_abort_is_an_answer(service, status, is_error):
    service.app.get("/x")(lambda: abort(status))
    assert service.get().status_code == status
    assert service.span.attributes["http.response.status_code"] == status
    assert (service.span.status.status_code is StatusCode.ERROR) is is_error


def test_a_hook_that_answers_in_place_of_the_view_is_one_span_under_its_route(service):
    service.app.get("/items/<item>")(lambda item: item)
    service.app.before_request(lambda: ("no", 403))
    assert service.get("/items/7").status_code == 403
    assert service.span.name == "GET /items/<item>"


def test_a_streamed_response_with_context_has_both_contexts_in_each_step(service):
    service.app.teardown_request(lambda error: service.see("teardown"))

    @service.app.get("/x")
    def view():
        g.tenant = "acme"

        @stream_with_context
        def chunks():
            for _ in range(3):
                service.see(g.tenant)
                yield "chunk"

        return chunks()

    response = service.get()
    assert response.text == "chunk" * 3
    response.close()
    assert [what for what, _ in service.seen].count("acme") == 3
    # Flask tears down once before the stream and once after it.
    assert service.saw("teardown", "acme", "acme", "acme", "teardown")
    assert "meshmw.response.incomplete" not in service.span.attributes


def test_a_streamed_response_that_breaks_off_ends_its_span_with_the_error(service):
    @service.app.get("/x")
    def view():
        def chunks():
            yield "chunk"
            raise LookupError("out of stock")

        return stream_with_context(chunks())

    with pytest.raises(LookupError):
        service.get()
    assert service.span.attributes["error.type"] == "LookupError"
    assert service.span.attributes["meshmw.response.incomplete"] is True


def test_an_async_view_sees_the_trace(service):
    """Flask runs it in a thread with an event loop of its own."""
    pytest.importorskip("asgiref", reason="pip install 'flask[async]'")

    @service.app.get("/x")
    async def view():
        service.see("view")
        return "ok"

    assert service.get().text == "ok"
    assert service.saw("view")


def test_requests_of_a_test_client_within_a_with_block_stay_apart(service):
    service.app.get("/x")(lambda: service.see("view") or "ok")
    with service.app.test_client() as client:
        assert client.get("/x", headers=HEADERS).text == "ok"
        assert not trace.get_current_span().get_span_context().is_valid
        assert client.get("/x").text == "ok"
    first, second = service.exporter.get_finished_spans()
    assert second.parent is None
    assert first.context.trace_id != second.context.trace_id
