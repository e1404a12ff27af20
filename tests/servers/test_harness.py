"""A server that is not installed is named, and is a failure where everything has to be there."""

import importlib.util

import pytest


@pytest.mark.parametrize(
    ("ci", "required", "outcome"),
    [("", False, pytest.skip.Exception), ("true", False, pytest.fail.Exception), ("", True, pytest.fail.Exception)],
    ids=["at-home", "in-ci", "with-the-option"],
)
def test_a_server_that_is_not_installed_says_how_to_install_it(
    fleet, monkeypatch, pytestconfig, tmp_path, ci, required, outcome
):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(pytestconfig.option, "meshmw_require_envoy", required)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(outcome, match="pip install uvicorn httptools"):
        type(fleet)(pytestconfig, "", tmp_path).get("uvicorn-httptools/strict")


def test_a_server_that_ends_at_once_shows_what_it_said(own_fleet):
    own_fleet.launch("waitress/strict", MESHMW_TRACEPARENT_POLICY="lenient")
    with pytest.raises(AssertionError, match="MESHMW_TRACEPARENT_POLICY"):
        own_fleet.get("waitress/strict")


@pytest.mark.parametrize("service", ["gunicorn-sync/strict"], indirect=True)
def test_gunicorn_needs_a_higher_limit_for_whole_baggage(service):
    # The other tests start it with --limit-request-field_size 16384.
    assert service.ask(f"baggage: k={'v' * 8190}").status == 431
    assert ["baggage", f"k={'v' * 8000}"] in service.ask(f"baggage: k={'v' * 8000}").report["sent"]
