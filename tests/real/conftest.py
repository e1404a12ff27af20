"""Kafka itself and the services in other languages: each is started once, for all files here."""

import sys
from pathlib import Path

import pytest

# Tests here start the sample applications, which no wheel carries. Last, so that the installed meshmw stays in front.
sys.path.append(str(Path(__file__).parents[2]))

pytest.register_assert_rewrite("tests.real.istio_shops", "tests.real.peers")

from tests.real.apache_kafka import apache_kafka  # noqa: E402
from tests.real.istio_shops import (  # noqa: E402
    applications,
    client,
    facts,
    istio,
    plane,
    receiver,
    shops,
    start,
)
from tests.real.peers import go_peer, java_peer, journey, node_peer, peer  # noqa: E402

__all__ = [
    "apache_kafka",
    "applications",
    "client",
    "facts",
    "go_peer",
    "istio",
    "java_peer",
    "journey",
    "node_peer",
    "peer",
    "plane",
    "receiver",
    "shops",
    "start",
]
