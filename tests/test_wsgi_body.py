"""Bodies of WSGI responses: what a step leaves current stays with the steps, and files stay the server's own."""

from __future__ import annotations

import gc
import io
import threading
from wsgiref.util import FileWrapper

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import create_key
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshmw.wsgi import TraceContextMiddleware

pytestmark = pytest.mark.usefixtures("strict_context")

KEY = create_key("test")


class Served:
    """Serves one request and holds its body, as a server does."""

    def __init__(self, make_body, file_wrapper=None):
        self.exporter = InMemorySpanExporter()
        self.provider = provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.file_wrapper": file_wrapper}

        def app(environ, start_response):
            start_response("200 OK", [])
            self.inside = trace.get_current_span()
            return make_body(environ)

        self.body = TraceContextMiddleware(app, tracer_provider=provider)(environ, lambda *_: None)

    @property
    def span(self):
        (span,) = self.exporter.get_finished_spans()
        return span

    @property
    def has_ended(self):
        return bool(self.exporter.get_finished_spans())


def in_thread(call):
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(call()))
    thread.start()
    thread.join()
    return outcome[0]


def test_what_a_generator_attaches_across_a_yield_stays_with_it_and_never_reaches_the_server():
    seen = []

    def chunks(_):
        token = otel_context.attach(otel_context.set_value(KEY, "inner"))
        yield b"1"
        seen.append(otel_context.get_value(KEY))
        yield b"2"
        seen.append(otel_context.get_value(KEY))
        otel_context.detach(token)
        yield b"3"
        seen.append(otel_context.get_value(KEY))

    served, outside = Served(chunks), otel_context.get_current()
    for chunk in served.body:
        assert (chunk, otel_context.get_current()) == (chunk, outside)
    served.body.close()
    assert seen == ["inner", "inner", None]


def test_a_span_that_is_current_across_a_yield_is_the_parent_in_the_next_step():
    parents = []

    def chunks(_):
        with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))):
            yield b"1"
            parents.append(trace.get_current_span().get_span_context().span_id)
        parents.append(trace.get_current_span())

    served = Served(chunks)
    assert list(served.body) == [b"1"]
    assert parents == [2, served.inside]


def test_steps_and_close_may_come_from_several_threads():
    seen = []

    def chunks(_):
        try:
            while True:
                yield b"1"
                seen.append(trace.get_current_span())
        finally:
            seen.append(trace.get_current_span())

    served = Served(chunks)
    assert [next(served.body), in_thread(lambda: next(served.body))] == [b"1", b"1"]
    in_thread(served.body.close)
    assert seen == [served.inside] * 2
    assert served.span.attributes["meshmw.response.incomplete"] is True


@pytest.mark.parametrize("is_closed", [True, False])
def test_what_a_body_that_makes_a_generator_has_attached_is_taken_back_from_the_server(is_closed):
    """Nobody but who iterates over such a body knows of the generator."""
    seen = []

    class Body:
        def __iter__(self):
            token = otel_context.attach(otel_context.set_value(KEY, "inner"))
            try:
                while True:
                    yield b"1"
            finally:
                seen.append(otel_context.get_value(KEY))
                otel_context.detach(token)

    served, outside = Served(lambda _: Body()), otel_context.get_current()
    assert next(served.body) == b"1"
    if is_closed:
        served.body.close()
    del served
    gc.collect()
    assert (seen, otel_context.get_current()) == (["inner"], outside)


def test_a_body_that_has_nothing_to_close_is_closed_by_its_end():
    served = Served(lambda _: [b"1"])
    assert list(served.body) == [b"1"]
    served.body.close()
    assert "meshmw.response.incomplete" not in served.span.attributes


def test_what_a_list_holds_that_is_no_bytes_raises_where_the_server_asks_for_it_and_marks_the_span():
    served = Served(lambda _: [b"1", 2])
    assert (len(served.body), next(served.body)) == (2, b"1")
    with pytest.raises(TypeError):
        next(served.body)
    assert served.span.attributes["error.type"] == "TypeError"


