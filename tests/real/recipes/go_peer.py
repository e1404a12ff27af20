"""A peer in Go: OpenTelemetry Go with otelhttp, otelgrpc, and franz-go with kotel, as go.mod and go.sum name them."""

from pathlib import Path

from tests.real.install import run


def build(folder: Path) -> None:
    """Leave `folder/peer`. What a user has set for other work does not decide how this is built."""
    source = Path(__file__).with_suffix("")
    settings = {"GO111MODULE": "on", "GOWORK": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    run("go", "build", "-mod=readonly", "-buildvcs=false", "-o", folder / "peer", ".", cwd=source, **settings)
