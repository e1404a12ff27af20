"""From header lines to a context, and back.

This package knows OpenTelemetry's contexts and the formats of `wire`. It must not know a framework, a protocol or a
span's life.
"""

from __future__ import annotations
