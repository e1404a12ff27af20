"""Whom a request is taken to come from: forged, missing and malformed first."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw import Settings
from meshmw._notices import Rejections
from meshmw._policy.trust import RequestView, TrustPolicy
from meshmw._policy.xfcc import spiffe_id
from meshmw.errors import SettingsError

ID = "spiffe://cluster.local/ns/shop/sa/checkout"


def view(peer=None, path="/", **headers):
    return RequestView.from_asgi(
        {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": peer and (peer, 4711),
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
    )


@pytest.mark.parametrize("peers", ["", "10.0.0.0/8", b"", None, ["10.0.0.0/33"], [""]])
def test_peers_that_are_no_list_of_networks_are_refused(peers):
    with pytest.raises(ValueError, match=r"trusted_peers|network"):
        TrustPolicy("continue", peers)


def test_in_settings_a_text_lists_networks_and_an_empty_one_lists_none():
    assert Settings(trusted_peers="").trusted_peers == ()
    assert Settings(trusted_peers="10.0.0.0/8, ::1").trusted_peers == ("10.0.0.0/8", "::1")
    with pytest.raises(SettingsError, match="trusted_peers"):
        Settings(trusted_peers=[""])


@pytest.mark.parametrize(
    ("xfcc", "expected"),
    [
        (f'Cert="{"a" * 15_000}";URI={ID}', ID),
        (f"{'By=a;Hash=b,' * 300}By=a;URI={ID}", ID),
        (f"{'By=a;' * 1_022}URI={ID}", ID),
        (f"{'By=a;' * 1_024}URI={ID}", None),
        (f'Subject="{chr(92)}"" * 3;URI={ID}', None),
        (f'Subject="{(chr(92) + chr(34)) * 1_000}";URI={ID}', ID),
        (f'Subject="{(chr(92) + chr(34)) * 1_025}";URI={ID}', None),
        (f"{'URI=http://a;' * 15}URI={ID}", ID),
        (f"{'URI=http://a;' * 16}URI={ID}", None),
        (f'URI={ID};Subject="a,b;URI=spiffe://forged/a"', ID),
        (f'Subject="a,URI=spiffe://forged/a",URI={ID}', ID),
    ],
)
def test_a_client_certificate_header_is_read_within_limits(xfcc, expected):
    assert spiffe_id(xfcc) == expected


class TestCallable:
    @pytest.mark.parametrize("error", [ValueError("secret"), KeyError("x"), RecursionError(), AssertionError()])
    def test_one_that_raises_means_restart_and_is_told_once(self, caplog, error):
        def decide(request):
            raise error

        policy = TrustPolicy(decide, rejections=(rejections := Rejections()))
        assert {policy.decide(view()) for _ in range(5)} == {"restart"}
        assert caplog.messages == [
            (
                f"context refused (trust_raised): - the trust callable raised {type(error).__name__}; "
                "the request starts a new trace"
            )
        ]
        assert rejections.counts == {("context", "trust_raised"): 5}

    @pytest.mark.parametrize("answer", [None, True, "", "Continue", "yes", 7, [], {}, object(), ("continue",)])
    def test_one_that_answers_with_anything_else_means_restart(self, caplog, answer):
        policy = TrustPolicy(lambda request: answer)
        assert policy.decide(view()) == "restart"
        assert policy.decide(view()) == "restart"
        assert caplog.messages == [
            (
                "context refused (trust_answer): - the trust callable returned none of continue, restart, ignore; "
                "the request starts a new trace"
            )
        ]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
    def test_what_ends_the_process_or_the_request_is_not_held_up(self, error):
        def decide(request):
            raise error

        with pytest.raises(error):
            TrustPolicy(decide).decide(view())

    def test_a_coroutine_function_is_refused(self):
        async def decide(request):
            return "continue"

        class Decide:
            async def __call__(self, request):
                return "continue"

        for each in (decide, Decide()):
            with pytest.raises(ValueError, match="coroutine function"):
                TrustPolicy(each)

    @pytest.mark.parametrize("trust", ["Continue", "", "none", None, 7, ["continue"]])
    def test_what_is_neither_a_word_nor_a_callable_is_refused(self, trust):
        with pytest.raises(ValueError, match="trust takes continue, restart, ignore or a callable, not"):
            TrustPolicy(trust)

    def test_it_sees_the_request(self):
        def decide(request):
            return "continue" if request.path.startswith("/internal/") and request.spiffe_id == ID else "ignore"

        policy = TrustPolicy(decide)
        assert policy.static is None
        good = f"By=spiffe://cluster.local/x;URI={ID}"
        assert policy.decide(view(path="/internal/a", x_forwarded_client_cert=good)) == "continue"
        assert policy.decide(view(path="/a", x_forwarded_client_cert=good)) == "ignore"
        assert policy.decide(view(path="/internal/a")) == "ignore"


class TestPeers:
    @pytest.mark.parametrize("peer", [None, "", "unix:", "/run/app.sock", "localhost", "10.0.0.1:80", "010.0.0.1", "x"])
    def test_one_without_an_address_is_outside(self, peer):
        assert TrustPolicy(trusted_peers=["0.0.0.0/0", "::/0"]).decide(view(peer)) == "restart"

    @pytest.mark.parametrize("peer", ["11.0.0.1", "2001:db8::1", "::ffff:11.0.0.1", "::a00:1"])
    def test_one_outside(self, peer):
        peers = ["10.0.0.0/8", "fd00::/8"]
        assert TrustPolicy("continue", peers).decide(view(peer)) == "restart"
        assert TrustPolicy("restart", peers).decide(view(peer)) == "restart"
        assert TrustPolicy("ignore", peers).decide(view(peer)) == "ignore"
        assert TrustPolicy(lambda request: "continue", peers).decide(view(peer)) == "continue"
        assert TrustPolicy(lambda request: "ignore", peers).decide(view(peer)) == "ignore"

    @pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "[fd00::1]", "fd00::1%eth0"])
    @pytest.mark.parametrize("trust", ["continue", "restart", "ignore", lambda request: "ignore"])
    def test_one_inside(self, peer, trust):
        policy = TrustPolicy(trust, ["10.0.0.0/8", "fd00::/8"])
        assert policy.static is None
        assert policy.decide(view(peer)) == "continue"

    def test_a_bad_network_is_refused(self):
        with pytest.raises(ValueError, match="no network"):
            TrustPolicy(trusted_peers=["mesh"])


@pytest.mark.parametrize("word", ["continue", "restart", "ignore"])
def test_a_word_alone_needs_no_request(word):
    policy = TrustPolicy(word)
    assert policy.static == word
    assert policy.decide(view("10.0.0.1")) == word


def test_the_default_is_to_continue():
    assert TrustPolicy().static == "continue"


class TestSpiffeId:
    @pytest.mark.parametrize(
        "header",
        [
            "",
            ",",
            ";",
            "URI",
            "URI=",
            'URI=""',
            ID,
            f"={ID}",
            f"URI={ID},",
            f"URI={ID};",
            f",URI={ID}",
            f"URI={ID};;By=x",
            f'URI="{ID}',
            f'URI={ID}"',
            f'URI="{ID}"x',
            f'URI="{ID}\\',
            f"U RI={ID}",
            f"DNS={ID}",
            f"By={ID}",
            f"URI={ID};URI={ID}",
            f"URI={ID};URI=spiffe://other/x",
            f"URI={ID},By=x;Hash=y",
            f"URI={ID},URI=https://example.com",
            "URI=https://example.com",
            "URI=spiffe://",
            "URI=spiffe:///ns",
            "URI=SPIFFE://cluster.local/x",
            "URI=spiffe://Cluster.local/x",
            "URI=spiffe://user@cluster.local/x",
            "URI=spiffe://cluster.local:80/x",
            "URI=spiffe://cluster.local/",
            "URI=spiffe://cluster.local//x",
            "URI=spiffe://cluster.local/ns/../x",
            "URI=spiffe://cluster.local/.",
            "URI=spiffe://cluster.local/a%2fb",
            'URI="spiffe://cluster.local/a?b"',
            'URI="spiffe://cluster.local/a b"',
            f'URI="{ID}\n"',
            f"URI=spiffe://{'a' * 256}/x",
            f"URI=spiffe://a/{'x' * 2048}",
            f"URI={ID}," + "x" * 16_384,
            # A subject is the client's own to choose, and is quoted.
            f'Subject="CN=x\\";URI={ID};CN=\\"y"',
            f'Subject="x,URI={ID}"',
        ],
    )
    def test_none_is_found(self, header):
        assert spiffe_id(header) is None

    @pytest.mark.parametrize(
        "header",
        [
            f"URI={ID}",
            f"uri={ID}",
            f'URI="{ID}"',
            f'By=spiffe://cluster.local/ns/a;Hash=0f;Subject="CN=a,O=\\"b\\"";URI={ID};DNS=a.b',
            f"URI=spiffe://cluster.local/the-first,By=x; URI={ID}",
            f"URI=spiffe://cluster.local/the-first , URI={ID}",
            f'Subject="x\\\\";URI={ID}',
            f'Subject=;URI={ID};URI=https://example.com;Chain="-----BEGIN%20CERTIFICATE"',
            f"Hash={'0' * 15_000};URI={ID}",
        ],
    )
    def test_the_last_elements_is_found(self, header):
        assert spiffe_id(header) == ID

    @given(st.text(alphabet='URI=spiffe://a"\\,; \tBy') | st.text())
    def test_no_header_raises(self, header):
        found = spiffe_id(header)
        assert found is None or found.startswith("spiffe://")

    def test_of_several_lines_the_last_decides(self):
        def lines(*values):
            headers = [(b"x-forwarded-client-cert", value.encode()) for value in values]
            return RequestView.from_asgi({"path": "/", "headers": headers}).spiffe_id

        assert lines("URI=spiffe://a/forged", f"URI={ID}") == ID
        assert lines(f"URI={ID}", "By=x") is None
        assert lines() is None


class TestRequestView:
    def test_of_asgi(self):
        request = view("192.0.2.1", path="/a b", x_a="1", host="shop", x_b="é")
        assert (request.method, request.path, request.peer) == ("POST", "/a b", "192.0.2.1")
        assert (request.header("X-A"), request.header("host"), request.header("x-b")) == ("1", "shop", "é")
        assert request.header("x-none") is None
        assert request.header("x-\u20ac") is None

    def test_of_a_websocket_without_a_client(self):
        request = RequestView.from_asgi({"type": "websocket", "path": "/ws", "headers": [(b"a", b"1"), (b"a", b"2")]})
        assert (request.method, request.path, request.peer) == ("GET", "/ws", None)
        assert request.header("a") == "1,2"

    def test_of_wsgi(self):
        request = RequestView.from_wsgi(
            {
                "REQUEST_METHOD": "POST",
                "SCRIPT_NAME": "/app",
                "PATH_INFO": "/caf\xc3\xa9/\xff",
                "REMOTE_ADDR": "::1",
                "CONTENT_TYPE": "text/plain",
                "HTTP_CONTENT_TYPE": "forged",
                "HTTP_X_FORWARDED_CLIENT_CERT": f"URI={ID}",
            }
        )
        assert (request.method, request.path, request.peer) == ("POST", "/app/café/\ufffd", "::1")
        assert request.header("Content-Type") == "text/plain"
        assert request.header("content-length") is None
        assert request.spiffe_id == ID

    @pytest.mark.parametrize("path", ["http://shop:8080/items/7", "https://u:p@shop/items/7"])
    def test_a_whole_url_is_the_path_in_it(self, path):
        """Some servers hand on what a proxy is asked for as it came; whoever decides by paths would not know it."""
        assert RequestView.from_asgi({"path": path, "headers": []}).path == "/items/7"
        assert RequestView.from_wsgi({"PATH_INFO": path}).path == "/items/7"
        assert RequestView.from_wsgi({"PATH_INFO": "/items/http://7/8"}).path == "/items/http://7/8"
        assert RequestView.from_asgi({"path": "shop:443", "headers": []}).path == "shop:443"

    def test_of_a_long_path_that_is_not_ascii_the_beginning_is_decoded(self):
        assert RequestView.from_wsgi({"PATH_INFO": "/" + "a" * 65_535}).path == "/" + "a" * 65_535
        request = RequestView.from_wsgi({"SCRIPT_NAME": "/\xc3\xa9", "PATH_INFO": "\xff" * 65_536})
        assert request.path == "/\xe9" + "\ufffd" * 4_093

    def test_of_a_bare_environ(self):
        request = RequestView.from_wsgi({"REMOTE_ADDR": ""})
        assert (request.method, request.path, request.peer) == ("GET", "", None)
        assert request.spiffe_id is None

    def test_it_is_frozen(self):
        with pytest.raises(AttributeError):
            view().path = "/other"
