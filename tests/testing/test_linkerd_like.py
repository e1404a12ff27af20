"""The stand-in for Linkerd, by the rules that Linkerd's source states."""

import http.client
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from meshmw.testing import LinkerdLike, Listener, Proxy, Tracer
from meshmw.testing._linkerd_like import continue_trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
B3 = [("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN), ("X-B3-Sampled", "1")]


def test_a_traceparent_is_continued_with_a_new_span_id_and_b3_beside_it_goes_stale():
    trace = continue_trace([("TraceParent", f"00-{TRACE}-{SPAN}-01"), *B3, ("tracestate", "a=1")])
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, SPAN, True)
    assert trace.span_id != SPAN
    assert trace.headers == [*B3, ("tracestate", "a=1"), ("traceparent", f"00-{TRACE}-{trace.span_id}-01")]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "")],
        [("traceparent", f"01-{TRACE}-{SPAN}-01")],
        [("traceparent", "00-xyz")],
        B3[:1],
        [("a", "b")],
    ],
    ids=["none", "empty", "later-version", "malformed", "half-b3", "others"],
)
def test_it_never_starts_a_trace(headers):
    assert continue_trace(headers) is None


def test_short_ids_are_padded_and_hex_may_be_upper_case():
    trace = continue_trace([("traceparent", "00-ABC-DEF-00")])
    assert (trace.trace_id, trace.parent_id, trace.sampled) == ("ABC".rjust(32, "0"), "DEF".rjust(16, "0"), False)


@pytest.mark.parametrize(("flag", "sampled"), [("1", True), ("0", False)])
def test_without_traceparent_b3_is_continued(flag, sampled):
    trace = continue_trace([*B3[:2], ("x-b3-sampled", flag)])
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, SPAN, sampled)
    assert trace.headers == [
        B3[0],
        ("x-b3-sampled", flag),
        ("x-b3-spanid", trace.span_id),
        ("x-b3-parentspanid", SPAN),
    ]


def until(is_so):
    """Wait for what the stand-in does after the client has its answer."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


class Echo(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps(
            [self.path, self.rfile.read(int(self.headers["Content-Length"])).decode(), self.headers.items()]
        )
        self.send_response(201)
        self.send_header("X-Answer", "yes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_forwards_everything_and_reports_what_is_sampled(echo, tmp_path):
    reported = []
    listeners = [Listener(name=name, upstream=echo, direction=name) for name in ("inbound", "outbound")]
    with LinkerdLike(Proxy("sidecar", listeners), reported.extend, tmp_path / "log") as sidecar:
        assert sidecar.url("inbound") == f"http://127.0.0.1:{sidecar.port('inbound')}"
        for number, (name, flags) in enumerate((("inbound", "01"), ("outbound", "01"), ("inbound", "00")), start=1):
            connection = http.client.HTTPConnection("127.0.0.1", sidecar.port(name), timeout=30)
            connection.request(
                "POST", "/x?y=1", b"body", {"traceparent": f"00-{TRACE}-{SPAN}-{flags}", "baggage": "a=1"}
            )
            answer = connection.getresponse()
            path, body, headers = json.loads(answer.read())
            connection.close()
            assert (answer.status, answer.getheader("X-Answer"), path, body) == (201, "yes", "/x?y=1", "body")
            assert dict(headers)["baggage"] == "a=1"
            assert dict(headers)["traceparent"].startswith(f"00-{TRACE}-")
            until(lambda ended=number: len(sidecar.access_log()) == 2 * ended)
        until(lambda: len(reported) >= 2)
        # A client that breaks off is no news.
        connection = http.client.HTTPConnection("127.0.0.1", sidecar.port("inbound"), timeout=30)
        connection.request("POST", "/", b"", {"Content-Length": "5"})
        connection.close()
        until(lambda: len(sidecar.access_log()) == 7)
        lines = sidecar.access_log()
        written = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert written[: len(lines)] == lines
    assert [(span.service, span.kind, span.parent_id) for span in reported] == [
        ("sidecar", "SERVER", SPAN),
        ("sidecar", "CLIENT", SPAN),
    ]
    assert [line["listener"] for line in lines[:6:2]] == ["inbound", "outbound", "inbound"]


def test_a_body_in_chunks_arrives_whole(echo, tmp_path):
    listener = Listener(name="inbound", upstream=echo, direction="inbound")
    with LinkerdLike(Proxy("sidecar", [listener]), lambda spans: None, tmp_path / "log") as sidecar:
        connection = http.client.HTTPConnection("127.0.0.1", sidecar.port("inbound"), timeout=30)
        for _ in range(2):  # what is left of the first would be read as the second
            connection.putrequest("POST", "/")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            connection.send(b"2;ext\r\nbo\r\n2\r\ndy\r\n0\r\ntrailer: x\r\n\r\n")
            assert json.loads(connection.getresponse().read())[1] == "body"
        connection.close()


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"early_remove_headers": ("traceparent",)}, "early_remove_headers"),
        ({"tracer": Tracer(collector="127.0.0.1:1")}, "tracer"),
        ({"edge": True}, "edge"),
    ],
)
def test_what_it_cannot_do_is_refused(tmp_path, asked, name):
    listener = Listener(name="inbound", upstream="127.0.0.1:1", **asked)
    with pytest.raises(ValueError, match=f"cannot do {name} of listener 'inbound'"):
        LinkerdLike(Proxy("sidecar", [listener]), print, tmp_path / "log")


def test_lines_that_do_not_come_are_not_waited_for_for_ever(tmp_path):
    sidecar = LinkerdLike(Proxy("sidecar", [Listener(name="in", upstream="127.0.0.1:1")]), print, tmp_path / "log")
    with pytest.raises(AssertionError, match="'sidecar' logged 0 lines, not 1"):
        sidecar.access_log(at_least=1, timeout=0.05)
