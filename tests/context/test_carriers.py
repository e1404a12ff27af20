"""Header lines in the shapes that servers hand out."""

from meshmw import asgi, wsgi
from meshmw._context.carriers import HeaderNames

NAMES = HeaderNames(["x-request-id"])


def from_asgi(headers):
    return asgi._header_lines(headers, NAMES.asgi)


def from_wsgi(environ):
    return wsgi._header_lines(environ, NAMES.wsgi)


def test_asgi_lines_keep_their_order_and_their_bytes():
    headers = [(b"traceparent", b"a"), (b"x-other", b"-"), (b"traceparent", b"\xff"), (b"x-request-id", b"7")]
    assert from_asgi(headers) == {"traceparent": ["a", "\xff"], "x-request-id": ["7"]}


def test_a_header_that_only_looks_like_ours_is_not_taken():
    assert from_asgi([(b"trace_parent", b"a"), (b"traceparent ", b"b"), (b"x-traceparent", b"c")]) == {}
    assert from_wsgi({"TRACEPARENT": "a", "HTTP_TRACE_PARENT": "b", "HTTP_XTRACEPARENT": "c"}) == {}


def test_asgi_headers_may_be_any_iterable():
    assert from_asgi(iter(([b"baggage", b"a=1"],))) == {"baggage": ["a=1"]}


def test_a_wsgi_line_is_one_however_many_were_sent():
    environ = {"HTTP_TRACEPARENT": "a,b", "HTTP_X_REQUEST_ID": "7", "PATH_INFO": "/"}
    assert from_wsgi(environ) == {"traceparent": ["a,b"], "x-request-id": ["7"]}


def test_a_rewrite_replaces_every_line_of_a_header_and_leaves_the_others():
    headers = [(b"baggage", b"=,a=1"), (b"host", b"x"), (b"baggage", b"b=2"), (b"traceparent", b"junk")]
    assert asgi._rewritten(headers, {"baggage": "a=1,b=2", "traceparent": None}) == [
        (b"host", b"x"),
        (b"baggage", b"a=1,b=2"),
    ]


def test_a_rewrite_changes_an_environ_in_place():
    environ = {"HTTP_BAGGAGE": "=,a=1", "HTTP_TRACEPARENT": "junk", "HTTP_HOST": "x"}
    wsgi._rewrite(environ, {"baggage": "a=1", "traceparent": None, "tracestate": None})
    assert environ == {"HTTP_BAGGAGE": "a=1", "HTTP_HOST": "x"}
