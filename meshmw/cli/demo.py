"""`meshmw demo`: the sample mesh, from a checkout or from an installed wheel."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Final

import typer

from meshmw.cli.output import CannotRunError, answers

# In the wheel the sample applications lie in the package, in a checkout beside it.
HOMES: Final = (Path(__file__).parents[1] / "demo", Path(__file__).parents[2])


@answers
def demo(
    serve: Annotated[
        bool, typer.Option("--serve", help="Keep the mesh up until Ctrl-C, and print each new trace.")
    ] = False,
    without_meshmw: Annotated[
        bool, typer.Option("--without-meshmw", help="Run the same services with OpenTelemetry alone.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The edge's port, 0 for any free one.")] = 0,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write an HTML report as well.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the request's journey as one JSON document.")] = False,
) -> int:
    """Start two services behind real Envoy sidecars and an edge, send one request, and print the trace that comes out.

    Needs the extra `demo`. Ends with 0 where the trace is what it should be.
    """
    if json and serve:
        raise CannotRunError("--json prints one request; --serve goes on")
    flags = {"--serve": serve, "--without-meshmw": without_meshmw, "--json": json}
    arguments = [*(flag for flag, is_given in flags.items() if is_given), f"--port={port}"]
    if report is not None:
        # It runs in another folder.
        arguments.append(f"--report={report.absolute()}")
    return _run(arguments, find_home(HOMES))


def find_home(homes: tuple[Path, ...]) -> Path:
    """Return the folder that holds the sample applications.

    Raises:
        CannotRunError: They are in none of them.
    """
    found = next((home for home in homes if (home / "sample_apps" / "__main__.py").exists()), None)
    if found is None:
        raise CannotRunError(f"the sample applications are not where they should be: {homes[0] / 'sample_apps'}")
    return found


def _run(arguments: list[str], home: Path) -> int:
    from meshmw.testing import dies_with_parent

    command = dies_with_parent([sys.executable, "-m", "sample_apps", *arguments])
    # A session of its own, so that Ctrl-C comes through here alone, and comes once.
    process = subprocess.Popen(command, cwd=home, start_new_session=True)  # noqa: S603
    with _passed_on_to(process):
        return process.wait()


@contextlib.contextmanager
def _passed_on_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let what would stop this process stop that one, which stops what it has started and then ends."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
