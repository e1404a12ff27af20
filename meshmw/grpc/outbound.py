"""One outbound call: its CLIENT span, and the metadata that it carries. Sync and aio interceptors share it.

Knows grpcio's call details. Must not know how calls are made, nor what comes back.
"""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import Any

from opentelemetry import trace

from meshmw import runtime
from meshmw.boundary.rpc import RpcOperation, begin_client
from meshmw.grpc.metadata import MAX_METADATA_BYTES, OutgoingMetadata, Pairs
from meshmw.grpc.target import parse_target
from meshmw.propagator import MeshPropagator
from meshmw.semconv.attributes import Attributes
from meshmw.semconv.rpc import client_attributes
from meshmw.version import __version__


class OutboundCalls:
    """Begins CLIENT operations and writes their metadata.

    Args:
        target: What the channel was made with, such as `pricing:50051`: it decides which headers are sent.
        propagator: Writes the headers; the configured one by default.
        tracer_provider: Makes the spans; the global one by default.
        max_metadata_bytes: What every server on the way accepts of metadata; baggage is cut to stay 2,048 below.

    Raises:
        ValueError: The target is empty, or the limit is not greater than 2,048.
    """

    def __init__(
        self,
        target: str,
        *,
        propagator: MeshPropagator | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        max_metadata_bytes: int = MAX_METADATA_BYTES,
    ) -> None:
        self._target = parse_target(target)
        self._attributes = lru_cache(maxsize=256)(self._attributes_of)
        self._metadata = OutgoingMetadata(max_metadata_bytes)
        self._propagator = propagator
        self._tracer = None if tracer_provider is None else tracer_provider.get_tracer("meshmw", __version__)

    def _attributes_of(self, method: str) -> Attributes:
        # Many spans share them.
        return MappingProxyType(client_attributes(method, self._target.address, self._target.port))

    def begin(self, details: Any) -> tuple[RpcOperation, Pairs]:
        """Return the operation, and the metadata of a call with its headers in it."""
        # grpcio's aio interceptors are given bytes.
        method = details.method if isinstance(details.method, str) else details.method.decode("utf-8")
        operation = begin_client(method, self._attributes(method), self._tracer)
        try:
            metadata = self._metadata.replace(
                getattr(details, "metadata", None),
                operation.context,
                self._propagator or runtime.current().propagator,
                method=method,
                host=self._target.host,
            )
        except BaseException as error:
            # What the caller gave is no metadata.
            operation.complete(None, error)
            raise
        return operation, metadata
