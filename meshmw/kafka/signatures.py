"""What a producer's sending method takes, and under which names.

Knows how Python tells that of a method. Must not know what is sent, nor import a client.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

# confluent-kafka's method is written in C, and does not tell.
_PRODUCE: Final = inspect.Signature(
    [
        inspect.Parameter("topic", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
            for name in ("value", "key", "partition", "callback", "on_delivery", "timestamp", "headers")
        ),
    ]
)


def signature_of(client: Any, name: str) -> inspect.Signature:
    """Return a method's parameters; those of one that it overrides, where it passes on whatever it is given.

    Raises:
        TypeError: The method takes no headers.
    """
    inherited = [vars(cls)[name].__get__(client) for cls in type(client).__mro__ if name in vars(cls)]
    methods = map(_parameters, (getattr(client, name), *inherited))
    found = next((each for each in methods if _names_its_own(each) or not _takes_all(each)), None)
    if found is None or not _names_its_own(found):
        raise TypeError(f"{type(client).__qualname__}.{name} takes no topic and headers by these names")
    return found


def _parameters(method: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(method)
    except ValueError:
        return _PRODUCE


def _names_its_own(parameters: inspect.Signature) -> bool:
    return {"topic", "headers"} <= parameters.parameters.keys()


def _takes_all(parameters: inspect.Signature) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters.parameters.values())
