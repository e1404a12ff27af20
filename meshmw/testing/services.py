"""What a mesh of one's own services is made of, as values: each service, whom it calls, what stands beside it.

Starts nothing: `mesh` does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from meshmw.errors import MeshError

Sidecar: TypeAlias = Literal["none", "otel", "zipkin-b3", "zipkin-b3-w3c", "strip", "linkerd-like"]
SIDECARS: Final[tuple[Sidecar, ...]] = get_args(Sidecar)

_NAME: Final = re.compile(r"[a-z][a-z0-9-]*")
_SERVERS: Final = {"asgi": "uvicorn", "wsgi": "meshmw.testing.serve_wsgi"}


def check_sidecar(sidecar: str) -> None:
    """Refuse a style that does not exist.

    Raises:
        MeshError: It is none of `SIDECARS`.
    """
    if sidecar not in SIDECARS:
        raise MeshError(f"there is no sidecar {sidecar!r}: choose of {', '.join(SIDECARS)}")


@dataclass(frozen=True, slots=True)
class Service:
    """Is one service of the mesh, with a sidecar of its own.

    Args:
        name: Its name, in lower case; also its `service.name` where the application sets none.
        app: `module:attribute` of its application, as servers take it.
        interface: What `app` speaks: `asgi` (served by uvicorn) or `wsgi` (served by the standard library).
        command: What to run instead of `app`, with `{port}` for the port to listen on and `{other}` for the base URL of
            the service `other`.
        calls: The names of the services that it calls. Where they are stands in its environment: the base URL of
            `inventory`, through the sidecar, in `INVENTORY_URL`.
        environment: More environment variables; `{port}` and `{other}` stand for the same as in `command`.
        sidecar: The style of its sidecar; the mesh's own if None.
        directory: Where it runs; where the tests run if None.

    Raises:
        MeshError: The name is no name, there are both or neither of `app` and `command`, or the sidecar does not exist.
    """

    name: str
    app: str | None = None
    interface: Literal["asgi", "wsgi"] = "asgi"
    command: Sequence[str] | None = None
    calls: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    sidecar: Sidecar | None = None
    directory: Path | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise MeshError(f"{self.name!r} is no name of a service: use lower-case letters, digits and '-'")
        if (self.app is None) == (self.command is None):
            raise MeshError(f"service {self.name!r} needs an app, such as 'shop.main:app', or a command")
        if self.sidecar is not None:
            check_sidecar(self.sidecar)

    def arguments(self, places: Mapping[str, str]) -> list[str]:
        """Return the command that serves it, with what stands in braces put in.

        Args:
            places: The `port`, and the base URL of each service that it calls.
        """
        if self.command is not None:
            return [_filled(word, places) for word in self.command]
        options = ["--port", places["port"], "--host", "127.0.0.1"]
        return [sys.executable, "-m", _SERVERS[self.interface], *options, str(self.app)]

    def variables(self, places: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables that say where the others are, and those it was given."""
        urls = {f"{name.upper().replace('-', '_')}_URL": places[name] for name in self.calls}
        return urls | {name: _filled(value, places) for name, value in self.environment.items()}


def in_order(services: Sequence[Service]) -> list[Service]:
    """Return the services so that each comes after all that it calls.

    Raises:
        MeshError: Two have one name, one calls a service that is not there, or they call each other in a circle.
    """
    by_name = {service.name: service for service in services}
    if len(by_name) != len(services) or not services:
        raise MeshError(f"a mesh needs services with different names, got {[service.name for service in services]}")
    ordered: dict[str, Service] = {}

    def add(service: Service, callers: tuple[str, ...]) -> None:
        if service.name in callers:
            raise MeshError(f"services call each other in a circle: {' -> '.join((*callers, service.name))}")
        for name in service.calls:
            if name not in by_name:
                raise MeshError(f"service {service.name!r} calls {name!r}, which is not in the mesh")
            add(by_name[name], (*callers, service.name))
        ordered.setdefault(service.name, service)

    for service in services:
        add(service, ())
    return list(ordered.values())


def _filled(text: str, places: Mapping[str, str]) -> str:
    # Not `str.format`: a command may hold braces of its own.
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", place)
    return text
