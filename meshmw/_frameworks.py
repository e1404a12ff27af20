"""What frameworks tell of a request: the route template that they matched, and the exception that they answer with 500.

Starlette and FastAPI leave the route in the scope, Litestar its template; Flask, Quart and Django tell it, wherever
they are mounted. A route is a template or it is absent: no segment of a path that a stranger has chosen stands in it.
Where applications are mounted, and where a middleware has hidden the scope in which the framework wrote, the request
goes through the application's own routes once more.

Nothing is imported here that the application has not imported.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, MutableMapping
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, TypeAlias

from meshmw._lifecycle.http import OPERATION, HttpOperation, current_operation
from meshmw._lifecycle.http_conventions import known_root
from meshmw._notices import LOGGER
from meshmw._policy.trust import wsgi_path

Scope: TypeAlias = MutableMapping[str, Any]

# Starlette's `Match.FULL`; one that fits but for its method is lower, and none is zero.
_FULL: Final = 2
# What every mount's template ends in: the rest of the path, which what is mounted names itself.
_REST: Final = "/{path}"
# Where middleware keeps the application that it stands around.
_INNER: Final = ("app", "_app", "application", "func", "__wrapped__")
_MOST_LAYERS: Final = 64
# Where a scope holds the template that a framework further in has matched.
_TOLD: Final = "meshmw.told"
# Where an environ holds the route that Bottle has matched.
BOTTLES: Final = "bottle.route"
# One of these is in each scope that a framework has seen.
_LEFT: Final = frozenset({"app", "route", "path_template", "app_root_path", _TOLD})


class Matched(NamedTuple):
    """Says which routes a request goes through.

    Attributes:
        prefix: The templates of all mounts, one after another.
        template: That of the route in the innermost; None where no route matched.
    """

    prefix: str = ""
    template: str | None = None


class Told(NamedTuple):
    """Holds what a framework has matched.

    Attributes:
        root: The path below which its application stands; segments that a stranger has chosen may be in it.
        template: That of the route, below the root.
    """

    root: str
    template: str

    @property
    def route(self) -> str | None:
        """Return the template below its root."""
        root = known_root(self.root.rstrip("/"))
        return None if root is None else f"{root}{self.template}"


def tell_route(carrier: Scope, told: Told) -> None:
    """Name the current request's span after what a framework has matched.

    Args:
        carrier: The scope or environ that the framework has.
        told: What it has matched.
    """
    operation = _operation_of(carrier)
    if operation is None or operation.request is None or not operation.is_open:
        return
    if operation.request.protocol == "asgi":
        # At its end, for it may stand within mounts, whose templates the scope tells.
        operation.request.carrier[_TOLD] = told
        return
    # a2wsgi leaves the scope of an application around.
    scope = carrier.get("asgi.scope")
    try:
        route = told.route if scope is None else route_of({**scope, _TOLD: told})
    except Exception:
        # A framework's signal would pass it on to the client. The routes further out may be anybody's.
        LOGGER.debug("the route could not be read from the scope", exc_info=True)
        return
    if route:
        operation.route(route)


def _operation_of(carrier: Scope) -> HttpOperation | None:
    """Return the operation that serves the request of a scope or an environ; None where none of ours does.

    What is current is that of another request, where an application calls a second one within this process.
    """
    operation = current_operation()
    if operation is None or operation.request is None or OPERATION in carrier:
        return operation
    # Behind another protocol the mark is missing, and what is asked is the same.
    request, is_wsgi = operation.request, "REQUEST_METHOD" in carrier
    if request.protocol == ("wsgi" if is_wsgi else "asgi"):
        return None
    method = carrier["REQUEST_METHOD"] if is_wsgi else carrier.get("method", "GET")
    path = wsgi_path(carrier) or "/" if is_wsgi else carrier["path"]
    return operation if (request.method, request.path) == (method, path) else None


def route_of(scope: Scope, routed: object = None, is_missing: bool = False) -> str | None:
    """Return the template of the matched route, with the root path and with those of all mounts; None without one.

    Args:
        scope: As the framework has left it.
        routed: The application that has routes, of those that stand inside the middleware; None where none is known.
        is_missing: Whether the answer says that there is no such path.
    """
    if routed is None and _LEFT.isdisjoint(scope):
        return None
    told: Told | None = scope.pop(_TOLD, None)
    if type(app := scope.get("app")).__module__.startswith("connexion."):
        return _connexions_route(scope, app)
    template = _template(scope)
    if template is not None and "app_root_path" not in scope:
        return _below_root(scope, template)
    # The outermost router leaves itself there; middleware within a mounted application stands inside that.
    outermost = scope.get("router") or scope.get("app") or routed
    came = _as_it_came(scope, outermost)
    found = _match_again(came, _routes_of(outermost))
    if found is None:
        return None if told is None else told.route
    template = template or found.template or (None if told is None else told.template)
    if template is None and is_missing and "route" not in scope:
        # Nothing within the mount was matched: what is mounted has no such path.
        return None
    return _below_root(came, f"{found.prefix}{template or ''}")


def _connexions_route(scope: Scope, app: Any) -> str | None:
    """Return the path of the specification that Connexion has matched; what it hands further in is a scope of its own.

    Its middleware has several routers, and the one that is named in the scope knows none of the specification's paths.
    """
    came = _as_it_came(scope, None)
    for layer in app.middleware_stack or ():
        if type(layer).__module__ == "connexion.middleware.routing":
            found = _match_again(came, _routes_of(layer.router)) or Matched()
            return _below_root(came, f"{found.prefix}{found.template}") if found.template else None
    return None


def tell_bottles_route(operation: HttpOperation, environ: Scope, app: object) -> None:
    """Name a request's span after the rule that Bottle has matched, which it leaves in the environ.

    Args:
        operation: The request's.
        environ: As Bottle has left it.
        app: The application within the middleware.
    """
    try:
        route = _bottles_route(environ, app) if operation.is_open else None
    except Exception:
        LOGGER.debug("the route could not be read from the environ", exc_info=True)
        return
    if route:
        operation.route(route)


def _bottles_route(environ: Scope, app: object) -> str | None:
    route, found, outermost, prefix = environ[BOTTLES], environ["bottle.app"], routed_within(app), ""
    if found is not outermost:
        # Mounted as any WSGI application is; the rules of a Bottle that is merged into another are whole.
        configs = [each.config for each in _routes_of(outermost)]
        within = [each["mountpoint.prefix"] for each in configs if each.get("mountpoint.target") is found]
        if not within or route.app is not found:
            # Nobody knows where it stands, or it has no such path.
            return None
        prefix = "/" + within[0].strip("/")
    root = known_root(str(environ.get("SCRIPT_NAME", "")).rstrip("/"))
    return None if root is None else f"{root}{prefix}{route.rule}"


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
    if found := _match_litestars(scope, routes):
        return found
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


def _match_litestars(scope: Scope, routes: Iterable[Any]) -> Matched | None:
    """Return which of Litestar's routes matches, segment by segment; what is written out goes before a parameter."""
    left = [route for route in routes if hasattr(route, "path_components")]
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    parts = [part for part in path.removeprefix(root).split("/") if part] if left else []
    for at, part in enumerate(parts):
        here = [(route, route.path_components[at]) for route in left if len(route.path_components) > at]
        left = [route for route, segment in here if segment == part]
        if not left:
            here = [(route, segment) for route, segment in here if not isinstance(segment, str)]
            left = [route for route, _ in here]
            if rest := [route for route, segment in here if issubclass(segment.type, PurePath)]:
                # It takes the rest of the path.
                return Matched(template=rest[0].path_format)
    found = [route.path_format for route in left if len(route.path_components) == len(parts)]
    return Matched(template=found[0]) if found else None


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


