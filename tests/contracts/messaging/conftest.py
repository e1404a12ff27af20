"""Binds the messaging contract: every file `*_clients.py` here names the clients of one broker, and how to find that.

Such a file has `CLIENTS`, from test id to `MessagingClient` class, and `BROKER`, the name of the session fixture that
yields the broker's address; the files `*_broker.py` have those. To add a broker, copy one file of each kind. List the
clients in `BINDINGS` here, and the fixture's file in `pytest_plugins` of `tests/conftest.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import kafka
import pytest

from tests.contracts.messaging import kafka_clients, rabbitmq_clients

BINDINGS = [kafka_clients, rabbitmq_clients]
CLIENTS = {name: (client, binding.BROKER) for binding in BINDINGS for name, client in binding.CLIENTS.items()}

_numbers = itertools.count()


@pytest.fixture
def destination() -> str:
    """A topic or queue that nobody has used."""
    return f"orders-{next(_numbers)}"


@pytest.fixture(params=CLIENTS)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a client of each library, with options of `Messaging`."""
    client, broker = CLIENTS[request.param]
    address = request.getfixturevalue(broker)
    return lambda **options: client(address, **options)


@pytest.fixture
def run(make: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a test's coroutine function with an open client, and closes that."""

    def run_with(use: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def whole() -> Any:
            client = make(**options)
            await client.open()
            try:
                return await asyncio.wait_for(use(client), 120)
            finally:
                await client.close()

        return asyncio.run(whole())

    return run_with


@pytest.fixture(autouse=True)
def no_forgotten_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client of kafka-python has opened is closed with it, whoever makes the client."""
    for each in (kafka.KafkaConsumer, kafka.KafkaProducer):
        monkeypatch.setitem(each.DEFAULT_CONFIG, "selector", kafka_clients.ClosingSelector)


@pytest.fixture(autouse=True)
def no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Law 5, in every test of this folder."""
    yield
    for when in ("setup", "call", "teardown"):
        said = [record.getMessage() for record in caplog.get_records(when)]
        assert not [line for line in said if "Failed to detach" in line], said
