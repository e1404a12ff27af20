"""What ASGI frameworks tell of a request: the route template that they matched, and what they answered 500 for.

Starlette and FastAPI leave the route in the scope, Litestar its template. A route is a template or it is absent: no
segment of a path that a stranger has chosen stands in it. Where an application was mounted, the scope holds the matched
path alone; so its template is looked up among the application's mounts, and never made by comparing values.

Quart and Litestar answer 500 themselves, and raise nothing; their own signals and hooks tell the exception. Nothing is
imported here that the application has not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

from meshmw._lifecycle.http import OPERATION, HttpOperation
from meshmw._lifecycle.http_conventions import known_root

Scope: TypeAlias = MutableMapping[str, Any]

# Starlette's `Match.FULL`.
_FULL: Final = 2
# What every mount's template ends in: the rest of the path, which what is mounted names itself.
_REST: Final = "/{path}"
_MOST_LAYERS: Final = 64
# One of these is in each scope in which something was matched.
_LEFT: Final = frozenset({"route", "path_template", "app_root_path"})


def route_of(scope: Scope, app: object, *, is_missing: bool = False) -> str | None:
    """Return the template of the matched route, with the root path and with those of all mounts; None without one.

    Args:
        scope: As the framework has left it.
        app: The application, or the middleware around it.
        is_missing: Whether the answer says that there is no such path.
    """
    if _LEFT.isdisjoint(scope):
        # A middleware further in may have handed on a copy of the scope, and kept what the framework wrote there.
        if is_missing or not (hasattr(app, "app") or hasattr(app, "routes")):
            return None
        found = _matched_again(scope, _routes_of(app))
        if found is None:
            return None
        scope = found
    template = _template(scope)
    if template is None and not _mounted_path(scope):
        return None
    # The outermost router leaves itself there; middleware within a mounted application stands inside that.
    routes = _routes_of(scope.get("router", app))
    root, mounts = known_root(_root_path(scope)), _mount_template(_mounted_path(scope), routes)
    if root is None or mounts is None:
        return None
    if template is None:
        # A mount, in which nothing more was matched: what is mounted has no such path, or names none.
        if is_missing and "route" not in scope:
            return None
        return f"{root}{mounts}" or None
    return f"{root}{mounts}{template}" or "/"


def _template(scope: Scope) -> str | None:
    route = scope.get("route")
    if route is None:
        found = scope.get("path_template")
        return found if isinstance(found, str) and found else None
    if hasattr(route, "routes"):
        return None
    found = getattr(_effective_route(scope, route), "path_format", None) or getattr(route, "path", None)
    return found if isinstance(found, str) else None


def _effective_route(scope: Scope, route: object) -> object:
    """Return what FastAPI made of a route that came with an included router, whose prefix the route does not know."""
    found = scope.get("fastapi")
    context = found.get("effective_route_context") if isinstance(found, dict) else None
    return context if getattr(context, "original_route", None) is route else route


def _root_path(scope: Scope) -> str:
    """Return the root path that the server has set; a mount keeps it under a name of its own when it adds to it."""
    return str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/")


def _mounted_path(scope: Scope) -> str:
    """Return the part of the path that mounts have matched, as the client wrote it."""
    if "app_root_path" not in scope:
        return ""
    return str(scope.get("root_path", "")).removeprefix(str(scope["app_root_path"])).rstrip("/")


def _mount_template(path: str, routes: Iterable[Any]) -> str | None:
    """Return the template of the mounts that have matched a path, the first that fit; None where none do."""
    if not path:
        return ""
    for route in routes:
        if hasattr(route, "host_regex"):
            found = _mount_template(path, _routes_within(route))
            if found is not None:
                return found
        template = getattr(route, "path_format", None)
        match = route.path_regex.match(f"{path}/") if _is_mount(route) else None
        if match is None or not isinstance(template, str):
            continue
        rest = path[len(f"{path}/") - len(f"/{match['path']}") :]
        below = _mount_template(rest, _routes_within(route))
        if below is not None:
            return template.removesuffix(_REST) + below
    return None


def _is_mount(route: object) -> bool:
    return str(getattr(route, "path_format", "")).endswith(_REST) and hasattr(route, "routes")


def _routes_within(route: Any) -> Iterable[Any]:
    return route.routes or _routes_of(getattr(route, "app", None))


def _routes_of(app: object) -> Iterable[Any]:
    """Return the routes of the application that stands inside middleware."""
    for layer in _layers(app):
        found = getattr(layer, "routes", None)
        if isinstance(found, list | tuple):
            return found
    return ()


def _matched_again(scope: Scope, routes: Iterable[Any]) -> Scope | None:
    """Return what the scope is after Starlette's routing, whose routes say of a scope whether they match it."""
    for route in routes:
        if not hasattr(route, "matches"):
            continue
        match, child = route.matches(scope)
        if getattr(match, "value", None) != _FULL or not isinstance(child, Mapping):
            continue
        found = {**scope, "route": route, **child}
        if _is_mount(route) or hasattr(route, "host_regex"):
            return _matched_again(found, _routes_within(route)) or found
        return found
    return None


def listen_for_exceptions(app: object) -> None:
    """Have a Quart or Litestar application tell the operation of each request for what exception it answers 500."""
    for owner in _layers(app):
        kind = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(owner).__mro__}
        if ("quart", "Quart") in kind:
            _listen_to_quart(owner)
        elif ("litestar", "Litestar") in kind:
            owner.after_exception.append(_record_for_litestar)


def _layers(app: Any) -> Iterator[Any]:
    """Yield an application, or the one whose method it is, and whatever stands inside it."""
    for _ in range(_MOST_LAYERS):
        if app is None:
            return
        yield getattr(app, "__self__", app)
        app = getattr(app, "app", None)


def _listen_to_quart(app: Any) -> None:
    from quart import has_request_context, request, websocket
    from quart.signals import got_request_exception

    async def record(_app: object, exception: BaseException, **_: object) -> None:
        scope = request.scope if has_request_context() else websocket.scope
        _record(scope, exception)

    # Without a weak reference, which would let go of a function that nobody else holds.
    got_request_exception.connect(record, app, weak=False)


async def _record_for_litestar(error: Exception, scope: Any) -> None:
    # An exception with a status below 500 is an answer.
    if getattr(error, "status_code", 500) >= 500:
        _record(scope, error)


def _record(scope: Mapping[str, Any], error: BaseException) -> None:
    operation = scope.get(OPERATION)
    if isinstance(operation, HttpOperation):
        operation.fail(error)
