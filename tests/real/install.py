"""Build or fetch the real servers that the tests beside this file meet, once, into a cache outside the tree.

    python -m tests.real.install            every server
    python -m tests.real.install jaeger     one of them
    python -m tests.real.install --list     their names, and whether they are there

The cache is `~/.cache/meshmw-real-servers`, or what MESHMW_REAL_SERVERS names. A server's folder is named by a hash of
its recipe, so that a changed recipe builds anew. A folder appears only when it is whole.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.programs import not_installed

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("MESHMW_REAL_SERVERS") or Path.home() / ".cache" / "meshmw-real-servers")

Build = Callable[[Path], None]


def recipes() -> dict[str, Path]:
    """Each server's name, and the file below recipes/ whose `build(folder)` makes it."""
    return {path.stem.replace("_", "-"): path for path in sorted((HERE / "recipes").glob("[a-z]*.py"))}


def folder_of(name: str) -> Path:
    """Where that server is, or would be. What lies in recipes/NAME/ beside the recipe belongs to it."""
    recipe = recipes()[name]
    beside = recipe.with_suffix("")
    digest = hashlib.sha256(recipe.read_bytes())
    for path in sorted(beside.rglob("*")) if beside.is_dir() else ():
        if path.is_file():
            digest.update(str(path.relative_to(beside)).encode() + b"\0" + path.read_bytes())
    return CACHE / f"{name}-{digest.hexdigest()[:12]}"


def real_server(config: pytest.Config, name: str) -> Path:
    """The folder of a server for a test, which is skipped, or fails in CI, where it is not there."""
    folder = folder_of(name)
    if not folder.is_dir():
        not_installed(config, f"{name} is not installed: python -m tests.real.install {name}")
    return folder


def install(name: str) -> Path:
    """Make that server's folder if it is not there."""
    folder = folder_of(name)
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    building = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=CACHE))
    try:
        import_module(f"tests.real.recipes.{recipes()[name].stem}").build(building)
        building.chmod(0o755)
        _put(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    print(f"{name}: {folder} ({time.monotonic() - started:.0f} s)", flush=True)
    return folder


def _put(building: Path, folder: Path) -> None:
    try:
        building.rename(folder)
    except OSError:
        # Another run of this may have been quicker.
        if not folder.is_dir():
            raise


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> None:
    """Run one step of a recipe; its output is shown only if it fails.

    Raises:
        SystemExit: The program is not installed.
        subprocess.CalledProcessError: It failed, perhaps for the network's sake.
    """
    program, *arguments = map(str, command)
    if shutil.which(program) is None:
        raise SystemExit(f"{program} is not installed")
    subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )


def main(arguments: list[str]) -> None:
    """The command line."""
    # As Ctrl-C does, so that the running step ends, and what is not whole goes away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="python -m tests.real.install", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(recipes())}; all without any")
    parser.add_argument("--list", action="store_true", help="name the servers and say whether they are there")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(recipes()):
        parser.error(f"no recipe is named {', '.join(sorted(unknown))}; there are {', '.join(recipes())}")
    for name in options.names or recipes():
        if options.list:
            print(f"{name}: {'installed' if folder_of(name).is_dir() else 'not installed'}")
        else:
            _install_despite_the_network(name)


def said_of(failed: subprocess.CalledProcessError) -> str:
    """What a step that failed was, and the end of what it said, if that was caught."""
    command = failed.cmd if isinstance(failed.cmd, str) else " ".join(map(str, failed.cmd))
    return f"{command} ended with {failed.returncode}:\n{(failed.output or '')[-4000:]}{failed.stderr or ''}"


def _install_despite_the_network(name: str) -> None:
    """Try three times: each recipe fetches hundreds of files, and keeps those that it has."""
    for attempt in (1, 2, 3):
        try:
            install(name)
        except subprocess.CalledProcessError as failed:
            said = said_of(failed)
            if attempt == 3:
                raise SystemExit(f"{name}: {said}") from None
            print(f"{name}: once more, after {said}", flush=True)
            time.sleep(5 * attempt)
        else:
            return


if __name__ == "__main__":
    main(sys.argv[1:])
