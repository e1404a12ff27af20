"""How long HTTP requests take, served and sent: OpenTelemetry's stable histograms.

Knows instruments and their conventions. Must not know spans, nor how an operation lives. No label takes what a stranger
chooses: methods, schemes and versions are the known ones, a path is a route, and the hosts that are called are counted.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import Final

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram

from meshmw.semconv.attributes import Attributes, AttributeValue, error_type

# "this metric SHOULD be specified with ExplicitBucketBoundaries of"              HTTP metrics
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_SCHEMES: Final = frozenset({"http", "https", "ws", "wss"})
_VERSIONS: Final = frozenset({"1.0", "1.1", "2", "3"})
_MOST_HOSTS: Final = 100

log = logging.getLogger("meshmw")

_METER: Final = metrics.get_meter("meshmw")
SERVER: Final = _METER.create_histogram(
    "http.server.request.duration",
    unit="s",
    description="Duration of HTTP server requests.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)
CLIENT: Final = _METER.create_histogram(
    "http.client.request.duration",
    unit="s",
    description="Duration of HTTP client requests.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)
_hosts: Final[set[str]] = set()


def is_measured(histogram: Histogram) -> bool:
    """Say whether the process has a meter provider, so that measuring is worth its while."""
    # An instrument that was made before there is a provider stands for one that comes later.
    return getattr(histogram, "_real_instrument", histogram) is not None


@functools.cache
def _say_once() -> None:
    log.warning("the meter provider raised; requests are unaffected, and durations are missing", exc_info=True)


class Measurement:
    """Times one request, from when it is made.

    Args:
        histogram: Where the duration goes.
        attributes: What is known of the request as it begins; of these, what may be a label becomes one.
    """

    __slots__ = ("_began", "_histogram", "labels")

    def __init__(self, histogram: Histogram, attributes: Attributes) -> None:
        self._began = time.perf_counter()
        self._histogram = histogram
        self.labels: dict[str, AttributeValue] = _labels(attributes, is_client=histogram is CLIENT)

    def fail(self, error: BaseException) -> None:
        """Note an error; cancellation is none."""
        if isinstance(error, Exception):
            self.labels["error.type"] = error_type(error)

    def status(self, code: int, error_from: int) -> None:
        """Note the status code, which is an error from *error_from* on."""
        self.labels["http.response.status_code"] = code
        if code >= error_from:
            self.labels["error.type"] = str(code)

    def record(self, context: Context) -> None:
        """Record the time since it was made, as an exemplar of the span in a context."""
        try:
            self._histogram.record(time.perf_counter() - self._began, self.labels, context)
        except Exception:
            # Somebody else's provider, view or exemplar filter, in the request's own thread.
            _say_once()


def _labels(attributes: Attributes, *, is_client: bool) -> dict[str, AttributeValue]:
    labels: dict[str, AttributeValue] = {"http.request.method": attributes["http.request.method"]}
    if (scheme := attributes.get("url.scheme")) in _SCHEMES and scheme is not None:
        labels["url.scheme"] = scheme
    if (version := attributes.get("network.protocol.version")) in _VERSIONS and version is not None:
        labels["network.protocol.version"] = version
    if is_client:
        labels |= _host(attributes)
    return labels


def _host(attributes: Attributes) -> dict[str, AttributeValue]:
    """Return the host that is called, which the conventions ask for; those beyond the first hundred are one."""
    address, port = str(attributes.get("server.address", "")), attributes.get("server.port")
    host = f"{address}:{port}"
    if host not in _hosts:
        if len(_hosts) >= _MOST_HOSTS:
            return {"server.address": "_OTHER"}
        _hosts.add(host)
    return {"server.address": address} | ({} if port is None else {"server.port": port})
