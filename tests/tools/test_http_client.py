"""The tools' one HTTP client against servers on real sockets that drip, repeat, pack and never end.

Nothing is asserted of time: what must end does, or the test's own limit of time is reached.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpcore
import pytest

from meshmw._tools.doctor.proxy import AdminError, ask_proxy
from meshmw._tools.http_client import HttpError, _Deadline, exchange
from meshmw._tools.verify.evidence import BackendError, HttpBackend
from meshmw._tools.verify.probe import ProbeError, make_probe, send

HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def serving(
    *answers: bytes, forever: bytes = b"", tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each connection with some bytes, and then with others again and again until the peer goes away."""
    asked: list[bytes] = []
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            held = tls.wrap_socket(connection, server_side=True) if tls else connection
            with held:
                asked.append(held.recv(65_536))
                for each in answers:
                    held.sendall(each)
                while forever and not ended.wait(0.02):
                    held.sendall(forever)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = stack.enter_context(socket.create_server((host, 0), family=family))
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        place = f"[{host}]" if ":" in host else host
        yield f"http{'s' if tls else ''}://{place}:{listener.getsockname()[1]}", asked
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def body(content: bytes, *lines: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in (*lines, f"Content-Length: {len(content)}"))
    return HEAD + head.encode() + b"\r\n" + content


