"""A context as strings, for a process that shares no memory with this one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.context import Context, get_current

from meshmw.boundary.operation import Current
from meshmw.propagation.extraction import PASSTHROUGH_KEY, PROPAGATION_HEADERS
from meshmw.propagator import MeshPropagator

# No proxy is on the way, and the service has decided at its door what it believes: everything goes, whatever the
# settings say about other services. The numbers are the largest that the settings can let in.
_FORMATS: Final = ("tracecontext", "baggage", "b3")
_MAX_MEMBERS: Final = 1024
_MAX_BYTES: Final = 61_440


@functools.cache
def _carrier(*formats: str) -> MeshPropagator:
    return MeshPropagator(formats, baggage_max_members=_MAX_MEMBERS, baggage_max_bytes=_MAX_BYTES, passthrough=())


def to_headers(context: Context) -> dict[str, str]:
    """Return the span, the baggage and the headers to pass on that *context* holds; nothing else of it."""
    passed_on = context.get(PASSTHROUGH_KEY)
    return {**(passed_on if isinstance(passed_on, dict) else {}), **_carrier(*_FORMATS).write(context)}


def from_headers(headers: Mapping[str, str], base: Context | None = None) -> Context:
    """Return *base*, empty by default, with no span and no baggage but those of *headers*."""
    # Baggage alone is no sign of a proxy that strips headers here.
    carrier = _carrier(*_FORMATS) if "traceparent" in headers else _carrier("baggage")
    read = carrier.read({name: [text] for name, text in headers.items() if name in PROPAGATION_HEADERS})
    context = read.into(Context() if base is None else base)
    passed_on = {name: text for name, text in headers.items() if name not in PROPAGATION_HEADERS}
    return Context({**context, PASSTHROUGH_KEY: passed_on}) if passed_on else context


class Carried:
    """Is a function and the headers of the context in which it is to run; it can be pickled where the function can.

    Args:
        fn: What to call, in another process.
    """

    __slots__ = ("_fn", "_headers")

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self._headers = to_headers(get_current())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in that context."""
        with Current(from_headers(self._headers)):
            return self._fn(*args, **kwargs)
