"""toxiproxy: the proxy that plants outages between an application and its collector."""

from pathlib import Path

from tests.real.install import run

VERSION = "v2.12.0"


def build(folder: Path) -> None:
    """Leave `folder/server`; Go checks the module's hash against its sum database where that is reachable."""
    run(
        "go",
        "install",
        f"github.com/Shopify/toxiproxy/v2/cmd/server@{VERSION}",
        GOBIN=str(folder),
        CGO_ENABLED="0",
        GOFLAGS="-trimpath",
    )
