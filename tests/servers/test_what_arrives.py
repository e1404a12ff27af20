"""On real servers: the status that a client gets, and whether it gets everything, beside what the span says."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

SECONDS = 60
APPS = {"asgi": "odd_asgi:app", "wsgi": "odd_wsgi:app"}
WSGI_SERVERS = ["gunicorn-sync", "gunicorn-gthread", "waitress", "wsgiref", "werkzeug-bare", "granian-wsgi"]
ASGI_SERVERS = [
    "uvicorn-h11",
    "uvicorn-uvloop",
    "hypercorn",
    "hypercorn-uvloop",
    "granian-asgi",
    "granian-uvloop",
    "gunicorn-asgi",
]

_TREE = ast.parse((Path(__file__).parent / "apps" / "odd_wsgi.py").read_text(encoding="utf-8"))
CASES = [
    found.name
    for found in _TREE.body
    if isinstance(found, ast.FunctionDef) and [each.arg for each in found.args.args] == ["environ", "start_response"]
]
CASES.remove("plain")
# gunicorn sends a head without a status.
WITHOUT_STATUS = {"never_starts", "starts_after_an_empty_chunk"}
WHOLE = {
    "root",
    "starts_with_its_body",
    "starts_twice",
    "starts_again_and_goes_on",
    "writes",
    "by_keyword",
    "by_keyword_in_part",
    "sends_more_than_it_promised",
    "raises_once_all_is_sent",
    "sends_a_body_with_204",
    "sends_a_body_with_304",
    "closing_raises",
    "answers_an_exception",
    "empty",
}
BROKEN = {"body_raises_after_a_byte", "writes_and_raises", "sends_less_than_it_promised"}
# It has no `write`, and has sent the head before a generator promises anything.
OTHERWISE = {"granian-wsgi": {"writes", "raises_once_all_is_sent", "sends_less_than_it_promised"}}


@pytest.fixture(scope="module")
def odd(own_fleet, request):
    """A running server with an odd application."""
    name = f"{request.param}/odd"
    own_fleet.launch(name, APPS)
    return own_fleet.get(name)


@pytest.fixture
def ask_all(odd, collector, new_ids):
    """Sends requests by functions; returns, by name, what each returned beside the span that served it."""

    def ask(sends):
        got = {}
        for name, send in sends.items():
            trace, parent = new_ids()
            got[name] = trace, send(f"traceparent: 00-{trace}-{parent}-01")
        traces = {trace for trace, _ in got.values()}
        spans = collector.wait_for(lambda found: traces <= served(found).keys(), timeout=SECONDS)
        return {name: (answer, served(spans)[trace]) for name, (trace, answer) in got.items()}

    return ask


def served(spans):
    return {span.trace_id: span for span in spans if span.kind == "SERVER"}


def incomplete(span):
    return span.attributes.get("meshmw.response.incomplete", False)


def getting(odd, paths, method="GET"):
    """Return, by path, functions that ask for it."""
    return {path: lambda line, path=path: odd.ask(line, method=method, path=path) for path in paths}


@pytest.mark.parametrize("odd", WSGI_SERVERS, indirect=True)
def test_a_span_has_the_status_that_the_client_got(odd, ask_all):
    cases = set(CASES) - (WITHOUT_STATUS if "gunicorn" in odd.name else set())
    different = []
    for path, (answer, span) in ask_all(getting(odd, [f"/{case}" for case in cases])).items():
        case, told = path[1:], span.attributes["http.response.status_code"]
        different += [(case, answer.status, told)] if answer.status != told else []
        if case in (WHOLE | BROKEN) - OTHERWISE.get(odd.server, set()) and incomplete(span) is not (case in BROKEN):
            different.append((case, span.attributes))
    assert not different


@pytest.mark.parametrize("odd", WSGI_SERVERS, indirect=True)
def test_an_answer_to_head_is_whole(odd, ask_all):
    for answer, span in ask_all(getting(odd, ["/root", "/starts_with_its_body", "/empty"], "HEAD")).values():
        assert span.attributes["http.response.status_code"] == answer.status
        assert not incomplete(span)


@pytest.mark.parametrize("odd", ASGI_SERVERS, indirect=True)
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_stream_that_arrived_is_whole(odd, ask_all, where):
    """A middleware waits once the server has it all, and the server says meanwhile that the connection is over."""
    frameworks = ("starlette", "base", "fastapi", "litestar", "quart", "bare")
    paths = [f"/{framework}-{where}/stream?{turn}" for framework in frameworks for turn in range(3)]
    answers = ask_all(getting(odd, paths))
    assert {(answer.status, answer.body) for answer, _ in answers.values()} == {(200, b"x" * 3000)}
    assert not [path for path, (_, span) in answers.items() if incomplete(span)]


@pytest.mark.parametrize("odd", ASGI_SERVERS, indirect=True)
def test_a_client_that_leaves_with_all_that_was_promised_has_all(odd, ask_all):
    def leaving(method, path):
        def ask(line):
            with socket.create_connection(("127.0.0.1", odd.port), timeout=SECONDS) as connection:
                connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: odd.test\r\n{line}\r\n\r\n".encode())
                got = b""
                while b"\r\n\r\n" not in got or (method == "GET" and got.count(b"x") < 3000):
                    got += connection.recv(65_536)
            return got

        return ask

    paths = [f"/{framework}-outside/promised" for framework in ("starlette", "base", "quart")]
    answers = ask_all({(method, path): leaving(method, path) for method in ("GET", "HEAD") for path in paths})
    assert not [name for name, (_, span) in answers.items() if incomplete(span)]
