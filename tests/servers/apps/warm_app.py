"""Applications that have exported a span before their server forks: the exporter's connection is the parent's."""

from opentelemetry import trace

import meshmw

telemetry = meshmw.configure()
with trace.get_tracer("warm-up").start_as_current_span("warm-up"):
    pass
assert telemetry.force_flush()


def __getattr__(name):
    import bare

    return getattr(bare, name)
