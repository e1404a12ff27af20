"""What frameworks tell of a request: the route template that they matched, and the exception that they answer with 500.

Starlette and FastAPI leave the route in the scope, Litestar its template. A route is a template or it is absent: no
segment of a path that a stranger has chosen stands in it. Where applications are mounted, and where a middleware has
hidden the scope in which the framework wrote, the request goes through the application's own routes once more.

Nothing is imported here that the application has not imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, TypeAlias

from meshmw._lifecycle.http import current_operation
from meshmw._lifecycle.http_conventions import known_root

Scope: TypeAlias = MutableMapping[str, Any]

# Starlette's `Match.FULL`; one that fits but for its method is lower, and none is zero.
_FULL: Final = 2
# What every mount's template ends in: the rest of the path, which what is mounted names itself.
_REST: Final = "/{path}"
# Where middleware keeps the application that it stands around.
_INNER: Final = ("app", "_app", "application", "func", "__wrapped__")
_MOST_LAYERS: Final = 64
# One of these is in each scope that a framework has seen.
_LEFT: Final = frozenset({"app", "route", "path_template", "app_root_path"})


class Matched(NamedTuple):
    """Says which routes a request goes through.

    Attributes:
        prefix: The templates of all mounts, one after another.
        template: That of the route in the innermost; None where no route matched.
    """

    prefix: str = ""
    template: str | None = None


def route_of(scope: Scope, routed: object = None, *, is_missing: bool = False) -> str | None:
    """Return the template of the matched route, with the root path and with those of all mounts; None without one.

    Args:
        scope: As the framework has left it.
        routed: The application that has routes, of those that stand inside the middleware; None where none is known.
        is_missing: Whether the answer says that there is no such path.
    """
    if routed is None and _LEFT.isdisjoint(scope):
        return None
    template = _template(scope)
    if template is not None and "app_root_path" not in scope:
        return _below_root(scope, template)
    # The outermost router leaves itself there; middleware within a mounted application stands inside that.
    outermost = scope.get("router") or scope.get("app") or routed
    came = _as_it_came(scope, outermost)
    found = _match_again(came, _routes_of(outermost))
    if found is None:
        return None
    if template is None:
        template = found.template
    if template is None and is_missing and "route" not in scope:
        # Nothing within the mount was matched: what is mounted has no such path.
        return None
    return _below_root(came, f"{found.prefix}{template or ''}")


def _below_root(scope: Scope, template: str) -> str | None:
    root = known_root(str(scope.get("root_path", "")).rstrip("/"))
    return None if root is None else f"{root}{template}" or None


def _template(scope: Scope) -> str | None:
    """Return the template of the route that is no mount, as the scope tells it."""
    route, told = scope.get("route"), scope.get("path_template")
    template = told if isinstance(told, str) and told else None
    if route is None or hasattr(route, "routes"):
        return template
    found = getattr(_effective_route(scope, route), "path_format", None) or getattr(route, "path", None)
    return found if isinstance(found, str) else template


def _effective_route(scope: Scope, route: object) -> object:
    """Return what FastAPI made of a route that came with an included router, whose prefix the route does not know."""
    found = scope.get("fastapi")
    context = found.get("effective_route_context") if isinstance(found, dict) else None
    return context if getattr(context, "original_route", None) is route else route


def _as_it_came(scope: Scope, outermost: object) -> Scope:
    """Return what the scope was before the outermost router has seen it."""
    path, root, server_root = scope["path"], scope.get("root_path", ""), scope.get("app_root_path")
    if server_root is None:
        return {**scope, **_own_root(outermost)}
    # A mount adds to the root path, and keeps the server's under another name. Litestar leaves the path without it.
    path = path if path.startswith(root) else f"{root}{path}"
    came = {**scope, "path": path, "root_path": server_root, "path_params": {}, "fastapi": {}}
    del came["app_root_path"]
    return came


def _match_again(scope: Scope, routes: Iterable[Any]) -> Matched | None:
    """Return which of Starlette's routes match: the first that does whole, or else the first but for its method."""
    level, chosen, below = 0, None, {}
    for route in _without_routers(routes):
        match, child = route.matches(scope)
        if match.value > level:
            level, chosen, below = match.value, route, child
        if level == _FULL:
            break
    if chosen is None:
        return None
    route = getattr(chosen, "starlette_route", None) or chosen
    template = getattr(route, "path_format", None)
    if not hasattr(route, "routes"):
        return Matched(template=template if isinstance(template, str) else None)
    prefix = template.removesuffix(_REST) if isinstance(template, str) else ""
    inner = routed_within(getattr(route, "app", None))
    found = _match_again({**scope, **below, **_own_root(inner)}, _routes_of(inner)) or Matched()
    return Matched(prefix + found.prefix, found.template)


