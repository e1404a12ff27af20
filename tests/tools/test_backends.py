"""Jaeger and Tempo, as small servers that answer with JSON in the shape of theirs: neither runs on a test machine."""

from __future__ import annotations

import base64
import http.server
import json
import math
import threading
from collections.abc import Iterator

import pytest

from meshmw._tools.verify.evidence import BackendError, HttpBackend, jaeger_link
from tests.tools.test_http_client import serving

TRACE_ID, SPAN_ID, PARENT_ID = f"{1:032x}", "a" * 16, "b" * 16

# The shape of Jaeger 1.x and 2.x, /api/traces/{id}.
JAEGER = {
    "data": [
        {
            "traceID": "1",
            "spans": [
                {
                    "traceID": "1",
                    "spanID": SPAN_ID,
                    "operationName": "ingress",
                    "references": [
                        {"refType": "FOLLOWS_FROM", "traceID": "1", "spanID": "ffff"},
                        {"refType": "CHILD_OF", "traceID": "1", "spanID": PARENT_ID},
                    ],
                    "startTime": 1_000,
                    "duration": 500,
                    "tags": [
                        {"key": "span.kind", "type": "string", "value": "server"},
                        {"key": "otel.scope.name", "type": "string", "value": "envoy"},
                        {"key": "error", "type": "bool", "value": True},
                    ],
                    "processID": "p1",
                },
                {"traceID": "1", "spanID": "c", "startTime": 2_000, "processID": "p9"},
            ],
            "processes": {"p1": {"serviceName": "edge"}},
        }
    ]
}


def otlp(trace_id: str, span_id: str, parent_id: str, kind: object, code: object) -> dict[str, object]:
    return {
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "edge"}}]},
        "scopeSpans": [
            {
                "scope": {"name": "envoy"},
                "spans": [
                    {
                        "traceId": trace_id,
                        "spanId": span_id,
                        "parentSpanId": parent_id,
                        "name": "ingress",
                        "kind": kind,
                        "startTimeUnixNano": "1000000",
                        "endTimeUnixNano": "1500000",
                        "status": {"code": code},
                        "attributes": [{"key": "upstream_cluster", "value": {"stringValue": "x"}}],
                    }
                ],
            }
        ],
    }


def b64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


HEX = otlp(TRACE_ID, SPAN_ID, PARENT_ID, 2, 2)
# Tempo writes protobuf's JSON: ids in base64, enumerations by name.
PROTO = otlp(b64(TRACE_ID), b64(SPAN_ID), b64(PARENT_ID), "SPAN_KIND_SERVER", "STATUS_CODE_ERROR")


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, tuple[int, object]]]]:
    """An address and the answers by path that it gives."""
    answers: dict[str, tuple[int, object]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, {"error": "not found"}))
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", answers
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("backend", "path", "body"),
    [
        ("jaeger", f"/api/traces/{TRACE_ID}", JAEGER),
        ("jaeger", f"/api/v3/traces/{TRACE_ID}", {"result": {"resourceSpans": [HEX]}}),
        ("tempo", f"/api/v2/traces/{TRACE_ID}", {"trace": {"resourceSpans": [PROTO]}}),
        ("tempo", f"/api/traces/{TRACE_ID}", {"batches": [PROTO]}),
    ],
)
def test_each_shape_is_read_alike(server, backend, path, body):
    url, answers = server
    answers[path] = (200, body)
    found = HttpBackend(backend, url, {"X-Scope-OrgID": "a"}).spans([TRACE_ID, "f" * 32])
    first = found[0]
    assert (first.trace_id, first.span_id, first.parent_id) == (TRACE_ID, SPAN_ID, PARENT_ID)
    assert (first.service, first.name, first.kind, first.status) == ("edge", "ingress", "SERVER", "ERROR")
    assert (first.start_ns, first.end_ns, first.maker) == (1_000_000, 1_500_000, "proxy")
    if len(found) > 1:
        assert (found[1].span_id, found[1].parent_id, found[1].service) == ("c".rjust(16, "0"), "", "")


def test_jaeger_has_a_page_for_each_trace_that_it_has(server):
    url, answers = server
    answers[f"/api/traces/{TRACE_ID}"] = (200, JAEGER)
    assert jaeger_link("http://me:secret@jaeger/ui/", "a") == "http://jaeger/ui/trace/a"
    jaeger = HttpBackend("jaeger", url)
    assert jaeger.links == {}
    jaeger.spans([TRACE_ID, "f" * 32])
    assert jaeger.links == {TRACE_ID: f"{url}trace/{TRACE_ID}"}


def test_tempo_has_no_page(server):
    url, answers = server
    answers[f"/api/traces/{TRACE_ID}"] = (200, {"batches": [PROTO]})
    tempo = HttpBackend("tempo", url)
    assert tempo.spans([TRACE_ID])
    assert tempo.links == {}


@pytest.mark.parametrize("backend", ["jaeger", "tempo"])
def test_what_does_not_exist_yields_nothing(server, backend):
    url, answers = server
    assert HttpBackend(backend, url).spans([TRACE_ID]) == []
    answers[f"/api/traces/{TRACE_ID}"] = (200, {"data": [], "batches": []})
    assert HttpBackend(backend, url).spans([TRACE_ID]) == []


def test_ids_of_other_lengths_are_filled_up(server):
    url, answers = server
    answers[f"/api/v3/traces/{TRACE_ID}"] = (200, {"resourceSpans": [otlp("1", "aaa=", "!", 0, 0)]})
    (found,) = HttpBackend("jaeger", url).spans([TRACE_ID])
    assert (found.trace_id, found.span_id, found.kind) == (TRACE_ID, "aaa=".rjust(16, "0"), "INTERNAL")


