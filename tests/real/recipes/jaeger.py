"""jaeger and collector: the backend, and a Collector of the few components that the tests use, from one Go module.

Jaeger is a Collector too, so that what both share is compiled once. It comes without two of the modules that it
imports: `jaeger/absent` stands in for them, without which it takes three times as long. `go.sum` holds every hash.
"""

from pathlib import Path

from tests.real.install import run

# The last tag that Go takes for a version of its module; it is Jaeger 2.13.
JAEGER = "github.com/jaegertracing/jaeger/cmd/jaeger"
MODULE = Path(__file__).with_suffix("")


def build(folder: Path) -> None:
    """Leave `folder/jaeger` and `folder/collector`."""
    for name, package in (("jaeger", JAEGER), ("collector", "./collector")):
        run(
            *("go", "build", "-trimpath", "-buildvcs=false"),
            # Nobody debugs these.
            *("-gcflags=all=-dwarf=false", "-ldflags=-s -w"),
            *("-o", folder / name, package),
            cwd=MODULE,
            CGO_ENABLED="0",
            GOFLAGS="",
        )
