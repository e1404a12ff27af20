"""kubernetes: the API server with its etcd, and kubectl, as one program; and definitions.

These are the custom resources of Istio, of Envoy Gateway and of the Gateway API.
"""

import json
import shutil
import subprocess
from pathlib import Path

from tests.real.install import run

HERE = Path(__file__).with_suffix("")
KUBERNETES = "v1.34.4"
# Where each module keeps its definitions, and its hash. Those of Istio are of the control plane beside this.
DEFINITIONS = {
    "istio.io/api@v1.31.0-rc.0.0.20260824154656-b943409680a7": (
        "kubernetes/customresourcedefinitions.gen.yaml",
        "h1:xAyXvpHQLGIMd5enneW/4zM3dwWRQ2HmiaG6DlhObds=",
    ),
    "github.com/envoyproxy/gateway@v1.7.0": (
        "charts/gateway-helm/crds/generated",
        "h1:noVz4fADhljSKpQFaspb25+C3kC8bBBisQZle9W0ei4=",
    ),
    "sigs.k8s.io/gateway-api@v1.6.0": ("config/crd/standard", "h1:735YBRj5NXFrOGX0GoSjwzUIzbz8kiEOfADsqHFmHgE="),
}
# Where the program has its version from.
_VERSION = "k8s.io/component-base/version"


def build(folder: Path) -> None:
    """Leave `folder/kubernetes` and `folder/definitions`; go.sum has the hash of every module."""
    source = folder / "source"
    shutil.copytree(HERE, source)
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    known = f"-X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor={major} -X {_VERSION}.gitMinor={minor}"
    run(
        *("go", "build", "-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags=-s -w {known}"),
        *("-o", folder / "kubernetes", "."),
        cwd=source,
        CGO_ENABLED="0",
        GOFLAGS="-mod=readonly",
        GOGC="400",
    )
    definitions = folder / "definitions"
    definitions.mkdir()
    for module, (path, digest) in DEFINITIONS.items():
        there = _fetched(module, digest) / path
        name = module.partition("@")[0].rpartition("/")[2]
        for file in sorted(there.glob("*_*.yaml")) if there.is_dir() else [there]:
            shutil.copyfile(file, definitions / f"{name}-{file.name}")
    shutil.rmtree(source)


def _fetched(module: str, digest: str) -> Path:
    # Outside of any module, whose go.mod would be asked for it.
    asked = subprocess.run(
        ["go", "mod", "download", "-json", module], cwd="/", check=True, capture_output=True, text=True
    )
    found = json.loads(asked.stdout)
    if found["Sum"] != digest:
        raise SystemExit(f"{module} has the hash {found['Sum']}, not {digest}")
    return Path(found["Dir"])
