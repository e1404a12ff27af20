"""The hosts that the server contract runs on, and the fixtures by which its tests get them.

Each file of `hosts/` names in `HOSTS` the ways to put meshmw around one framework. To add a framework, copy such a file
and list it in `FRAMEWORKS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from opentelemetry import propagate

from tests.contracts.server.asgi_host import ASGIHost
from tests.contracts.server.hosts import (
    aiohttp,
    bare_asgi,
    bare_wsgi,
    contrib,
    django,
    fastapi,
    flask,
    home_made,
    litestar,
    quart,
    starlette,
)
from tests.contracts.server.wsgi_host import WSGIHost

FRAMEWORKS = [bare_asgi, starlette, fastapi, litestar, quart, bare_wsgi, flask, django, contrib, home_made, aiohttp]
HOSTS = {host.__name__: host for framework in FRAMEWORKS for host in framework.HOSTS}
ASGI_HOSTS = [name for name, host in HOSTS.items() if issubclass(host, ASGIHost)]
WSGI_HOSTS = [name for name, host in HOSTS.items() if issubclass(host, WSGIHost)]
WEBSOCKET_HOSTS = [name for name in ASGI_HOSTS if HOSTS[name].has_websockets]


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes hosts by class name; their frameworks' telemetry reads with their propagator, as after `configure()`."""
    before = propagate.get_global_textmap()

    def make_host(name: str, **options: Any) -> Any:
        host = HOSTS[name](**options)
        propagate.set_global_textmap(host.propagator)
        return host

    yield make_host
    propagate.set_global_textmap(before)


@pytest.fixture(params=list(HOSTS))
def new_host(make: Any, request: pytest.FixtureRequest) -> Any:
    """Makes each host in turn, with options of the test's own."""
    return partial(make, request.param)


@pytest.fixture
def host(new_host: Any) -> Any:
    return new_host()


@pytest.fixture(params=ASGI_HOSTS)
def new_asgi_host(make: Any, request: pytest.FixtureRequest) -> Any:
    return partial(make, request.param)


@pytest.fixture
def asgi_host(new_asgi_host: Any) -> Any:
    return new_asgi_host()


@pytest.fixture(params=WEBSOCKET_HOSTS)
def websocket_host(make: Any, request: pytest.FixtureRequest) -> Any:
    return make(request.param)


@pytest.fixture(params=WSGI_HOSTS)
def new_wsgi_host(make: Any, request: pytest.FixtureRequest) -> Any:
    return partial(make, request.param)


@pytest.fixture
def wsgi_host(new_wsgi_host: Any) -> Any:
    return new_wsgi_host()


@pytest.fixture(autouse=True)
def no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Law 5, in every test of this folder."""
    yield
    for when in ("setup", "call", "teardown"):
        said = [record.getMessage() for record in caplog.get_records(when)]
        assert not [line for line in said if "Failed to detach" in line], said
