"""A WSGI application for each odd thing that PEP 3333 allows, or that an application does all the same."""

import sys

import meshmw
from meshmw.wsgi import TraceContextMiddleware

TEXT = ("Content-Type", "text/plain")
FIVE = ("Content-Length", "5")

meshmw.configure()


def root(environ, start_response):
    start_response("200 OK", [TEXT])
    return [b"ready"]


def raises_before_it_starts(environ, start_response):
    raise LookupError("out of stock")


def raises_after_it_starts(environ, start_response):
    start_response("200 OK", [TEXT])
    raise LookupError("out of stock")


def body_raises_at_once(environ, start_response):
    start_response("200 OK", [TEXT])

    def body():
        raise LookupError("out of stock")
        yield b""

    return body()


def body_raises_after_an_empty_chunk(environ, start_response):
    start_response("200 OK", [TEXT])

    def body():
        yield b""
        raise LookupError("out of stock")

    return body()


def body_raises_after_a_byte(environ, start_response):
    start_response("200 OK", [TEXT])

    def body():
        yield b"x"
        raise LookupError("out of stock")

    return body()


def starts_with_its_body(environ, start_response):
    start_response("404 Not Found", [TEXT])
    yield b"none"


def starts_after_an_empty_chunk(environ, start_response):
    yield b""
    start_response("404 Not Found", [TEXT])
    yield b"none"


def never_starts(environ, start_response):
    return [b"none"]


def starts_twice(environ, start_response):
    start_response("200 OK", [TEXT])
    try:
        raise LookupError("out of stock")
    except LookupError:
        start_response("503 Busy", [TEXT], sys.exc_info())
    return [b"busy"]


def starts_twice_without_a_reason(environ, start_response):
    start_response("200 OK", [TEXT])
    start_response("503 Busy", [TEXT])
    return [b"busy"]


def starts_again_after_an_empty_chunk(environ, start_response):
    start_response("200 OK", [TEXT])
    yield b""
    try:
        raise LookupError("out of stock")
    except LookupError:
        start_response("503 Busy", [TEXT], sys.exc_info())
    yield b"busy"


def starts_again_after_a_byte(environ, start_response):
    start_response("200 OK", [TEXT])
    yield b"x"
    try:
        raise LookupError("out of stock")
    except LookupError:
        start_response("503 Busy", [TEXT], sys.exc_info())
    yield b"busy"


def starts_again_and_goes_on(environ, start_response):
    start_response("200 OK", [TEXT])
    yield b"x"
    try:
        try:
            raise LookupError("out of stock")
        except LookupError:
            start_response("503 Busy", [TEXT], sys.exc_info())
    except LookupError:
        yield b"sorry"


def writes(environ, start_response):
    start_response("200 OK", [FIVE])(b"12345")
    return []


def writes_and_raises(environ, start_response):
    start_response("200 OK", [TEXT])(b"12345")
    raise LookupError("out of stock")


def writes_nothing_and_raises(environ, start_response):
    start_response("200 OK", [TEXT])(b"")
    raise LookupError("out of stock")


def by_keyword(environ, start_response):
    start_response(status="202 Accepted", headers=[TEXT], exc_info=None)
    return [b"later"]


def by_keyword_in_part(environ, start_response):
    start_response("202 Accepted", headers=[TEXT])
    return [b"later"]


def sends_more_than_it_promised(environ, start_response):
    start_response("200 OK", [FIVE])
    yield b"12345"
    yield b"6789"


def sends_less_than_it_promised(environ, start_response):
    start_response("200 OK", [FIVE])
    yield b"123"


def raises_once_all_is_sent(environ, start_response):
    start_response("200 OK", [FIVE])
    yield b"12345"
    raise LookupError("out of stock")


def sends_a_body_with_204(environ, start_response):
    start_response("204 No Content", [])
    yield b"12345"
    yield b"6789"


def sends_a_body_with_304(environ, start_response):
    start_response("304 Not Modified", [])
    yield b"12345"
    yield b"6789"


class Closing:
    """Is a body whose end fails."""

    def __iter__(self):
        return iter([b"12345"])

    def close(self):
        raise LookupError("out of stock")


def closing_raises(environ, start_response):
    start_response("200 OK", [FIVE])
    return Closing()


def answers_an_exception(environ, start_response):
    try:
        raise LookupError("out of stock")
    except LookupError:
        start_response("500 Sorry", [TEXT])
        return [b"sorry"]


def empty(environ, start_response):
    start_response("200 OK", [TEXT])
    return []


CASES = {name: found for name, found in list(globals().items()) if getattr(found, "__code__", None) is not None}


def plain(environ, start_response):
    return CASES[environ["PATH_INFO"].removeprefix("/") or "root"](environ, start_response)


app = TraceContextMiddleware(plain)


def serve(server):
    print(f"Serving on http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "wsgiref":
        from wsgiref.simple_server import make_server

        serve(make_server("127.0.0.1", 0, app))
    else:
        from werkzeug.serving import make_server

        serve(make_server("127.0.0.1", 0, app))
