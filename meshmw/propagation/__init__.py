"""From header lines to a context, and back.

This floor knows the formats, the policies and OpenTelemetry's context. It must not know a framework, a protocol or a
span's life.
"""
