"""The attribute values of the stable HTTP conventions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._lifecycle import http_conventions, operation
from meshmw._lifecycle import http_conventions as semconv


@pytest.mark.parametrize(
    ("given_version", "expected"),
    [
        ("HTTP/1.1", "1.1"),
        ("HTTP/1.0", "1.0"),
        ("HTTP/2", "2"),
        ("HTTP/2.0", "2"),
        ("h2", "2"),
        ("h3", "3"),
        ("3.0", "3"),
        ("", ""),
    ],
)
def test_versions_are_named_as_the_conventions_name_them(given_version, expected):
    assert semconv.protocol_version(given_version) == expected


@pytest.mark.parametrize(
    ("authority", "scheme", "expected"),
    [
        ("shop.mesh", "http", {"server.address": "shop.mesh", "server.port": 80}),
        ("shop.mesh", "https", {"server.address": "shop.mesh", "server.port": 443}),
        ("shop.mesh:8080", "http", {"server.address": "shop.mesh", "server.port": 8080}),
        ("[::1]:80", "http", {"server.address": "::1", "server.port": 80}),
        ("shop.mesh", "gopher", {"server.address": "shop.mesh"}),
        ("", "http", {}),
        (None, "http", {}),
        (":80", "http", {}),
        ("shop.mesh:99999", "http", {}),
        ("shop.mesh:x", "http", {}),
        ("user@shop.mesh", "http", {}),
        ("shop.mesh/path", "http", {}),
        ("shop.mesh?q", "http", {}),
        ("shop.mesh#f", "http", {}),
        ("[::1", "http", {}),
    ],
)
def test_an_authority_is_said_if_it_is_one(authority, scheme, expected):
    assert http_conventions.address_attributes("server", authority, scheme) == expected


@pytest.mark.parametrize(
    "host", ["a b", "a\tb", "a\x00b", "<a>", 'a"', "a\\b", "{a}", "[::1]x", "[::1]x:80", "a\x7f", " "]
)
def test_what_no_authority_holds_makes_it_malformed(host):
    assert http_conventions.address_attributes("server", host, "http") == {}


@pytest.mark.parametrize(
    ("host", "port", "authority"),
    [
        ("10.0.0.1", 80, "10.0.0.1:80"),
        ("pod", "8000", "pod:8000"),
        ("::1", 80, "[::1]:80"),
        ("[::1]", "8000", "[::1]:8000"),
        ("fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
        ("::ffff:10.0.0.1", 80, "[::ffff:10.0.0.1]:80"),
    ],
)
def test_an_address_of_ipv6_stands_in_brackets(host, port, authority):
    assert semconv.authority_of(host, port) == authority
    expected = {"server.address": host.strip("[]"), "server.port": int(port)}
    assert semconv.address_attributes("server", authority, "http") == expected


@pytest.fixture
def known():
    """Sets the methods that are known, and the standard ones again afterwards."""
    yield semconv.know_methods
    semconv.know_methods("")


@pytest.mark.parametrize(
    ("listed", "method", "expected"),
    [
        ("", "GET", ("GET", "GET", None)),
        ("", "QUERY", ("QUERY", "QUERY", None)),
        ("", "PROPFIND", ("HTTP", "_OTHER", "PROPFIND")),
        (" , ,", "GET", ("GET", "GET", None)),
        ("PROPFIND", "PROPFIND", ("PROPFIND", "PROPFIND", None)),
        # It takes the place of the standard ones.
        ("PROPFIND", "GET", ("HTTP", "_OTHER", "GET")),
        (" GET , ,PROPFIND,", "GET", ("GET", "GET", None)),
        ("GET,PROPFIND", "propfind", ("HTTP", "_OTHER", "propfind")),
        ("get", "get", ("get", "get", None)),
        ("get", "GET", ("HTTP", "_OTHER", "GET")),
        ("GET", "", ("HTTP", "_OTHER", "")),
    ],
)
def test_a_method_is_known_if_it_is_listed(known, listed, method, expected):
    request = {"scheme": "http", "path": "/", "query": "", "authority": "shop", "protocol_version": "1.1"}
    request |= {"client": None, "client_port": None, "user_agent": None}
    before = semconv.server_attributes(method=method, **request)
    known(listed)
    name, shown, original = expected
    found = semconv.server_attributes(method=method, **request)
    assert (semconv.span_name(method), found["http.request.method"]) == (name, shown)
    assert found.get("http.request.method_original") == original
    known("")
    assert semconv.server_attributes(method=method, **request) == before


@given(st.text())
def test_no_authority_can_raise(authority):
    http_conventions.address_attributes("server", authority, "http")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=1", "q=1"),
        ("sig=a", "sig=REDACTED"),
        ("q=1&X-Amz-Signature=a&r=2", "q=1&X-Amz-Signature=REDACTED&r=2"),
        ("AWSAccessKeyId=a&Signature=b", "AWSAccessKeyId=REDACTED&Signature=REDACTED"),
        ("X-Goog-Signature=a=b%26", "X-Goog-Signature=REDACTED"),
        ("sig=a&sig=b", "sig=REDACTED&sig=REDACTED"),
        ("design=a&xsig=b", "design=a&xsig=b"),
        ("", ""),
    ],
)
def test_values_of_known_signatures_are_redacted(query, expected):
    assert semconv.redact_query(query) == expected


def test_a_long_query_is_cut_and_so_is_one_with_many_secrets():
    assert semconv.redact_query("a" * 2048) == "a" * 2048
    assert semconv.redact_query("a" * 2049) == "a" * 2048
    assert semconv.redact_query("q=1&sig=" + "x" * 60_000) == "q=1&sig=REDACTED"
    assert semconv.redact_query("a" * 2040 + "&sig=secret") == "a" * 2040 + "&sig=REDACTED"
    assert semconv.redact_query("a" * 2044 + "&sig=secret") == "a" * 2044 + "&sig"
    many = "&".join(f"sig=secret{n}" for n in range(40))
    assert semconv.redact_query(many) == "&".join(["sig=REDACTED"] * 32)


def test_of_a_query_with_many_urls_or_at_signs_the_beginning_is_shown_without_credentials():
    urls = "&".join(f"u=http://user{n}:s3cret@host" for n in range(60))
    shown = semconv.redact_query(urls)
    assert shown == "&".join(["u=http://REDACTED@host"] * 31) + "&u=http://REDACTED@"
    encoded = semconv.redact_query(urls.replace("://", "%3A%2f%2F").replace("@", "%40"))
    assert encoded.count("REDACTED") == 32
    assert "s3cret" not in encoded
    assert semconv.redact_query("a@b&" * 60) == "a@b&" * 31 + "a@"
    assert semconv.redact_query("u=a://" * 60 + "@") == ("u=a://" * 32 + "u=a")


def test_an_authority_longer_than_any_host_is_none():
    assert semconv.address_attributes("server", "a" * 513, "http") == {}
    assert semconv.address_attributes("server", "a" * 512, "http")["server.port"] == 80


def test_an_unknown_method_is_other_and_its_text_is_bounded():
    assert semconv.method_attributes("PROPFIND" * 20) == {
        "http.request.method": "_OTHER",
        "http.request.method_original": ("PROPFIND" * 20)[:64],
    }
    assert semconv.span_name("PROPFIND", "/x") == "HTTP /x"
    assert semconv.span_name("GET") == "GET"


@pytest.mark.parametrize(("end", "short"), [("1" * 5_000, True), ("", False), ("3", False), ("4", True)])
def test_a_promised_length_of_thousands_of_digits_is_told_from_what_was_sent(end, short):
    assert semconv.is_short("GET", 200, ["0" * 5_000 + end], 3) is short


def test_no_attribute_is_longer_than_2048_characters():
    long = "a" * 5_000
    found = semconv.server_attributes(
        method=long,
        scheme=long,
        path=f"/{long}",
        query=long,
        authority=long,
        protocol_version=long,
        client=long,
        client_port=1,
        user_agent=long,
    )
    assert {len(value) for value in found.values() if isinstance(value, str) and len(value) > 64} == {2_048}
    assert (found["client.address"], found["url.scheme"]) == (long[:2_048],) * 2


def test_an_error_is_named_by_its_class():
    class OutOfStock(Exception):
        pass

    assert operation.error_type(LookupError()) == "LookupError"
    assert operation.error_type(OutOfStock()).endswith("OutOfStock")
    assert operation.error_type(OutOfStock()).startswith(f"{__name__}.")


def test_lazy_attributes_are_computed_once_and_only_if_somebody_looks():
    computed = []

    def build():
        computed.append(1)
        return {"a": 1}

    lazy = operation.LazyAttributes(build)
    assert computed == []
    assert (dict(lazy), len(lazy), lazy["a"], "b" in lazy) == ({"a": 1}, 1, 1, False)
    assert computed == [1]


def test_the_port_of_a_scheme_that_has_none_is_left_out():
    found = semconv.client_attributes(method="GET", scheme="unix", host="shop", port=None, url="unix://shop")
    assert found["server.address"] == "shop"
    assert "server.port" not in found
