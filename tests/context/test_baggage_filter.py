"""The size limits of baggage alone, in front of an ASGI or WSGI application that knows nothing of meshmw."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw.asgi import BaggageSizeFilter
from meshmw.wire.baggage import MEMBER
from meshmw.wsgi import BaggageSizeFilter as WsgiBaggageSizeFilter


def seen_by_asgi(*lines, kind="http", **options):
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])

    headers = [(b"host", b"a"), *[(b"baggage", line) for line in lines], (b"x-baggage", b"\xff=")]
    scope = {"type": kind, "path": "/", "headers": headers}
    asyncio.run(BaggageSizeFilter(app, **options)(scope, None, None))
    assert [pair for pair in seen if pair[0] != b"baggage"] == [headers[0], headers[-1]]
    return [value for name, value in seen if name == b"baggage"]


def seen_by_wsgi(*lines, **options):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return [b"body"]

    environ = {"HTTP_HOST": "a", "HTTP_X_BAGGAGE": "\xff="}
    if lines:
        environ["HTTP_BAGGAGE"] = b",".join(lines).decode("latin-1")
    assert WsgiBaggageSizeFilter(app, **options)(dict(environ), None) == [b"body"]
    found = seen.pop("HTTP_BAGGAGE", None)
    environ.pop("HTTP_BAGGAGE", None)
    assert seen == environ
    return [] if found is None else [found.encode("latin-1")]


both = pytest.mark.parametrize("seen", [seen_by_asgi, seen_by_wsgi], ids=["asgi", "wsgi"])


@both
@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"a", []),
        (b"=1", []),
        (b"a=1,b", [b"a=1"]),
        (b"a=1,\xff=2,c=\xe9", [b"a=1"]),
        (b"a b=1, c=2 ;p = 1;q ,d=\x00", [b"c=2 ;p = 1;q"]),
        (b'a="1",b=%zz', [b"b=%zz"]),
        (b"a=1;\n,b=2", [b"b=2"]),
    ],
)
def test_malformed_members_are_dropped_and_the_others_kept_byte_for_byte(seen, line, kept):
    assert seen(line) == kept


@both
def test_too_many_members(seen):
    members = [b"k%d=%d" % (number, number) for number in range(65)]
    assert seen(b",".join(members[:64])) == [b",".join(members[:64])]
    assert seen(b",".join(members)) == [b",".join(members[:64])]
    assert seen(b"a=1,b=2", max_members=1) == [b"a=1"]
    assert seen(b"a=1", max_members=0) == []


@both
def test_too_many_bytes(seen):
    fits = b"a=" + b"1" * 8184 + b",b=2;p"[:6]
    assert len(fits) == 8192
    assert seen(fits) == [fits]
    assert seen(fits + b"1") == [fits[: fits.index(b",")]]
    assert seen(b"a=" + b"1" * 100_000) == []
    assert seen(b"a=1,b=2", max_bytes=6) == [b"a=1"]
    assert seen(b"a=1", max_bytes=0) == []


@both
def test_what_is_no_member_takes_no_room_either(seen):
    assert seen(b"a=1" + b", " * 5000) == [b"a=1"]
    assert seen(b"," * 9000) == []
    assert seen(b"," * 8192) == [b"," * 8192]


def test_several_lines_count_together():
    lines = [b"a=1;p", b" b=2 ", b"c"]
    assert seen_by_asgi(*lines[:2]) == lines[:2]
    assert seen_by_asgi(*lines) == [b"a=1;p,b=2"]
    assert seen_by_asgi(b"a=" + b"1" * 4094, b"b=" + b"1" * 4093) == [b"a=" + b"1" * 4094, b"b=" + b"1" * 4093]
    assert seen_by_asgi(b"a=" + b"1" * 4094, b"b=" + b"1" * 4094) == [b"a=" + b"1" * 4094]


@both
def test_a_request_without_baggage_is_left_alone(seen):
    assert seen() == []


def test_websockets_are_filtered_and_the_lifespan_is_not_looked_at():
    assert seen_by_asgi(b"a", kind="websocket") == []
    reached = []

    async def app(scope, receive, send):
        reached.append(scope)

    scope = {"type": "lifespan"}
    asyncio.run(BaggageSizeFilter(app)(scope, None, None))
    assert reached == [scope]


@pytest.mark.parametrize("limits", [{"max_members": -1}, {"max_bytes": -1}])
def test_a_limit_below_zero_is_refused(limits):
    for each in (BaggageSizeFilter, WsgiBaggageSizeFilter):
        with pytest.raises(ValueError, match="0 or more"):
            each(lambda *_: None, **limits)


def test_each_reason_is_warned_of_once_and_no_value_is_shown(caplog):
    wsgi = WsgiBaggageSizeFilter(lambda environ, start_response: [], max_members=1)
    for _ in range(3):
        wsgi({"HTTP_BAGGAGE": "bad secret,a=secret,b=secret"}, None)
    assert sorted(caplog.messages) == [
        "baggage refused (member): - the members concerned are dropped, the others kept",
        "baggage refused (too_many_members): - the members concerned are dropped, the others kept",
    ]


@given(
    st.lists(st.binary(max_size=60) | st.from_regex(rb"[a-c]=[!-+\-:<-~]{0,9}", fullmatch=True), max_size=6),
    st.integers(0, 5),
    st.integers(0, 80),
)
def test_whatever_comes_the_application_sees_members_within_the_limits(lines, max_members, max_bytes):
    for seen in (seen_by_asgi, seen_by_wsgi):
        left = b",".join(seen(*lines, max_members=max_members, max_bytes=max_bytes))
        members = [part.strip(b" \t") for part in left.split(b",") if part.strip(b" \t")]
        assert len(left) <= max_bytes
        assert len(members) <= max_members
        assert all(MEMBER().fullmatch(member.decode("ascii")) for member in members)
        came = [part.strip(b" \t") for line in lines for part in line.split(b",")]
        assert all(member in came for member in members)


def test_neither_an_sdk_nor_a_framework_is_loaded():
    code = (
        "import sys, meshmw.asgi\n"
        "heavy = {'opentelemetry.sdk', 'pydantic', 'httpx', 'starlette', 'flask'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
