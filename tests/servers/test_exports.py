"""The spans of every worker arrive, also those that were still queued when the server was told to stop."""

import signal

import pytest

REQUESTS = 10
# So long that nothing is exported before the end.
QUEUED = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}


SIGTERM_TO = [
    "uvicorn",
    "uvicorn-workers",
    "hypercorn",
    "gunicorn-sync",
    "gunicorn-gthread",
    "gunicorn-asgi",
    "gunicorn-uvicorn",
]
SIGINT_TO = ["uvicorn-h11", "gunicorn"]
# These leave SIGTERM to Python, which ends without exit handlers; what was not yet exported is lost.
LOST_WITH = ["waitress", "werkzeug"]


@pytest.fixture(scope="module")
def waiting(own_fleet):
    """All servers of this module, started at once."""
    own_fleet.launch_those_installed([f"{server}/strict" for server in SIGTERM_TO + SIGINT_TO + LOST_WITH], **QUEUED)
    return own_fleet


@pytest.mark.parametrize(
    ("server", "how"),
    [
        *((server, signal.SIGTERM) for server in SIGTERM_TO),
        *((server, signal.SIGINT) for server in SIGINT_TO),
        *(
            pytest.param(server, signal.SIGTERM, marks=pytest.mark.xfail(reason="ends without exit handlers"))
            for server in LOST_WITH
        ),
    ],
)
def test_queued_spans_arrive_when_the_server_stops(waiting, collector, new_ids, server, how):
    service = waiting.get(f"{server}/strict")
    ids = dict(new_ids() for _ in range(REQUESTS))
    for trace, parent in ids.items():
        assert service.ask(f"traceparent: 00-{trace}-{parent}-01").report["trace_id"] == trace
    service.process.send_signal(how)
    service.process.wait(30)

    # The server is gone, so nothing is still on its way.
    arrived = [span for span in collector.spans if span.trace_id in ids and span.kind == "SERVER"]
    assert {span.trace_id: span.parent_id for span in arrived} == ids
    assert len(arrived) == REQUESTS
