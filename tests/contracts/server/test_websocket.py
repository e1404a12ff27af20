"""WebSocket handshakes on every ASGI host: one span, which ends when the handshake is answered."""

import pytest
from opentelemetry.trace import StatusCode

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE_ID}-{PARENT_ID}-01"

# Their telemetry spans the whole connection.
TELEMETRY_OF_THE_HOST = {"NativeFastAPI", "ContribASGIOutside", "ContribFastAPI"}


@pytest.fixture
def shake_hands(websocket_host):
    def call(path, headers=(("traceparent", VALID),), **more):
        incoming = [{"type": "websocket.connect"}]
        scope = {"type": "websocket", "scheme": "ws", "subprotocols": [], "extensions": {"websocket.http.response": {}}}
        return websocket_host, websocket_host.get(path, headers, incoming=incoming, **scope, **more)

    return call


def own_span(host):
    return type(host).__name__ not in TELEMETRY_OF_THE_HOST


def test_an_accepted_handshake_is_one_span_and_the_connection_keeps_the_context(shake_hands, caplog):
    host, reply = shake_hands("/ws/accept")
    assert "ended span" not in caplog.text
    assert reply.sent == ["websocket.accept", "websocket.send", "websocket.close"]
    assert host.server_span.parent.span_id == int(PARENT_ID, 16)
    assert {f"{visit.trace_id:032x}" for visit in host.visits} == {TRACE_ID}
    if own_span(host):
        assert host.server_span.attributes["http.response.status_code"] == 101
        assert host.server_span.attributes["url.scheme"] == "ws"
        assert host.server_span.status.status_code is StatusCode.UNSET


def test_the_span_ends_when_the_handshake_is_answered(shake_hands, websocket_host):
    ended = {}
    shake_hands("/ws/accept", on_send=lambda message: ended.update({message["type"]: len(websocket_host.server_spans)}))
    after = 1 if own_span(websocket_host) else 0
    assert ended == {"websocket.accept": 0, "websocket.send": after, "websocket.close": after}


def test_a_denied_handshake_is_answered_with_403(shake_hands):
    host, reply = shake_hands("/ws/deny")
    assert reply.sent == ["websocket.close"]
    if own_span(host):
        assert host.server_span.attributes["http.response.status_code"] == 403


def test_a_rejected_handshake_has_the_status_of_its_response(shake_hands):
    host, reply = shake_hands("/ws/reject")
    start, *body = reply.sent
    assert (start, set(body)) == ("websocket.http.response.start", {"websocket.http.response.body"})
    assert reply.status == 401
    if own_span(host):
        assert host.server_span.attributes["http.response.status_code"] == 401
        assert "meshmw.response.incomplete" not in host.server_span.attributes


def test_a_handshake_that_fails_passes_the_error_on(shake_hands):
    host, reply = shake_hands("/ws/fail")
    if host.raises:
        assert reply.error is host.error
        assert host.server_span.status.status_code is StatusCode.ERROR
    else:  # the framework answers it itself
        assert (reply.error, reply.sent) == (None, ["websocket.close"])
        assert host.server_span.attributes["http.response.status_code"] == 403


def test_a_malformed_traceparent_goes_no_further(shake_hands):
    host, _ = shake_hands("/ws/accept", headers=[("traceparent", "junk"), ("tracestate", "a=1")])
    assert host.server_span.parent is None
    assert host.visits[0].headers.keys().isdisjoint({"traceparent", "tracestate"})
    assert host.refusals == {("traceparent", "hex"): 1}