def listen() -> None:
    """Have Flask, Quart and Django tell of each request what they matched, and for what exception they answer 500."""
    if sys.modules.get("flask"):
        import flask

        flask.request_started.connect(_tell_flasks_route)
        flask.got_request_exception.connect(_record_flasks)
    if sys.modules.get("quart"):
        from quart import signals

        signals.request_started.connect(_tell_quarts_route)
        signals.websocket_started.connect(_tell_quarts_route)
        signals.got_request_exception.connect(_record_quarts)
        signals.got_websocket_exception.connect(_record_quarts)
    if sys.modules.get("django"):
        from django.core.signals import got_request_exception as in_django  # type: ignore[import-untyped]

        in_django.connect(_record_djangos, dispatch_uid="meshmw")


def record_answered(carrier: Scope, error: BaseException) -> None:
    """Record the exception that a framework answers itself.

    Args:
        carrier: The scope or environ of the request.
        error: What was raised.
    """
    operation = _operation_of(carrier)
    if operation is not None:
        operation.fail(error)


def _tell_flasks_route(_app: object, **_: object) -> None:
    from flask import request

    if request.url_rule is not None:
        tell_route(request.environ, Told(request.root_path, request.url_rule.rule))


def _record_flasks(_app: object, exception: BaseException, **_: object) -> None:
    from flask import request

    record_answered(request.environ, exception)


# A function that is not async would be called in a thread.
async def _tell_quarts_route(_app: object, **_: object) -> None:
    asked = _asked_of_quart()
    if asked.url_rule is not None:
        tell_route(asked.scope, Told(asked.root_path, asked.url_rule.rule))


async def _record_quarts(_app: object, exception: BaseException, **_: object) -> None:
    record_answered(_asked_of_quart().scope, exception)


def _asked_of_quart() -> Any:
    from quart import has_request_context, request, websocket

    return request if has_request_context() else websocket


def _record_djangos(sender: object, request: Any = None, **_: object) -> None:
    # Django leaves the exception where `sys` finds it.
    error = sys.exception()
    if error is not None and request is not None:
        record_answered(carrier_of(request), error)


def carrier_of(request: Any) -> Scope:
    """Return the scope or environ of one of Django's requests."""
    # An ASGIRequest has its scope; META of a WSGIRequest is the environ.
    carrier: Scope = getattr(request, "scope", request.META)
    return carrier


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


def may_be_of(error: BaseException, function: Any) -> bool:
    """Say whether an exception was raised in a function, or for another one that was; True where nobody can tell.

    Args:
        error: What was raised.
        function: The function; one that is written in C leaves no trace.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    seen, waiting = set[int](), [error]
    while waiting and len(seen) < _MOST_LAYERS:
        raised = waiting.pop()
        if id(raised) not in seen:
            seen.add(id(raised))
            if any(frame.f_code is code for frame, _ in traceback.walk_tb(raised.__traceback__)):
                return True
            waiting += filter(None, (raised.__cause__, raised.__context__))
            waiting += raised.exceptions if isinstance(raised, BaseExceptionGroup) else ()
    return bool(waiting)
