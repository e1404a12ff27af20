"""What the next service receives from the network, and that FastAPI and Flask decide alike."""

import re
import socket
import threading

import pytest

BOTH_FRAMEWORKS = [(f"{asgi}/{{}}", "waitress/{}") for asgi in ("uvicorn-h11", "uvicorn-httptools", "hypercorn")]


class NextService:
    """Answers one request, and keeps it as it came."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(30)
        self.port = self._listener.getsockname()[1]
        self.received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with self._listener, self._listener.accept()[0] as connection:
            connection.settimeout(30)
            while b"\r\n\r\n" not in self.received:
                self.received += connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def lines(self):
        self._thread.join()
        head = self.received.decode("latin-1").partition("\r\n\r\n")[0]
        return [line for line in head.split("\r\n")[1:] if not re.match(r"(?i)host|accept|connection|user-agent", line)]


def test_each_propagation_header_goes_out_once(service, collector, new_ids):
    trace, parent = new_ids()
    following = NextService()
    lines = [
        f"traceparent: 00-{trace}-{parent}-01",
        "tracestate: foo=1",
        "tracestate: bar=2",
        "baggage: a=1;p",
        "baggage: b=%20",
        "x-request-id: 5f2c7a3e",
        "b3: 0",
    ]
    answer = service.ask(*lines, path=f"/call?to=http://127.0.0.1:{following.port}/")
    assert answer.report == {"status": 204}

    sent = following.lines()
    [own] = [line.removeprefix("traceparent: ") for line in sent if line.startswith("traceparent: ")]
    assert sorted(sent) == [
        "baggage: a=1;p,b=%20",
        f"traceparent: {own}",
        "tracestate: foo=1,bar=2",
        f"x-meshmw-sent: {own[36:]}",
        "x-request-id: 5f2c7a3e",
    ]

    spans = collector.wait_for(
        lambda spans: [each for each in spans if each.trace_id == trace and each.kind == "SERVER"]
    )
    spans = [span for span in spans if span.trace_id == trace]
    [server] = [span for span in spans if span.kind == "SERVER"]
    [client] = [span for span in spans if span.kind == "CLIENT"]
    assert server.parent_id == parent
    assert server.name == "GET /call"
    assert server.service == service.name
    assert own == f"00-{trace}-{client.span_id}-01"
    assert client.parent_id in {span.span_id for span in spans}


def decision(report, ids):
    return {"continued": report["trace_id"] in ids, "parents": [span["parent_id"] for span in report["server_spans"]]}


@pytest.mark.parametrize("policy", ["strict", "w3c"])
@pytest.mark.parametrize(("on_fastapi", "on_flask"), BOTH_FRAMEWORKS)
@pytest.mark.parametrize("versions", ["00 00", "00 cc", "cc 00", "cc cc", "00 zz", "zz 00"])
def test_two_traceparents_end_in_the_same_decision(fleet, new_ids, policy, on_fastapi, on_flask, versions):
    ids = [new_ids(), new_ids()]
    pairs = zip(versions.split(), ids, strict=True)
    lines = [f"traceparent: {version}-{trace}-{parent}-01" for version, (trace, parent) in pairs]
    decisions = [
        decision(fleet.get(each.format(policy)).ask(*lines, "tracestate: foo=1").report, [trace for trace, _ in ids])
        for each in (on_fastapi, on_flask)
    ]
    assert decisions == [{"continued": False, "parents": [None]}] * 2