def bomb() -> bytes:
    """Some kilobytes that are a gigabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()


NEVER_ENDING: dict[str, tuple[bytes, bytes]] = {
    "dripped status": (b"HTTP/1.1 200", b" "),
    "dripped headers": (HEAD + b"x: ", b"a"),
    "headers without end": (HEAD, b"x: a\r\n"),
    "endless 100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless 103 Early Hints": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "dripped body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"a"),
    "endless body": (HEAD + b"\r\n", b"a"),
    "endless chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "one chunk size without end": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1"),
    "gzip that never says anything": (HEAD + b"Content-Encoding: gzip\r\n\r\n" + bomb()[:10], b"\0\0\0\xff\xff"),
    "silence": (b"", b""),
}


@pytest.mark.parametrize("kind", NEVER_ENDING)
def test_an_answer_that_never_ends_is_an_error(kind):
    first, forever = NEVER_ENDING[kind]
    with socket.create_server(("127.0.0.1", 0)) as silent, serving(first, forever=forever) as (url, _):
        url = url if forever else f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(HttpError):
            exchange("GET", url, timeout=0.5)


@pytest.mark.parametrize("kind", NEVER_ENDING)
def test_no_tool_waits_for_it(kind):
    first, forever = NEVER_ENDING[kind]
    if not forever:
        return
    with serving(first, forever=forever) as (url, _):
        with pytest.raises(AdminError, match="cannot be asked"):
            ask_proxy(url, timeout=0.3)
        if "body" in kind or "chunk" in kind or "gzip" in kind:
            assert send(make_probe(url), timeout=0.3).status_code == 200
        else:
            with pytest.raises(ProbeError, match="did not answer"):
                send(make_probe(url), timeout=0.3)


@pytest.mark.parametrize(
    "answer",
    [
        body(bomb(), "Content-Encoding: gzip"),
        body(gzip.compress(bomb()), "Content-Encoding: gzip, gzip"),
        body(gzip.compress(bomb()), "Content-Encoding: gzip", "Content-Encoding: gzip"),
        body(bytes(3 << 20)),
        body(b"x", "Content-Encoding: br"),
        body(b"x" * 20, "Content-Encoding: gzip"),
        body(gzip.compress(b"x" * 20)[:-1], "Content-Encoding: gzip"),
        b"nonsense\r\n\r\n",
        b"",
        HEAD + b"x: " + bytes(200_000),
    ],
    ids=[
        "bomb",
        "nested",
        "nested in two lines",
        "long",
        "unknown",
        "no gzip",
        "cut gzip",
        "no http",
        "nothing",
        "long header",
    ],
)
def test_what_is_too_much_or_cannot_be_read_is_an_error(answer):
    with serving(answer) as (url, _), pytest.raises(HttpError):
        exchange("GET", url, limit=1 << 20)


def test_a_bomb_is_read_up_to_the_limit_where_that_is_enough():
    with serving(body(bomb(), "Content-Encoding: gzip")) as (url, _):
        assert exchange("GET", url, limit=1000, cut=True).body == bytes(1000)


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (b'{"a": 1}', ""),
        (b'{"a": 1}', "identity"),
        (gzip.compress(b'{"a": 1}', mtime=0), "GZIP"),
        (gzip.compress(b'{"a": 1}', mtime=0) + b"more", "x-gzip"),
        (zlib.compress(b'{"a": 1}'), "deflate"),
    ],
)
def test_a_good_answer_is_read(packed, encoding):
    with serving(body(packed, f"Content-Encoding: {encoding}")) as (url, _):
        assert exchange("GET", url).json() == {"a": 1}


def test_json_that_is_nested_too_deeply_is_no_json():
    with serving(body(b"[" * 100_000)) as (url, _), pytest.raises(RecursionError):
        exchange("GET", url).json()


def test_a_redirect_is_not_followed():
    with serving(body(b"secret")) as (other, asked):
        moved = b"HTTP/1.1 302 Found\r\nLocation: " + other.encode() + b"/\r\nContent-Length: 0\r\n\r\n"
        with serving(moved) as (url, _):
            assert exchange("GET", url, headers={"authorization": "Bearer x"}).status_code == 302
            with pytest.raises(AdminError, match="answered 302"):
                ask_proxy(url)
            with pytest.raises(BackendError, match="answered 302"):
                HttpBackend("tempo", url).spans(["1" * 32])
        assert asked == []


def test_what_is_sent():
    with serving(body(b"")) as (url, asked):
        exchange("post", url.replace("//", "//me:pa%20ss@") + "/a?b=c", headers={"X-Scope-OrgID": "é"}, content=b"body")
        exchange("GET", url.replace("//", "//me:pass@"), headers={"Authorization": "Bearer x", "Host": "other"})
    first, second = (each.lower() for each in asked)
    assert first.startswith(b"post /a?b=c http/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: basic bwu6cgegc3m=\r\n" in first
    assert "x-scope-orgid: é\r\n".encode() in first
    assert b"content-length: 4\r\n" in first
    assert b"accept-encoding: identity\r\n" in first
    assert b"authorization: bearer x\r\n" in second
    assert b"host: other\r\n" in second


@pytest.mark.parametrize(
    "url", ["http://[", "ftp://host/", "mesh:80", "http:///a", "http://a b/", "http://127.0.0.1:9/"]
)
def test_a_url_that_cannot_be_asked_is_an_error(url):
    with pytest.raises(HttpError):
        exchange("GET", url)


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "b\r\nc: d"}, {"é": "x"}])
def test_a_header_that_cannot_be_sent_is_an_error(headers):
    with serving(body(b"")) as (url, asked), pytest.raises(HttpError):
        exchange("GET", url, headers=headers)
    assert asked in ([], [b""])


def test_a_password_that_makes_the_url_unreadable_is_not_said():
    for url in ("http://user:pa#ss@host/", "http://user:pa/ss@host/", "http://user:pa?ss@host/"):
        with pytest.raises(HttpError) as error:
            exchange("GET", url)
        assert "pa" not in str(error.value)


def test_the_value_of_a_header_that_cannot_be_sent_is_not_said():
    with serving(body(b"")) as (url, _), pytest.raises(HttpError) as error:
        exchange("GET", url, headers={"authorization": "Bearer geheim\r\nx: y"})
    assert "geheim" not in str(error.value)
    assert error.value.__cause__ is None


def test_an_ipv6_address_has_its_brackets_in_the_host_header():
    with serving(body(b"fine"), host="::1") as (url, asked):
        assert exchange("GET", url).body == b"fine"
    place = url.removeprefix("http://").encode()
    assert place.startswith(b"[::1]:")
    assert b"\r\nhost: " + place + b"\r\n" in asked[0].lower()


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_a_time_without_end_is_a_day(timeout):
    with serving(body(b"fine")) as (url, _):
        assert exchange("GET", url, timeout=timeout).body == b"fine"


def test_a_name_that_is_looked_up_for_ever_is_waited_for_until_the_deadline():
    ended = threading.Event()
    with pytest.raises(httpcore.ConnectTimeout):
        _Deadline(0.2, look_up=lambda *_, **__: ended.wait()).connect_tcp("mesh", 80)
    ended.set()


def test_every_address_of_a_name_has_its_turn():
    def look_up(*addresses: str):
        return lambda *_, **__: [(0, 0, 0, "", (address, 0)) for address in addresses]

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _Deadline(5, look_up=look_up("127.0.0.2", "127.0.0.1")).connect_tcp("mesh", port).close()
        with pytest.raises(httpcore.ConnectError, match="refused"):
            _Deadline(5, look_up=look_up("127.0.0.2", "127.0.0.3")).connect_tcp("mesh", port)
        with pytest.raises(httpcore.ConnectError, match="no address"):
            _Deadline(5, look_up=look_up()).connect_tcp("mesh", port)


def test_a_name_that_nobody_has_is_an_error():
    with pytest.raises(HttpError):
        exchange("GET", f"http://{'a' * 70}.invalid/")


STRANGE = {
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nabc",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "a coding of transfers": HEAD + b"Transfer-Encoding: gzip\r\n\r\nx",
    "no status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/0.9": b"<html>hello",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "a byte that is none of a header's": HEAD + b"x: a\0b\r\n\r\n",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_answer_is_an_error(kind):
    with serving(STRANGE[kind]) as (url, _), pytest.raises(HttpError):
        exchange("GET", url, timeout=2)


def test_trailers_without_end_and_a_handshake_without_end_are_errors():
    last = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    with serving(last, forever=b"x: y\r\n") as (url, _), pytest.raises(HttpError):
        exchange("GET", url, timeout=0.5)
    # A handshake record that goes on and on.
    with serving(b"\x16\x03\x03\x40\x00", forever=b"\x02") as (url, _), pytest.raises(HttpError):
        exchange("GET", url.replace("http:", "https:"), timeout=0.5)


def test_a_deadline_that_has_passed_opens_nothing():
    with serving(body(b"")) as (url, _), pytest.raises(HttpError, match="within 0 seconds"):
        exchange("GET", url, timeout=0)


def test_tls_is_verified_unless_that_is_not_wanted(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(body(b"fine"), tls=context) as (url, _):
        assert exchange("GET", url, verify_tls=False).body == b"fine"
        with pytest.raises(HttpError, match="certificate"):
            exchange("GET", url)
