"""From header lines to a context, and back.

 It must not know a framework, a protocol or a
span's life.
"""

from __future__ import annotations
