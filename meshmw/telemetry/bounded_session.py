"""An HTTP session that never holds an answer of unknown size in memory.

Imported only with the OTLP exporter for HTTP, which brings `requests`.
"""

from __future__ import annotations

from typing import Any

from requests import Response, Session

# A collector answers with an empty message, or with a few words about what it refused.
_LONGEST_ANSWER = 65_536


class BoundedSession(Session):
    """Reads short answers of a known length, so that the connection is used again, and hangs up on all others."""

    def send(self, request: Any, **options: Any) -> Response:
        """Send the request, without reading the answer before its length is known."""
        response = super().send(request, **{**options, "stream": True})
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) <= _LONGEST_ANSWER:
            response.raw.read(decode_content=False)
        response.close()
        return response
