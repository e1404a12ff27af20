"""The life of an operation at a boundary: begin, current while user code runs, end once.

Every adapter goes through here. Must
not know a framework, a library or a carrier.
"""

from __future__ import annotations
