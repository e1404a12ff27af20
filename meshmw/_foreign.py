"""Every name of httpx, grpcio or a broker's client that its owner calls private, one function each.

Nothing is imported here: each function looks at an object that the application has made. It says what it assumes and
falls back where that does not hold; `tests/test_foreign.py` has a test for each, with the real package. Names that
OpenTelemetry calls private are in `_otel`.
"""

from __future__ import annotations
