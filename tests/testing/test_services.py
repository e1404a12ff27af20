"""What a test mesh is made of, before anything is started."""

import sys

import pytest

from meshmw.errors import MeshError
from meshmw.testing import HEADER_MATRIX, Service
from meshmw.testing._processes import in_order
from meshmw.testing._requests import header_cases
from meshmw.wire.traceparent import TraceParent


def service(name, *calls):
    return Service(name, f"{name}:app", calls=calls)


def test_each_comes_after_all_that_it_calls():
    services = [service("a", "c", "b"), service("b", "c"), service("c")]
    assert [each.name for each in in_order(services)] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ([], r"services with different names, got \[\]"),
        ([service("a"), service("a")], r"different names, got \['a', 'a'\]"),
        ([service("a", "b")], "'a' calls 'b', which is not in the mesh"),
        ([service("a", "b"), service("b", "a")], "in a circle: a -> b -> a"),
        ([service("a", "a")], "in a circle: a -> a"),
    ],
    ids=["none", "same-name", "unknown", "circle", "itself"],
)
def test_services_that_do_not_fit_together_are_refused(services, message):
    with pytest.raises(MeshError, match=message):
        in_order(services)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Shop", "app": "a:b"}, "'Shop' is no name"),
        ({"name": "shop"}, "needs an app, such as"),
        ({"name": "shop", "app": "a:b", "command": ["x"]}, "needs an app, such as"),
        ({"name": "shop", "app": "a:b", "sidecar": "istio"}, "sidecar takes none, otel, .*, not 'istio'"),
        ({"name": "shop", "app": "a:b", "interface": "ASGI"}, "interface takes asgi or wsgi, not .* mean asgi"),
        ({"name": "shop", "command": ["x"], "interface": "wsgi"}, "command, which serves itself: interface is for"),
        ({"name": "port", "app": "a:b"}, "'port' is the mesh's own name for something else"),
        ({"name": "shop-sidecar", "app": "a:b"}, "'shop-sidecar' is the mesh's own name"),
    ],
    ids=["name", "nothing", "both", "sidecar", "interface", "unused-interface", "taken-name", "sidecars-name"],
)
def test_a_service_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(MeshError, match=message):
        Service(**arguments)


def test_what_stands_in_braces_is_put_in_and_other_braces_stay():
    shop = Service(
        "shop",
        command=["serve", "--port={port}", '{"json": 1}'],
        calls=["stock-room"],
        environment={"UPSTREAM": "{stock-room}/v1", "OWN": ":{port}"},
    )
    places = {"port": "8000", "stock-room": "http://127.0.0.1:9"}
    assert shop.arguments(places) == ["serve", "--port=8000", '{"json": 1}']
    assert shop.variables(places) == {
        "STOCK_ROOM_URL": "http://127.0.0.1:9",
        "UPSTREAM": "http://127.0.0.1:9/v1",
        "OWN": ":8000",
    }


@pytest.mark.parametrize(("interface", "server"), [("asgi", "uvicorn"), ("wsgi", "meshmw.testing._processes")])
def test_an_app_gets_a_server_of_its_interface(interface, server):
    command = Service("shop", "shop:app", interface=interface).arguments({"port": "8000"})
    assert command == [sys.executable, "-m", server, "--port", "8000", "--host", "127.0.0.1", "shop:app"]


def test_the_header_matrix_says_itself_what_goes_on():
    assert len({case.name for case in HEADER_MATRIX}) == len(HEADER_MATRIX)
    for case in HEADER_MATRIX:
        lines = [value for name, value in case.lines if name == "traceparent"]
        assert bool(case.trace_id) == bool(case.parent_id)
        if case.trace_id and lines:
            parent = TraceParent.parse(lines[0])
            assert (f"{parent.trace_id:032x}", f"{parent.parent_id:016x}") == (case.trace_id, case.parent_id)
            assert parent.sampled == case.sampled


def test_header_cases_are_chosen_by_name():
    assert [str(case) for case in header_cases(["twice", "w3c"])] == ["twice", "w3c"]
    assert header_cases() == list(HEADER_MATRIX)
    with pytest.raises(ValueError, match="no header case 'w4c': choose of none, w3c"):
        header_cases(["w4c"])
