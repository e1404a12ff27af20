"""What meshmw assumes of names that OpenTelemetry calls private, against the packages that are installed."""

from __future__ import annotations

import opentelemetry.context as otel_context

from meshmw._otel import runtime_context, set_runtime_context


class Counting:
    """Counts what the API asks of it."""

    def __init__(self, replaced):
        self.replaced, self.calls = replaced, []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.replaced, name)


def test_the_api_calls_the_runtime_context_that_is_set():
    before = runtime_context()
    counting = Counting(before)
    set_runtime_context(counting)
    try:
        otel_context.detach(otel_context.attach(otel_context.get_current()))
    finally:
        set_runtime_context(before)
    assert counting.calls == ["get_current", "attach", "detach"]
    assert runtime_context() is before


def test_without_the_name_there_is_no_runtime_context(monkeypatch):
    with monkeypatch.context() as without:
        without.delattr(otel_context, "_RUNTIME_CONTEXT")
        assert runtime_context() is None
