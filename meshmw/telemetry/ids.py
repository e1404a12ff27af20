"""Ids for traces that begin here.

Knows the W3C's flag for a random id. Must not know who refuses it.
"""

from __future__ import annotations

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator


class UnflaggedIds(RandomIdGenerator):
    """Makes random ids and does not say so in the trace flags.

    `random` (0x02) is of W3C Trace Context Level 2, section 3.2.2.5.2; a Level 1 peer may refuse what it does not know.
    """

    def is_trace_id_random(self) -> bool:
        """Leave the flag out, which Level 2 allows: it then means that nothing is known of the id."""
        return False
