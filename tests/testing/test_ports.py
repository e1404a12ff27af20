"""Ports that nobody else gets."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from meshmw.testing import _processes as ports
from meshmw.testing import free_port


def test_a_port_can_be_listened_on_and_is_given_once():
    given = [free_port() for _ in range(ports._HELD)]
    assert len(set(given)) == len(given)
    with socket.create_server(("127.0.0.1", given[0])):
        pass


def test_another_process_gets_another_port(monkeypatch):
    mine = free_port()
    script = (
        "from meshmw.testing import _processes as ports, free_port\n"
        f"ports._PORTS = range({mine}, {mine + 1})\n"
        "free_port()"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "no port is free on 127.0.0.1" in other.stderr


def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch):
    mine = free_port()
    with socket.create_server(("127.0.0.1", mine)):
        monkeypatch.setattr(ports, "_PORTS", range(mine, mine + 1))
        with pytest.raises(OSError, match="no port is free"):
            free_port()


def test_it_holds_no_more_than_the_last_ports():
    for _ in range(ports._HELD + 3):
        free_port()
    assert len(ports._held) == ports._HELD
