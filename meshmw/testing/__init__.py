"""Tests of traces on the real proxy: Envoy sidecars, an OTLP receiver, outages, span assertions, strict contexts.

`start_mesh` puts services between sidecars, and is what the pytest fixture `envoy_mesh` calls; the other names are its
parts and the assertions. Each is loaded when you first use it, because every run of pytest loads this package for its
plugin. pytest itself is not needed; `pip install 'meshmw[testing]'` brings the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshmw._tools import Finding
    from meshmw._tools.verify.journey import Hop, Journey, JourneySpan
    from meshmw._tools.verify.report import write_report
    from meshmw.testing._context_check import strict_context
    from meshmw.testing._envoy import Envoy, find_envoy, start_envoys
    from meshmw.testing._faults import Fault, FaultProxy
    from meshmw.testing._linkerd_like import LinkerdLike
    from meshmw.testing._mesh import EnvoyMesh, start_mesh
    from meshmw.testing._otlp import OtlpReceiver
    from meshmw.testing._processes import Service, dies_with_parent, free_port, start_process, stop_processes
    from meshmw.testing._proxies import Listener, Proxy, Route, Tracer
    from meshmw.testing._requests import HEADER_MATRIX, Answer, HeaderCase
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
else:
    # A type checker must not see this function: it would accept any name.
    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return value


__all__ = [
    "HEADER_MATRIX",
    "Answer",
    "Envoy",
    "EnvoyMesh",
    "Event",
    "Fault",
    "FaultProxy",
    "Finding",
    "HeaderCase",
    "Hop",
    "Journey",
    "JourneySpan",
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
    "write_report",
]

_HOMES = {
    "meshmw._tools": "Finding",
    "meshmw._tools.verify.journey": "Hop Journey JourneySpan",
    "meshmw._tools.verify.report": "write_report",
    "meshmw.testing._context_check": "strict_context",
    "meshmw.testing._envoy": "Envoy find_envoy start_envoys",
    "meshmw.testing._faults": "Fault FaultProxy",
    "meshmw.testing._linkerd_like": "LinkerdLike",
    "meshmw.testing._mesh": "EnvoyMesh start_mesh",
    "meshmw.testing._otlp": "OtlpReceiver",
    "meshmw.testing._processes": "Service dies_with_parent free_port start_process stop_processes",
    "meshmw.testing._proxies": "Listener Proxy Route Tracer",
    "meshmw.testing._requests": "HEADER_MATRIX Answer HeaderCase",
    "meshmw.testing._spans": (
        "Event Link ReceivedSpan assert_chain assert_child_of assert_one_trace children find_span find_spans from_sdk "
        "render_tree roots"
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __dir__() -> list[str]:
    return sorted(__all__)
