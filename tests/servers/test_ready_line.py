"""One sees that meshmw is on: under each server, with no logging set up, one line in the form of the server's own."""

from __future__ import annotations

import os
import re
import time

import pytest

_GUNICORN = r"^\[[-0-9: +]+\] \[\d+\] \[INFO\] "
FORMS = {
    "uvicorn": r"^INFO:     ",
    "uvicorn-workers": r"^INFO:     ",
    "uvicorn-reload": r"^INFO:     ",
    "hypercorn": _GUNICORN,
    "hypercorn-workers": _GUNICORN,
    "gunicorn-sync": _GUNICORN,
    "gunicorn-gthread": _GUNICORN,
    "gunicorn-gevent": _GUNICORN,
    "gunicorn-preload": _GUNICORN,
    "gunicorn-uvicorn": _GUNICORN,
    "granian-wsgi": r"",
    "waitress": _GUNICORN,
    "werkzeug": _GUNICORN,
    "werkzeug-debug": _GUNICORN,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_tree_of_processes_says_once_that_it_is_on(own_fleet, name):
    own_fleet.launch(name)
    service = own_fleet.get(name)
    # The worker that answered first need not be the one that says it.
    deadline = time.monotonic() + 30
    while "meshmw ready" not in service.log and time.monotonic() < deadline:
        time.sleep(0.05)
    (line,) = [line for line in service.log.splitlines() if "meshmw ready" in line]
    assert re.search(FORMS[name] + "meshmw ready: .*service=" + re.escape(name), line), line


def test_a_reload_does_not_say_it_again(own_fleet):
    name = "uvicorn-reload/again"
    watched = own_fleet.folder / "watched.py"
    watched.write_text("")
    own_fleet.launch(name, MESHMW_EXPORTER="none")
    service = own_fleet.get(name)
    deadline = time.monotonic() + 30
    while service.log.count("Application startup complete") < 2:
        # The reloader looks for a later time than it saw first, and does not say when that was. It reloads at each.
        if "Reloading..." not in service.log:
            os.utime(watched, times=(time.time() + 60, time.time() + 60))
        assert time.monotonic() < deadline, service.log
        time.sleep(0.05)
    assert service.log.count("meshmw ready") == 1
