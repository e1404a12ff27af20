"""An application and what is wrapped around it: its framework, and its middleware from the outside in.

Knows the shapes of ASGI and WSGI applications. Must not know which middleware ought to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_INNER: Final = ("app", "wsgi_app", "application", "_app", "wsgi", "asgi_app")
# The longest row of middleware that is looked at: an application may refer to itself.
_MAX_DEPTH: Final = 50


def framework_of(app: Any) -> str:
    """Return `fastapi`, `starlette`, `flask` or `asgi or wsgi`; empty without an application."""
    if app is None:
        return ""
    for layer in _layers(app):
        names = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(layer).__mro__}
        for name in ("fastapi.FastAPI", "starlette.Starlette", "flask.Flask"):
            if name in names:
                return name.partition(".")[0]
    return "asgi or wsgi"


def _layers(app: Any) -> Iterator[Any]:
    """Yield an application and what it wraps, from the outside in."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen and len(seen) < _MAX_DEPTH:
        seen.add(id(app))
        yield app
        app = (
            next((found for name in _INNER if callable(found := vars(app).get(name))), None) if _has_vars(app) else None
        )


def _has_vars(value: Any) -> bool:
    return hasattr(value, "__dict__")


def middleware_of(app: Any) -> Iterator[str]:
    """Yield what a request passes before the application's own code, from the outside in."""
    for layer in _layers(app):
        kept = getattr(layer, "user_middleware", None)
        if kept is not None:
            # Starlette builds them at the first request, the last one added outermost.
            yield from (_name(getattr(each, "cls", each)) for each in kept)
        elif getattr(layer, "wsgi_app", None) is None and hasattr(layer, "app"):
            yield _name(type(layer))


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__name__)}"
