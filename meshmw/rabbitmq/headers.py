"""AMQP headers: a mapping whose keys know upper and lower case, and whose values have types of their own.

Knows the shapes in which pika and aio-pika hand headers out. Must not know what the headers mean, nor import a client.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from opentelemetry.propagators.textmap import Getter

from meshmw.boundary.message_headers import joined


def headers_of(carrier: object) -> Mapping[Any, Any]:
    """Return the headers of a message, of its properties, or of what are headers already; empty where there are none.

    Args:
        carrier: A mapping, something with `headers`, or a tuple with one of these in it, as pika returns.
    """
    if isinstance(carrier, Mapping):
        return carrier
    if isinstance(carrier, tuple):
        return next((headers_of(each) for each in carrier if hasattr(each, "headers")), {})
    found = getattr(carrier, "headers", None)
    return found if isinstance(found, Mapping) else {}


def name_of(key: object) -> str:
    """Return a header's name in lower case; pika sends keys that are bytes too. Whatever else it is has no name."""
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    return key.lower() if isinstance(key, str) else ""


def lines_of(headers: Mapping[Any, Any], wanted: Collection[str]) -> dict[str, list[str]]:
    """Return the wanted headers as lines by name in lower case: the last one of each, and all that are lists.

    Text may have arrived as str, bytes, bytearray or a list of these; all else is left out, and nothing raises.
    """
    found = [(key, name, value) for key, value in headers.items() if (name := name_of(key)) in wanted]
    # Of several spellings of one name, the one that everybody writes today decides.
    found.sort(key=lambda each: each[0] == each[1])
    return joined((name, text) for _, name, value in found for text in _texts(value))


def _texts(value: object) -> Iterator[str]:
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str):
            yield each
        elif isinstance(each, bytes | bytearray):
            # No byte fails to decode; what is no header's text is refused by the header's grammar.
            yield each.decode("latin-1")


class RabbitMQGetter(Getter[Any]):
    """Reads a message, properties or headers for any OpenTelemetry propagator, which the default getter cannot."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        """Return a header's last value as text, or all of one that is a list, joined; None where there is none."""
        found = lines_of(headers_of(carrier), (key.lower(),)).get(key.lower())
        return None if found is None else [",".join(found)]

    def keys(self, carrier: Any) -> list[str]:
        """Return the names of all headers."""
        return [str(key) for key in headers_of(carrier)]
