"""The life of an operation at a boundary: begin, current while user code runs, end once.

Every adapter goes through here. This package knows OpenTelemetry's API, what `_context` read and what `configure()`
decided. It knows no framework, no client's library and no carrier.
"""

from __future__ import annotations
