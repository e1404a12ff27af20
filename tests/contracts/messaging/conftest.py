"""Binds the messaging contract: every file `*_clients.py` here names the clients of one broker, and how to find that.

Such a file has `CLIENTS`, from test id to `MessagingClient` class, and `BROKER`, the name of the session fixture that
yields the broker's address. `tests/brokers/*_broker.py` starts the brokers, and names its fixture in
`FIXTURE`.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
BROKERS = HERE.parents[1] / "brokers"


def load(path: Path, name: str) -> ModuleType:
    """Import a file that is no test, under a name that other such files can import."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


load(HERE / "client.py", "messaging_contract")
for path in sorted(BROKERS.glob("*_broker.py")):
    module = load(path, f"meshmw_tests_{path.stem}")
    globals()[module.FIXTURE] = getattr(module, module.FIXTURE)
BINDINGS = [load(path, f"meshmw_tests_{path.stem}") for path in sorted(HERE.glob("*_clients.py"))]
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

    def of(use: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
        async def whole() -> Any:
            client = make(**options)
            await client.open()
            try:
                return await asyncio.wait_for(use(client), 120)
            finally:
                await client.close()

        return asyncio.run(whole())

    return of


@pytest.fixture(autouse=True)
def no_forgotten_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client of kafka-python has opened is closed with it, whoever makes the client."""
    clients = sys.modules["meshmw_tests_kafka_clients"]
    for each in (clients.kafka.KafkaConsumer, clients.kafka.KafkaProducer):
        monkeypatch.setitem(each.DEFAULT_CONFIG, "selector", clients.ClosingSelector)


@pytest.fixture(autouse=True)
def no_detach_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Law 5, in every test of this folder."""
    yield
    for when in ("setup", "call", "teardown"):
        said = [record.getMessage() for record in caplog.get_records(when)]
        assert not [line for line in said if "Failed to detach" in line], said
