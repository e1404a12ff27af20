"""A short soak. The long one: `python -m tests.soak`, 200,000 requests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import clean_environment, not_installed

REQUESTS = 3_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told(pytestconfig):
    missing = [name for name in ("gunicorn", "uvicorn", "websockets") if importlib.util.find_spec(name) is None]
    if missing:
        not_installed(pytestconfig, f"not installed: run  pip install {' '.join(missing)}")
    command = [sys.executable, "-m", "tests.soak", "--json", "--requests", str(REQUESTS)]
    environment = clean_environment()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_span_is_in_its_own_requests_tree(told):
    assert [(each["strays"], each["faults"][:3] if each["strays"] else []) for each in told] == [(0, [])] * 2
    assert sum(each["requests"] for each in told) == REQUESTS
    assert all(each["spans"] > each["requests"] for each in told)


def test_no_context_is_left_and_none_fails_to_detach(told):
    assert [(each["contexts left"], each["detach errors"], each["asyncio errors"]) for each in told] == [(0, 0, 0)] * 2


def test_what_a_request_needed_is_given_back(told):
    assert [each["ok"] for each in told] == [True, True], told


def test_the_soak_meets_the_leak_of_the_server_that_it_must_withstand(told):
    # Were this 0, nothing would prove that a request is kept out of the context of the one before it.
    assert told[0]["begun in another's context by the server"] > 0
