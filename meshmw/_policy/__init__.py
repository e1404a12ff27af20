"""What is decided of a request: whom it may come from, where it may go, and how much of it.

This package makes pure decisions over names, addresses and sizes. It knows no OpenTelemetry and no protocol. What a
decision means is the business of whoever asked for it.
"""

from __future__ import annotations
