"""Ports for programs that must be told theirs before they listen.

Knows sockets. Must not know what is started there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from collections import deque
from typing import Final

# Below what Linux (32768) and others (49152) hand out by themselves: a port that was free a moment ago goes to the next
# who asks for any, and a proxy whose application has its port sends requests to itself, round and round.
_PORTS: Final = range(20_000, 32_000)
_HELD: Final = 128
_held: Final[deque[int]] = deque()


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses, and that neither the system nor `free_port` gives to others.

    What keeps it from other processes that ask in the same way is a UDP socket of the same number; the last 128 are
    held.

    Raises:
        OSError: All ports from 20,000 to 31,999 are in use.
    """
    first = random.SystemRandom().randrange(len(_PORTS))
    for port in itertools.chain(_PORTS[first:], _PORTS[:first]):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _hold(port)
            return port
    raise OSError("no port is free on 127.0.0.1")


def _hold(port: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as token:
        token.bind(("127.0.0.1", port))
        _held.append(token.detach())
    if len(_held) > _HELD:
        os.close(_held.popleft())
