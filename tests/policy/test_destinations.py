"""Which hosts are meant: what must not match comes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._notices import quoted
from meshmw._policy.outbound import Destinations
from meshmw._policy.patterns import Networks, parse_address, parse_network

MESH = Destinations(["mesh"])
JUNK = (
    "",
    ".",
    "..",
    " ",
    "a b",
    "a..b",
    ".a",
    "a\n",
    "a\x00.internal",
    "a/.internal",
    "evil.example/x.internal",
    "user@inventory",
    "inventory:8080",
    "[::1",
    "::1]",
    "[]",
    "[[::1]]",
    "[inventory]",
    "[::1]:80",
    "*",
    "a,b",
    "%69nventory",
    "1::2::3",
    "10.0.0.1%eth0",
    "\ud800.",
    "x" * 255,
    "a." * 4000 + "internal",
    "1" * 100_000,
)


@pytest.mark.parametrize("host", JUNK[:-3])
def test_junk_matches_nothing_but_everything(host):
    every_kind = ["mesh", ".internal", "*.internal", "?*", "0.0.0.0/0", "::/0", "a"]
    assert not Destinations(every_kind).matches(host)
    assert Destinations(["*"]).matches(host)


@pytest.mark.parametrize("host", JUNK[-3:])
def test_what_is_longer_than_any_host_is_not_looked_at(host):
    destinations = Destinations(["mesh", "?*"])
    assert not destinations.matches(host)
    assert destinations._decide.cache_info().currsize == 0


@given(st.text() | st.text(alphabet="0123456789abcdefx.:[]%-*A \u3002"))
def test_no_host_raises(host):
    for patterns in (["mesh"], [".a"], ["*.a", "?"], ["10.0.0.0/8", "::/0"], ["a"], []):
        assert Destinations(patterns).matches(host) in (True, False)


class TestMesh:
    # inet_aton(3), which resolvers fall back to, reads each of these as an address of the internet.
    @pytest.mark.parametrize("host", ["134744072", "0x8080808", "8", "0x8.0x8.2056", "8.8.2056", "010.8.8.8", "a.0x"])
    def test_a_number_is_no_name(self, host):
        assert not MESH.matches(host)
        assert not Destinations(["?*"]).matches(host)

    # Clients turn each of these into a dot when they encode the name.
    @pytest.mark.parametrize("dot", ["\u3002", "\uff0e", "\uff61", "\u2024"])
    def test_a_label_beyond_ascii_may_be_more_than_one(self, dot):
        assert not MESH.matches(f"attacker{dot}example")

    @pytest.mark.parametrize(
        "host",
        [
            "example.com",
            "inventory.shop",
            "mesh.example.com",
            "notlocal.example",
            "evilinternal.com",
            "internal.example.com",
            "localhost.example.com",
            "cluster.local.example.com",
            "svc.example.com",
            "8.8.8.8",
            "172.15.255.255",
            "172.32.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "169.253.0.1",
            "11.0.0.0",
            "0.0.0.0",
            "::",
            "2001:db8::1",
            "fec0::1",
            "::ffff:8.8.8.8",
            "[::ffff:808:808]",
            "64:ff9b::a00:1",
        ],
    )
    def test_the_rest_of_the_world_is_not_meant(self, host):
        assert not MESH.matches(host)

    @pytest.mark.parametrize(
        "host",
        [
            "inventory",
            "Inventory",
            "my_service",
            "mesh",
            "localhost",
            "localhost.",
            "LOCALHOST",
            "shop.localhost",
            "inventory.shop.svc",
            "inventory.shop.svc.cluster.local",
            "inventory.shop.svc.cluster.local.",
            "printer.local",
            "api.internal",
            "metadata.google.internal",
            "bücher.internal",
            "127.0.0.1",
            "127.255.255.254",
            "10.1.2.3",
            "10.1.2.3.",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.1.1",
            "::1",
            "[::1]",
            "fe80::1",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "fd12::1",
            "FD12::1",
            "::ffff:10.0.0.1",
            "[::ffff:a00:1]",
        ],
    )
    def test_the_mesh_is_meant(self, host):
        assert MESH.matches(host)


class TestPatterns:
    @pytest.mark.parametrize(
        ("pattern", "host"),
        [
            ("example.com", "www.example.com"),
            ("example.com", "example.com.evil.net"),
            ("example.com", "examplexcom"),
            (".example.com", "badexample.com"),
            (".example.com", "example.com.evil.net"),
            ("*.svc.cluster.local", "svc.cluster.local"),
            ("*.svc.cluster.local", "a.svc.cluster.local.evil.net"),
            ("*.svc.cluster.local", "asvcxcluster.local"),
            ("api-?.internal", "api-.internal"),
            ("api-?.internal", "api-10.internal"),
            ("*.*", "10.0.0.1"),
            ("10.0.0.0/8", "11.0.0.1"),
            ("10.0.0.0/8", "10.0.0.0.example.com"),
            ("10.0.0.0/8", "a00::"),
            ("::/0", "10.0.0.1"),
            ("0.0.0.0/0", "::1"),
            ("192.0.2.7", "192.0.2.70"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("k.example", "\u212a.example"),
        ],
    )
    def test_a_near_miss(self, pattern, host):
        assert not Destinations([pattern]).matches(host)

    @pytest.mark.parametrize(
        ("pattern", "host"),
        [
            ("Example.com.", "example.COM"),
            ("example.com", "example.com."),
            (".example.com", "example.com"),
            (".Example.com", "a.b.example.com."),
            ("*.svc.cluster.local", "inventory.shop.svc.cluster.local"),
            ("API-?.internal", "api-1.Internal"),
            ("*", "\x00"),
            ("*.*", "example.com"),
            ("10.0.0.0/8", "::ffff:10.1.1.1"),
            ("::ffff:10.0.0.0/104", "10.1.1.1"),
            ("::ffff:10.1.1.1", "10.1.1.1"),
            ("::/0", "2001:db8::1"),
            ("2001:db8::/32", "[2001:DB8::1]"),
            ("[2001:db8::1]", "2001:db8:0::1"),
            ("192.0.2.7", "192.0.2.7"),
            ("bücher.example", "BüCHER.example"),
            ("my_service", "my_service"),
        ],
    )
    def test_a_match(self, pattern, host):
        assert Destinations([pattern]).matches(host)
        assert Destinations(["other.example", pattern, "198.51.100.0/24"]).matches(host)

    def test_no_pattern_means_nothing(self):
        assert not Destinations([]).matches("inventory")

    @pytest.mark.parametrize(
        "pattern",
        [
            "",
            ".",
            "..example.com",
            "a..b",
            "a b",
            "http://a",
            "a:80",
            "a/b",
            "[a]",
            "[a-z].internal",
            "a\n",
            "10.0.*",
            "1?.0.0.1",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0",
            "300.0.0.1",
            "0x7f.1",
            "fe80::1%eth0",
            "fe80::%eth0/10",
            "user@*",
        ],
    )
    def test_a_bad_pattern_is_named(self, pattern):
        with pytest.raises(ValueError, match=r"no host name|no pattern of|no address and no network") as refused:
            Destinations(["mesh", pattern])
        assert quoted(pattern.removesuffix(".")) in str(refused.value)

    @given(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5}){0,3}", fullmatch=True))
    def test_a_name_means_itself_and_a_suffix_all_below(self, name):
        assert Destinations([name]).matches(name.upper() + ".")
        assert Destinations([f".{name}"]).matches(f"x.{name}")
        assert not Destinations([name]).matches(f"x.{name}")
        assert not Destinations([f".{name}"]).matches(f"x{name}")


def test_decisions_are_kept_in_a_bounded_number():
    destinations = Destinations(["mesh"])
    for number in range(3000):
        assert destinations.matches(f"host-{number}")
        assert destinations.matches("inventory")
    info = destinations._decide.cache_info()
    assert info.currsize == info.maxsize == 1024
    assert info.hits == 2999


class TestAddresses:
    @given(st.ip_addresses())
    def test_an_address_reads_as_itself(self, address):
        expected = getattr(address, "ipv4_mapped", None) or address
        assert parse_address(str(address)) == expected
        assert parse_address(f"[{address}]") == expected

    @given(st.text())
    def test_no_text_raises(self, text):
        parse_address(text)

    @pytest.mark.parametrize("text", ["", "[]", "1" * 100_000, "::1%" + "x" * 77, "10.0.0.1%eth0", "1"])
    def test_no_address(self, text):
        assert parse_address(text) is None

    @given(st.ip_addresses())
    def test_a_network_of_one(self, address):
        assert (parse_address(str(address)) in Networks([str(address)])) is True

    def test_a_network_holds_no_address_of_the_other_family(self):
        assert parse_address("::a00:1") not in Networks(["10.0.0.0/8"])

    def test_an_empty_set_holds_none(self):
        assert parse_address("::1") not in Networks()

    def test_a_network_of_mapped_addresses_is_that_of_the_addresses(self):
        assert str(parse_network("::ffff:0:0/96")) == "0.0.0.0/0"
        assert str(parse_network("::fffe:0:0/95")) == "::fffe:0:0/95"
        assert str(parse_network("2001:db8::/97")) == "2001:db8::/97"