@pytest.mark.parametrize("make", [lambda _: [b"1"], lambda _: iter([b"1"])], ids=["list", "iterator"])
def test_a_dropped_body_may_be_collected_within_a_lock_that_the_end_of_a_span_takes(make):
    """Such as those of OpenTelemetry's metrics, within which the garbage collector may run."""
    lock, ended, taken = threading.Lock(), threading.Event(), []

    class Locking(SpanProcessor):
        def on_end(self, span):
            taken.append(lock.acquire(timeout=5))
            if taken[-1]:
                lock.release()
            ended.set()

    served = Served(make)
    served.provider.add_span_processor(Locking())
    assert next(served.body) == b"1"
    circle = [served.body]
    circle.append(circle)
    del served.body, circle
    with lock:
        gc.collect()
    assert ended.wait(10)
    assert taken == [True]


def test_a_list_of_the_applications_own_making_is_stepped_through_in_the_requests_context():
    seen = []

    class Chunks(list):
        def __iter__(self):
            seen.append(trace.get_current_span())
            return super().__iter__()

    served = Served(lambda _: Chunks([b"1", b"2"]))
    assert list(served.body) == [b"1", b"2"]
    assert seen == [served.inside]


class TestFiles:
    """A server sends a file of its own wrapper's by itself, so that is what it is handed."""

    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"content")
        with path.open("rb") as file:
            yield file

    @pytest.mark.parametrize("buffered", [True, False])
    def test_a_plain_file_is_left_to_the_server_and_its_close_ends_the_span(self, file, buffered):
        file = file if buffered else file.raw
        served = Served(lambda environ: environ["wsgi.file_wrapper"](file), FileWrapper)
        assert type(served.body) is FileWrapper
        assert served.body.filelike is file
        assert not served.has_ended
        served.body.close()
        assert file.closed
        assert "meshmw.response.incomplete" not in served.span.attributes
        served.body.close()
        assert served.span.status.is_unset

    def test_it_is_closed_in_the_requests_context(self, file):
        class Wrapper(FileWrapper):
            def __init__(self, file):
                self.filelike = file

            def close(self):
                self.closed_in = trace.get_current_span()

        served = Served(lambda environ: Wrapper(file), Wrapper)
        served.body.close()
        assert served.body.closed_in is served.inside
        assert served.has_ended

    def test_a_wrapper_without_close_ends_the_span_all_the_same(self, file):
        class Wrapper:
            def __init__(self, file):
                self.file = file

        served = Served(lambda environ: Wrapper(file), Wrapper)
        served.body.close()
        assert served.has_ended

    def test_an_error_while_closing_passes_unchanged_and_marks_the_span(self, file):
        error = OSError("disk is gone")

        class Wrapper:
            def __init__(self, file):
                self.file = file

            def close(self):
                raise error

        served = Served(lambda environ: Wrapper(file), Wrapper)
        with pytest.raises(OSError, match="disk is gone") as raised:
            served.body.close()
        assert raised.value is error
        assert served.span.attributes["error.type"] == "OSError"

    def test_to_read_what_only_looks_like_a_file_is_the_applications_work(self):
        seen = []

        class Download(io.BytesIO):
            def read(self, size=-1):
                seen.append(trace.get_current_span())
                return super().read(size)

        served = Served(lambda environ: environ["wsgi.file_wrapper"](Download(b"content")), FileWrapper)
        assert b"".join(served.body) == b"content"
        assert seen == [served.inside] * 2
        assert served.has_ended

    def test_another_wrapper_than_the_servers_own_is_a_body_like_any_other(self, file):
        def function(file):
            return FileWrapper(file)

        for own in function, None, type("Other", (FileWrapper,), {}):
            served = Served(lambda environ: FileWrapper(file), own)
            assert type(served.body) is not FileWrapper
            served.body.close()
            assert served.has_ended

    def test_a_wrapper_that_cannot_be_told_is_a_body_like_any_other(self, file):
        class Wrapper:
            __slots__ = ("file",)

            def __iter__(self):
                return iter(self.file)

        def wrapped(environ):
            body = Wrapper()
            body.file = file
            return body

        served = Served(wrapped, Wrapper)
        assert list(served.body) == [b"content"]
        assert served.has_ended
