"""Header lines in the shapes that servers hand out."""

from meshmw._context.carriers import HeaderNames, rewrite_asgi, rewrite_wsgi

NAMES = HeaderNames(["x-request-id"])


def test_asgi_lines_keep_their_order_and_their_bytes():
    headers = [(b"traceparent", b"a"), (b"x-other", b"-"), (b"traceparent", b"\xff"), (b"x-request-id", b"7")]
    assert NAMES.from_asgi(headers) == {"traceparent": ["a", "\xff"], "x-request-id": ["7"]}


def test_a_header_that_only_looks_like_ours_is_not_taken():
    assert NAMES.from_asgi([(b"trace_parent", b"a"), (b"traceparent ", b"b"), (b"x-traceparent", b"c")]) == {}
    assert NAMES.from_wsgi({"TRACEPARENT": "a", "HTTP_TRACE_PARENT": "b", "HTTP_XTRACEPARENT": "c"}) == {}


def test_asgi_headers_may_be_any_iterable():
    assert NAMES.from_asgi(iter(([b"baggage", b"a=1"],))) == {"baggage": ["a=1"]}


def test_a_wsgi_line_is_one_however_many_were_sent():
    environ = {"HTTP_TRACEPARENT": "a,b", "HTTP_X_REQUEST_ID": "7", "PATH_INFO": "/"}
    assert NAMES.from_wsgi(environ) == {"traceparent": ["a,b"], "x-request-id": ["7"]}


def test_a_rewrite_replaces_every_line_of_a_header_and_leaves_the_others():
    headers = [(b"baggage", b"=,a=1"), (b"host", b"x"), (b"baggage", b"b=2"), (b"traceparent", b"junk")]
    assert rewrite_asgi(headers, {"baggage": "a=1,b=2", "traceparent": None}) == [
        (b"host", b"x"),
        (b"baggage", b"a=1,b=2"),
    ]


def test_a_rewrite_changes_an_environ_in_place():
    environ = {"HTTP_BAGGAGE": "=,a=1", "HTTP_TRACEPARENT": "junk", "HTTP_HOST": "x"}
    rewrite_wsgi(environ, {"baggage": "a=1", "traceparent": None, "tracestate": None})
    assert environ == {"HTTP_BAGGAGE": "a=1", "HTTP_HOST": "x"}
