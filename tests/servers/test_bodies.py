"""Responses without a body, bodies that break off, clients that go away: the next request notices nothing.

Every server here serves with one thread or one loop, so that the next request runs where the broken one ran.
"""

import pytest

SERVERS = ("uvicorn-h11", "uvicorn-httptools", "hypercorn", "gunicorn", "waitress", "werkzeug")
FRAMEWORKS = [f"{server}/strict" for server in SERVERS]
# Behind these no framework opens the SERVER span.
PLAIN = [f"{server}/plain" for server in SERVERS[:3]]


def head(service, lines):
    answer = service.ask(*lines, method="HEAD", path="/pages")
    assert (answer.status, answer.body) == (200, b"")


def pages(service, lines):
    answer = service.ask(*lines, path="/pages")
    assert (answer.status, answer.body) == (200, b"a page" * 3)


def not_modified(service, lines):
    answer = service.ask(*lines, path="/not-modified")
    assert (answer.status, answer.body) == (304, b"")


def body_raises(service, lines):
    answer = service.ask(*lines, path="/broken")
    assert answer.body in (b"", b"a first chunk")


def client_goes_away(service, lines):
    with service.connect() as connection:
        connection.write(lines, path="/stream")
        connection.socket.recv(100_000)


def client_resets(service, lines):
    with service.connect() as connection:
        connection.write(lines, path="/stream")
        connection.socket.recv(100_000)
        connection.reset()


def client_goes_away_before_it_read_anything(service, lines):
    with service.connect() as connection:
        connection.write(lines, path="/stream")
        connection.reset()


def client_stops_in_the_middle_of_its_body(service, lines):
    with service.connect() as connection:
        connection.write([*lines, "Content-Length: 1000"], "POST", "/body")
        connection.socket.sendall(b"only this")


WHOLE = [pages, head, not_modified]
GONE = [client_goes_away, client_resets]
UNFINISHED = [client_goes_away_before_it_read_anything, client_stops_in_the_middle_of_its_body]


def of_trace(spans, trace, kind="SERVER"):
    return [span for span in spans if span.trace_id == trace and span.kind == kind]


def traceparent(trace, parent):
    return f"traceparent: 00-{trace}-{parent}-01"


@pytest.fixture
def next_request_is_unaffected(service, collector, new_ids):
    """Two requests after what the test did: one with a trace of its own, one with none."""

    def check():
        trace, parent = new_ids()
        with_trace, without = service.ask(traceparent(trace, parent)).report, service.ask().report
        assert with_trace["trace_id"] == trace
        assert [span["parent_id"] for span in with_trace["server_spans"]] == [parent]
        assert [span["parent_id"] for span in without["server_spans"]] == [None]
        assert [name for name, _ in without["sent"]] == ["traceparent"]
        # Spans arrive in the order in which they ended.
        return collector.wait_for(lambda spans: of_trace(spans, without["trace_id"]), timeout=60)

    return check


@pytest.mark.parametrize("service", FRAMEWORKS, indirect=True)
@pytest.mark.parametrize("act", WHOLE)
def test_a_whole_response_ends_its_span(service, new_ids, next_request_is_unaffected, act):
    trace, parent = new_ids()
    act(service, [traceparent(trace, parent), "baggage: user=alice"])
    [span] = of_trace(next_request_is_unaffected(), trace)
    assert (span.parent_id, span.status) == (parent, "UNSET")


@pytest.mark.parametrize("service", FRAMEWORKS, indirect=True)
def test_a_body_that_raises_ends_its_span_as_an_error(service, new_ids, next_request_is_unaffected):
    trace, parent = new_ids()
    body_raises(service, [traceparent(trace, parent), "baggage: user=alice"])
    [span] = of_trace(next_request_is_unaffected(), trace)
    assert (span.parent_id, span.status) == (parent, "ERROR")
    assert span.attributes["error.type"] == "ValueError"


@pytest.mark.parametrize("service", [*FRAMEWORKS, *PLAIN], indirect=True)
@pytest.mark.parametrize("act", GONE)
def test_a_client_that_goes_away_ends_the_span_and_is_no_error(
    service, collector, new_ids, next_request_is_unaffected, act
):
    trace, parent = new_ids()
    act(service, [traceparent(trace, parent), "baggage: user=alice"])
    next_request_is_unaffected()
    # An asyncio server may serve the next request first.
    [span] = of_trace(collector.wait_for(lambda spans: of_trace(spans, trace), timeout=60), trace)
    assert span.parent_id == parent
    if span.scope == "fastapi":
        # FastAPI's own span is left as FastAPI ends it.
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "ConnectionError")
    else:
        assert (span.status, span.attributes.get("error.type")) == ("UNSET", None)
        assert span.attributes["meshmw.response.incomplete"] is True


@pytest.mark.parametrize("service", [*FRAMEWORKS, *PLAIN], indirect=True)
@pytest.mark.parametrize("act", UNFINISHED)
def test_a_request_that_breaks_off_harms_nobody(service, new_ids, next_request_is_unaffected, act):
    trace, parent = new_ids()
    act(service, [traceparent(trace, parent), "baggage: user=alice"])
    # Some servers never hand such a request to the application.
    spans = of_trace(next_request_is_unaffected(), trace)
    assert [span.parent_id for span in spans] in ([], [parent])


@pytest.mark.parametrize("service", [*FRAMEWORKS, *PLAIN], indirect=True)
def test_no_context_was_left_behind(service, next_request_is_unaffected):
    next_request_is_unaffected()
    assert "Failed to detach context" not in service.log
    if service.interface == "wsgi":
        assert "leaked_span" not in service.log
