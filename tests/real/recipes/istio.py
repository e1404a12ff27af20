"""istio: Istio's control plane from files, and `istioctl analyze` and `validate`, as one program."""

import shutil
from pathlib import Path

from tests.real.install import run

HERE = Path(__file__).with_suffix("")


def build(folder: Path) -> None:
    """Leave `folder/istio`; go.sum has the hash of every module.

    Some 1,900 packages are compiled, so what only a debugger needs is left out. Istio's own builds have the tag
    `disable_pgv`; the package of the discovery server that is used here does not compile with it.
    """
    source = folder / "source"
    shutil.copytree(HERE, source)
    run(
        *("go", "build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"),
        *("-o", folder / "istio", "."),
        cwd=source,
        CGO_ENABLED="0",
        GOFLAGS="-mod=readonly",
        GOGC="400",
    )
    shutil.rmtree(source)
