"""A headless Chromium that a test can ask: what a page shows, how wide it is, what it asks the network for."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from meshmw.testing import start_process, stop_processes

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
_SECONDS = 60


def find_chromium() -> str | None:
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


class Page:
    """Speaks to one tab in the DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, path: Path, *, width: int, dark: bool = False) -> None:
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._connection.recv(timeout=_SECONDS)))

    def ask(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def names(self, role: str) -> list[str]:
        """Return what a screen reader says of everything with a role."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in nodes
            if node.get("role", {}).get("value") == role and not node["ignored"]
        ]


@contextlib.contextmanager
def open_chromium(program: str, directory: Path) -> Iterator[Page]:
    log = directory / "chromium.log"
    process = start_process([program, *_FLAGS, f"--user-data-dir={directory / 'profile'}", "about:blank"], log)
    try:
        port = _port(process, log)
        with connect(_page_address(port), max_size=None) as connection:
            yield Page(connection)
    finally:
        stop_processes([process])


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"DevTools listening on ws://[^:]+:(\d+)/", log.read_text(errors="replace"))
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(f"Chromium did not start:\n{log.read_text(errors='replace')}")


def _page_address(port: int) -> str:
    import httpx

    with httpx.Client(trust_env=False, timeout=_SECONDS) as client:
        targets = client.get(f"http://127.0.0.1:{port}/json").json()
    address: str = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
    return address
