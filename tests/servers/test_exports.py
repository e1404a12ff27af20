"""The spans of every worker arrive, also those that were still queued when the server was told to stop."""

import signal

import pytest

REQUESTS = 10
# So long that nothing is exported before the end.
QUEUED = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}


SIGTERM_TO = ["uvicorn", "uvicorn-workers", "hypercorn", "gunicorn-sync", "gunicorn-gthread", "gunicorn-uvicorn"]
SIGINT_TO = ["uvicorn-h11", "gunicorn"]


@pytest.fixture(scope="module")
def waiting(own_fleet):
    """All servers of this module, started at once."""
    own_fleet.launch_those_installed([f"{server}/strict" for server in SIGTERM_TO + SIGINT_TO], **QUEUED)
    return own_fleet


@pytest.mark.parametrize(
    ("server", "how"),
    [(server, signal.SIGTERM) for server in SIGTERM_TO] + [(server, signal.SIGINT) for server in SIGINT_TO],
)
def test_queued_spans_arrive_when_the_server_stops(waiting, collector, new_ids, server, how):
    service = waiting.get(f"{server}/strict")
    ids = dict(new_ids() for _ in range(REQUESTS))
    for trace, parent in ids.items():
        assert service.ask(f"traceparent: 00-{trace}-{parent}-01").report["trace_id"] == trace
    service.process.send_signal(how)
    service.process.wait(30)

    def served(spans):
        return {span.trace_id: span.parent_id for span in spans if span.trace_id in ids and span.kind == "SERVER"}

    assert served(collector.wait_for(lambda spans: len(served(spans)) == REQUESTS)) == ids