def test_a_link_to_another_trace_is_no_parent(server):
    url, answers = server
    references = [
        {"refType": "CHILD_OF", "traceID": "f" * 32, "spanID": "a" * 16},
        {"refType": "CHILD_OF", "traceID": TRACE_ID.lstrip("0"), "spanID": "b" * 16},
    ]
    span = {"traceID": TRACE_ID, "spanID": "c" * 16, "references": references, "startTime": 1}
    answers[f"/api/traces/{TRACE_ID}"] = (200, {"data": [{"spans": [span]}]})
    assert [each.parent_id for each in HttpBackend("jaeger", url).spans([TRACE_ID])] == ["b" * 16]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        [1],
        {"data": 7, "batches": 7},
        {"data": [{}], "batches": [{"scopeSpans": 7}]},
        b"[" * 100_000,
        {
            "data": [{"spans": [{"startTime": math.inf}]}],
            "batches": [{"scopeSpans": [{"spans": [{"traceId": "1", "spanId": "1", "endTimeUnixNano": math.inf}]}]}],
        },
    ],
    ids=["html", "list", "numbers", "empty", "deep", "infinite"],
)
def test_what_is_no_backend_is_said(server, body):
    url, answers = server
    for path in (f"/api/traces/{TRACE_ID}", f"/api/v2/traces/{TRACE_ID}", f"/api/v3/traces/{TRACE_ID}"):
        answers[path] = (500, body) if "v" in path.split("/")[2] else (200, body)
    for backend in ("jaeger", "tempo"):
        with pytest.raises(BackendError, match=r"answered 500; .* answered something else"):
            HttpBackend(backend, url).spans([TRACE_ID])


def test_a_time_beyond_all_times_can_still_be_drawn(server):
    url, answers = server
    span = {"traceID": TRACE_ID, "spanID": SPAN_ID, "startTime": -5, "duration": 10**400}
    answers[f"/api/traces/{TRACE_ID}"] = (200, {"data": [{"spans": [span]}]})
    (found,) = HttpBackend("jaeger", url).spans([TRACE_ID])
    assert (found.start_ns, found.end_ns) == (0, 2**63 - 1)


def test_what_cannot_be_reached_is_said():
    with pytest.raises(BackendError, match=r"jaeger at http://127\.0\.0\.1:9 cannot be reached"):
        HttpBackend("jaeger", "http://127.0.0.1:9").spans([TRACE_ID])


@pytest.mark.parametrize(
    ("backend", "path", "body", "said"),
    [
        (
            "tempo",
            f"/api/v2/traces/{TRACE_ID}",
            {"trace": {"resourceSpans": [PROTO]}, "status": "PARTIAL", "message": "too \x1b large"},
            "too \\x1b large",
        ),
        ("tempo", f"/api/v2/traces/{TRACE_ID}", {"trace": {"resourceSpans": [PROTO]}, "status": 1}, "it says PARTIAL"),
        (
            "jaeger",
            f"/api/traces/{TRACE_ID}",
            {**JAEGER, "errors": [{"code": 500, "msg": "a shard is down"}]},
            "a shard",
        ),
    ],
)
def test_a_trace_that_comes_in_part_is_said_until_it_is_whole(server, backend, path, body, said):
    url, answers = server
    answers[path] = (200, body)
    asked = HttpBackend(backend, url)
    assert asked.spans([TRACE_ID])
    (text,) = asked.partial
    assert f"has trace {TRACE_ID} in part: " in text
    assert said in text
    answers[path] = (200, {key: value for key, value in body.items() if key in ("trace", "data")})
    assert asked.spans([TRACE_ID])
    assert asked.partial == ()


def test_of_very_many_spans_a_part_is_taken_and_that_is_said(server):
    url, answers = server
    many = [{**JAEGER["data"][0]["spans"][1], "traceID": TRACE_ID, "spanID": f"{number:x}"} for number in range(10_001)]
    answers[f"/api/traces/{TRACE_ID}"] = (200, {"data": [{"spans": many}]})
    jaeger = HttpBackend("jaeger", url)
    assert len(jaeger.spans([TRACE_ID])) == 10_000
    assert "more than 10,000 spans" in jaeger.partial[0]


def test_one_look_at_a_backend_ends_however_many_traces_there_are(server):
    url, _ = server
    with pytest.raises(BackendError, match="cannot be reached: there was no whole answer"):
        HttpBackend("jaeger", url, look=0.0).spans([TRACE_ID])


@pytest.mark.parametrize("page", [b"<html>404 Not Found</html>", b"404 page not found\n"])
def test_a_url_under_which_there_is_no_backend_is_said(page):
    answer = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(page)
    with serving(answer + page) as (url, _):
        for backend in ("jaeger", "tempo"):
            with pytest.raises(BackendError, match=r"answered 404; .* answered 404"):
                HttpBackend(backend, url).spans([TRACE_ID])


def test_the_headers_that_a_backend_is_asked_with_are_not_said(server):
    url, answers = server
    answers[f"/api/v2/traces/{TRACE_ID}"] = (200, {"status": "PARTIAL", "message": "too much for tenant geheim"})
    tempo = HttpBackend("tempo", url, {"X-Scope-OrgID": "geheim", "empty": ""})
    assert tempo.spans([TRACE_ID]) == []
    assert tempo.partial == (f"tempo at {url} has trace {TRACE_ID} in part: too much for tenant ...",)
