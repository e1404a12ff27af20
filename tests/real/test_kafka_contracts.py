"""All that holds for Kafka's clients on the broker of `tests/contracts/messaging` holds on Apache Kafka too."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.contracts.messaging import (
    conftest,
    test_beside_contrib,
    test_iteration,
    test_kafka_wrappers,
    test_one_trace,
    test_unhappy,
)
from tests.contracts.messaging.kafka_clients import CLIENTS
from tests.contracts.messaging.test_kafka_outage import (
    test_a_batch_goes_on_while_its_partitions_go_to_another_consumer as test_a_batch_goes_on_in_a_rebalance,
)

SUITES = [conftest, test_one_trace, test_iteration, test_unhappy, test_beside_contrib, test_kafka_wrappers]

__all__ = ["test_a_batch_goes_on_in_a_rebalance"]


def _public(suite: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(suite).items() if not name.startswith(("_", "@"))}


for _suite in SUITES:
    globals().update(_public(_suite))


@pytest.fixture(scope="session")
def kafka_broker(apache_kafka: str) -> str:
    """Another broker, for the tests that ask for one by its name."""
    return apache_kafka


@pytest.fixture(params=CLIENTS)
def make(request: pytest.FixtureRequest, kafka_broker: str) -> Callable[..., Any]:
    """Makes a client of each library of Kafka's, with options of `Messaging`."""
    return lambda **options: CLIENTS[request.param](kafka_broker, **options)
