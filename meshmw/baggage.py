"""Baggage for the application: read it, and set members with their properties.

OpenTelemetry's own `opentelemetry.baggage` functions work on the same members; what they lack is properties. A context
never changes: `with_member` returns another one, and `using` makes one current for a block. Baggage goes to other
services in clear text, so it is no place for a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import baggage as otel_baggage
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshmw._context.current import Current
from meshmw.wire import BaggageValue, format_member, parse_member
from meshmw.wire.baggage import is_raw_of

__all__ = ["get", "get_all", "properties", "using", "with_member", "without_member", "without_members"]


def get(key: str, context: Context | None = None) -> str | None:
    """Return a member's value, decoded, from the current context by default; None if there is no such member."""
    value = otel_baggage.get_baggage(key, context)
    return None if value is None else str(value)


def get_all(context: Context | None = None) -> dict[str, str]:
    """Return every member's value, decoded, by key, from the current context by default."""
    return {key: str(value) for key, value in otel_baggage.get_all(context).items()}


def properties(key: str, context: Context | None = None) -> str:
    """Return the raw text of a member's properties, such as `ttl=30;private`, or an empty text."""
    value = otel_baggage.get_baggage(key, context)
    # A value may have been copied to another key, to which its properties were not given.
    return value.properties if isinstance(value, BaggageValue) and is_raw_of(key, value.raw) else ""


def with_member(key: str, value: str, properties: str = "", context: Context | None = None) -> Context:
    """Return a context with one member set; a member of that key is replaced, its properties too.

    Args:
        key: A token (RFC 9110, section 5.6.2): ASCII letters, digits and ``!#$%&'*+-.^_`|~``. Case matters.
        value: Any text; it is percent-encoded where that is necessary.
        properties: Their raw text, such as `ttl=30;private`, percent-encoded by the caller.
        context: What to start from; the current context by default. It is not changed.

    Raises:
        ValueError: The key or the properties do not follow W3C Baggage.
    """
    member = format_member(key, value)
    if properties:
        member = f"{member};{properties}"
    return otel_baggage.set_baggage(key, parse_member(member)[1], context)


def without_member(key: str, context: Context | None = None) -> Context:
    """Return a context without one member; the current context is the start by default."""
    return otel_baggage.remove_baggage(key, context)


def without_members(context: Context | None = None) -> Context:
    """Return a context without any baggage; the current context is the start by default."""
    return otel_baggage.clear(context)


class using:  # noqa: N801
    """Sets members for the length of a block: `with using(tenant="a"):`. None takes a member away.

    Calls from within the block send them; what runs before, after or beside it does not see them. The block must not
    contain a `yield`. Make a new object for each block.

    Args:
        members: Values by key, for keys that are no Python names.
        named: Values by key.

    Raises:
        ValueError: A key does not follow W3C Baggage.
    """

    def __init__(self, members: Mapping[str, str | None] | None = None, /, **named: str | None) -> None:
        self._members = {**(members or {}), **named}
        for key, value in self._members.items():
            format_member(key, value or "")

    def __enter__(self) -> Context:
        """Make the members current, and return the context that has them."""
        context = otel_context.get_current()
        for key, value in self._members.items():
            context = without_member(key, context) if value is None else with_member(key, value, context=context)
        self._current = Current(context)
        self._current.__enter__()
        return context

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._current.__exit__(kind)


def __dir__() -> list[str]:
    return sorted(__all__)