def _without_routers(routes: Iterable[Any]) -> Iterator[Any]:
    """Yield routes that can be asked, and in place of a router that FastAPI has included the routes that it brings."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            yield from route.effective_route_contexts()
        elif hasattr(route, "matches"):
            yield route


def _own_root(app: object) -> dict[str, str]:
    """Return what FastAPI puts in the place of the server's root path, if it was told one."""
    root = getattr(app, "root_path", None)
    return {"root_path": root} if isinstance(root, str) and root else {}


def _routes_of(app: object) -> Iterable[Any]:
    found = getattr(app, "routes", None)
    return found if isinstance(found, list | tuple) else ()


def routed_within(app: object) -> object:
    """Return the application with routes that stands inside middleware; None where there is none, or more than one."""
    found, seen, waiting = [], set[int](), [app]
    while waiting and len(seen) < _MOST_LAYERS:
        layer = waiting.pop()
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        # A property of the application's own may raise anything, and no route is worth that.
        with contextlib.suppress(Exception):
            if isinstance(getattr(layer, "routes", None), list | tuple):
                found.append(layer)
            else:
                waiting += _layers_within(layer)
    return found[0] if len(found) == 1 else None


def _layers_within(layer: Any) -> Iterator[object]:
    # A method is its object's. Middleware is an object with an attribute, or a function around a variable.
    yield getattr(layer, "__self__", None)
    for name in _INNER:
        yield getattr(layer, name, None)
    for cell in getattr(layer, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue


def listen_for_exceptions() -> None:
    """Have Flask, Quart and Django tell the operation of each request for what exception they answer 500."""
    if sys.modules.get("flask"):
        from flask import got_request_exception as in_flask

        in_flask.connect(_record)
    if sys.modules.get("quart"):
        from quart.signals import got_request_exception, got_websocket_exception

        got_request_exception.connect(_record_for_quart)
        got_websocket_exception.connect(_record_for_quart)
    if sys.modules.get("django"):
        from django.core.signals import got_request_exception as in_django  # type: ignore[import-untyped]

        in_django.connect(_record_for_django, dispatch_uid="meshmw")


def _record(_app: object, exception: BaseException, **_: object) -> None:
    operation = current_operation()
    if operation is not None:
        operation.fail(exception)


async def _record_for_quart(app: object, exception: BaseException, **_: object) -> None:
    # A function that is not async would be called in a thread.
    _record(app, exception)


def _record_for_django(sender: object, **_: object) -> None:
    # Django leaves the exception where `sys` finds it.
    error = sys.exception()
    if error is not None:
        _record(sender, error)


def exception_answered(boundary: Collection[CodeType]) -> BaseException | None:
    """Return the exception that is being handled further in than a function of ours; None where there is none.

    Starlette, FastAPI and Litestar send their answer to an exception while they handle it. One that is handled further
    out, by whoever calls this application in place of another, is not this request's.

    Args:
        boundary: The code of the functions that call the application.
    """
    error = sys.exception()
    # A traceback begins in the frame that handles the exception.
    handled_in = error.__traceback__.tb_frame if error is not None and error.__traceback__ is not None else None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in boundary:
        if frame is handled_in:
            return error
        frame = frame.f_back
    return None
