"""Which route an ASGI framework has matched, as it left it in the scope.

Knows what Starlette, FastAPI and Litestar leave there. Must not import any of them, nor know spans.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]


def route_of(scope: Scope) -> str | None:
    """Return the route template that Starlette, FastAPI or Litestar matched, with prefixes of routers and mounts."""
    route = scope.get("route")
    if route is None:
        found = scope.get("path_template")
        return _mounted_at(scope, found) + found if isinstance(found, str) and found else None
    if hasattr(route, "routes"):
        # A mount, in which nothing more was matched: where it is mounted is in the root path.
        return _mounted_at(scope, "") or None
    template = getattr(_effective(scope, route), "path_format", None) or getattr(route, "path", None)
    return _mounted_at(scope, template) + template or "/" if isinstance(template, str) else None


def _effective(scope: Scope, route: object) -> object:
    """Return what FastAPI made of a route that came with an included router, whose prefix the route does not know."""
    found = scope.get("fastapi")
    context = found.get("effective_route_context") if isinstance(found, dict) else None
    return context if getattr(context, "original_route", None) is route else route


def _mounted_at(scope: Scope, template: str) -> str:
    """Return the root path, in which parameters of mounts have their names again."""
    root = str(scope.get("root_path", "")).rstrip("/")
    names = {
        str(value): f"{{{name}}}"
        for name, value in scope.get("path_params", {}).items()
        if f"{{{name}}}" not in template
    }
    shown = (names.get(segment, segment) for segment in root.split("/"))
    return "/".join(shown)
