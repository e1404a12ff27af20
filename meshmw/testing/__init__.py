"""Tests of traces on the real proxy: Envoy sidecars, an OTLP receiver, span assertions, a strict-context check.

Everything is loaded on first use: the pytest plugin lives here and must cost nothing where it is not used. pytest
itself is not needed; `pip install 'meshmw[testing]'` brings the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshmw.testing.context_check import strict_context
    from meshmw.testing.envoy import Envoy, find_envoy, start_envoys
    from meshmw.testing.header_matrix import HEADER_MATRIX, HeaderCase
    from meshmw.testing.linkerd_like import LinkerdLike
    from meshmw.testing.mesh import EnvoyMesh, start_mesh
    from meshmw.testing.mesh_client import Answer
    from meshmw.testing.otlp import OtlpReceiver
    from meshmw.testing.ports import free_port
    from meshmw.testing.processes import dies_with_parent, start_process, stop_processes
    from meshmw.testing.proxies import Listener, Proxy, Route, Tracer
    from meshmw.testing.services import Service
    from meshmw.testing.span_tree import (
        assert_chain,
        assert_child_of,
        assert_one_trace,
        children,
        find_span,
        find_spans,
        render_tree,
        roots,
    )
    from meshmw.testing.spans import Event, Link, ReceivedSpan, from_sdk

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
    "context_check": {"strict_context"},
    "envoy": {"Envoy", "find_envoy", "start_envoys"},
    "header_matrix": {"HEADER_MATRIX", "HeaderCase"},
    "linkerd_like": {"LinkerdLike"},
    "mesh": {"EnvoyMesh", "start_mesh"},
    "mesh_client": {"Answer"},
    "otlp": {"OtlpReceiver"},
    "ports": {"free_port"},
    "processes": {"dies_with_parent", "start_process", "stop_processes"},
    "proxies": {"Listener", "Proxy", "Route", "Tracer"},
    "services": {"Service"},
    "spans": {"Event", "Link", "ReceivedSpan", "from_sdk"},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "span_tree")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
