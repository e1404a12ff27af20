"""What is decided of a request: whom it may come from, where it may go, and how much of it.

Pure decisions over names, addresses and sizes.
"""

from __future__ import annotations
