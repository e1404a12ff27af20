"""A span processor of somebody else's, which raises whatever it is asked."""

from opentelemetry.sdk.trace import SpanProcessor


class Raising(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("on_start")

    def _on_ending(self, span):
        raise RuntimeError("on_ending")

    def on_end(self, span):
        raise RuntimeError("on_end")

    def shutdown(self):
        raise RuntimeError("shutdown")

    def force_flush(self, timeout_millis=30_000):
        raise RuntimeError("force_flush")
