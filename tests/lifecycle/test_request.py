"""What tells one request from another."""

import pytest

from meshmw._lifecycle.http import Request


class Shown(Request):
    protocol = "asgi"

    # No trust is decided here.
    view = None

    def attributes(self):
        return {}


class ShownToWsgi(Shown):
    protocol = "wsgi"


OUTER = ("GET", "/a", {"host": ["shop"], "x-id": ["1"]})


@pytest.mark.parametrize(
    ("inner", "is_same"),
    [
        (OUTER, True),
        (("POST", *OUTER[1:]), False),
        (("GET", "/b", OUTER[2]), False),
        (("GET", "/a", {"host": ["shop"], "x-id": ["2"]}), False),
        (("GET", "/a", {"host": ["shop"]}), False),
        (("GET", "/a", {**OUTER[2], "more": ["1"]}), False),
    ],
    ids=["same", "method", "path", "value", "less", "more"],
)
def test_it_is_the_same_in_another_protocol_if_nothing_differs(inner, is_same):
    assert Shown(*OUTER, {}).is_same(ShownToWsgi(*inner, {})) is is_same


def test_in_its_own_protocol_one_that_looks_alike_is_another_and_what_is_over_is_nobodys():
    outer = Shown(*OUTER, {})
    assert not outer.is_same(Shown(*OUTER, {}))
    outer.close()
    assert not outer.is_same(ShownToWsgi(*OUTER, {}))
    assert outer.carrier == {}
