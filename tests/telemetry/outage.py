"""How soon spans arrive again after a collector was away for minutes: `python -m tests.telemetry.outage 5`.

Too long for the tests. Prints one line for each fault and exporter, all at the same time.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from meshmw.testing import Fault, FaultProxy, OtlpReceiver
from tests.telemetry.test_collector_trouble import Service, arrived, endpoint_of

_PAUSE_SECONDS = 0.2


def _serve_until(service: Service, done, name: str) -> None:
    while not done():
        service.serve(5, name)
        time.sleep(_PAUSE_SECONDS)


def outage(fault: Fault, exporter: str, seconds: float) -> None:
    """Take a collector away for some seconds, and print how long spans take to arrive after its return."""
    with OtlpReceiver() as receiver, FaultProxy(endpoint_of(receiver, exporter)) as proxy:
        service = Service(exporter, proxy.endpoint)
        _serve_until(service, arrived(receiver, "before"), "before")
        with proxy.outage(fault):
            end = time.monotonic() + seconds
            _serve_until(service, lambda: time.monotonic() > end, "away")
        began = time.monotonic()
        _serve_until(service, arrived(receiver, "after"), "after")
        print(f"{fault} {exporter}: {time.monotonic() - began:.1f} s after {seconds:g} s", flush=True)
        service.handle.shutdown(1.0)


def main(minutes: float) -> None:
    """Try every fault with every exporter."""
    os.environ |= {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16", "OTEL_BSP_SCHEDULE_DELAY": "1000"}
    threads = [
        threading.Thread(target=outage, args=(fault, exporter, minutes * 60))
        for fault in ("refuse", "hang")
        for exporter in ("otlp", "otlp-http")
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


if __name__ == "__main__":
    main(float(sys.argv[1]))
