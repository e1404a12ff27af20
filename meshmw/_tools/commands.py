"""The commands put together, with those that need no file of their own: `settings` and `demo`.

To add a command, write a function that returns an exit code, mark it `as_command`, and list it at the end of this file.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from meshmw._tools.access_log.command import access_log
from meshmw._tools.doctor import doctor
from meshmw._tools.inspect import inspect
from meshmw._tools.mesh_config import mesh_config
from meshmw._tools.output import (
    EXIT_CODES,
    OK,
    CannotRunError,
    JsonOption,
    ReportOption,
    as_command,
    print_json,
    print_line,
    signals_handled,
)
from meshmw._tools.verify.command import verify
from meshmw._version import __version__
from meshmw.errors import SettingsError
from meshmw.settings import SettingDoc, Settings, as_text, export_seconds, is_set, sdk_disabled

# The sample applications lie in the package in a wheel, and beside it in a checkout.
SAMPLE_FOLDERS: Final = (Path(__file__).parents[1] / "demo", Path(__file__).parents[2])


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    if sys.stdout is None:  # closed, as `>&-` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):
        # A log may hold a character that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments, prog_name="meshmw")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0  # pragma: no cover - Typer always ends by SystemExit


@as_command
def settings(json: JsonOption = False) -> int:
    """Print every setting, its value here, and where the value comes from.

    Where some cannot be used, it prints the others, says why, and ends with 2.
    """
    values, unusable = _usable_settings()
    names, origins = unusable.names if unusable else (), Settings.origins()
    entries = [
        (doc, "(cannot be used)" if doc.name in names else as_text(getattr(values, doc.name)), origins.get(doc.name))
        for doc in Settings.documentation()
    ]
    seconds = export_seconds("TRACES", http=values.exporter == "otlp-http")
    entries.append((_EXPORT_TIMEOUT, f"{seconds:g} seconds", _origin_of_timeout()))
    variable = _SDK_DISABLED.variable
    entries.append((_SDK_DISABLED, as_text(sdk_disabled()), variable if is_set(variable) else None))
    if json:
        print_json([_setting_json(*entry) for entry in entries])
    else:
        for text in "\n\n".join(_setting_text(*entry) for entry in entries).split("\n"):
            print_line(text)
    if unusable is not None:
        raise unusable
    return OK


def _usable_settings() -> tuple[Settings, SettingsError | None]:
    """Return the settings of the environment, and what is wrong with those that are the default's instead."""
    try:
        return Settings(), None
    except SettingsError as error:
        return Settings(**{name: getattr(Settings, name) for name in error.names}), error


# OpenTelemetry's own variable, which needs no setting beside it.
_SDK_DISABLED: Final = SettingDoc(
    name="sdk_disabled",
    variable="OTEL_SDK_DISABLED",
    standard=(),
    default="false",
    takes="true or false",
    description="Whether no spans are made; headers are still read, validated and passed on.",
)

_EXPORT_TIMEOUT: Final = SettingDoc(
    name="export_timeout",
    variable="OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    standard=("OTEL_EXPORTER_OTLP_TIMEOUT",),
    default="10 seconds",
    takes="milliseconds above 120, or seconds up to 120",
    description="The time that one export of spans may take, 60 seconds at most.",
)


def _origin_of_timeout() -> str | None:
    return next(filter(is_set, (_EXPORT_TIMEOUT.variable, *_EXPORT_TIMEOUT.standard)), None)


def _setting_json(doc: SettingDoc, value: str, origin: str | None) -> dict[str, object]:
    return {
        "variable": doc.variable,
        "value": value,
        "from": origin,
        "default": doc.default,
        "takes": doc.takes,
        "description": doc.description,
        "standard": list(doc.standard),
    }


def _setting_text(doc: SettingDoc, value: str, origin: str | None) -> str:
    return "\n".join(
        (
            f"{doc.variable}={value or '(none)'}  ({f'from {origin}' if origin else 'default'})",
            f"    {doc.description}",
            f"    Takes {doc.takes}. Default: {doc.default or '(none)'}.",
            *([f"    Where it is not set: {', '.join(doc.standard)}."] if doc.standard else []),
        )
    )


@as_command
def demo(
    serve: Annotated[
        bool, typer.Option("--serve", help="Keep the mesh up until Ctrl-C, and print each new trace.")
    ] = False,
    without_meshmw: Annotated[
        bool, typer.Option("--without-meshmw", help="Run the same services where nothing passes trace headers on.")
    ] = False,
    with_contrib: Annotated[
        bool, typer.Option("--with-contrib", help="Run the same services with the OpenTelemetry contrib packages.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The edge's port, 0 for any free one.")] = 0,
    jaeger: Annotated[
        str,
        typer.Option(
            metavar="URL[,OTLP]",
            help="A running Jaeger, or `own` for the one on the PATH: it gets the spans too; its links are printed.",
        ),
    ] = "",
    report: ReportOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the request's journey as one JSON document.")] = False,
) -> int:
    """Start two services behind real Envoy sidecars and an edge, send one request, and print the trace that comes out.

    Needs the extra `demo`. Ends with 0 where the trace is what it should be.
    """
    if json and serve:
        raise CannotRunError("--json prints one request; --serve goes on")
    if without_meshmw and with_contrib:
        raise CannotRunError("--without-meshmw and --with-contrib are two ways to run without it: choose one")
    flags = {"--serve": serve, "--without-meshmw": without_meshmw, "--with-contrib": with_contrib, "--json": json}
    arguments = [*(flag for flag, is_given in flags.items() if is_given), f"--port={port}"]
    if jaeger:
        arguments.append(f"--jaeger={jaeger}")
    if report is not None:
        # The samples run in another folder than this process.
        arguments.append(f"--report={report.absolute()}")
    return _run_samples(arguments, find_samples(SAMPLE_FOLDERS))


def find_samples(folders: tuple[Path, ...]) -> Path:
    """Return the first of these folders that holds the sample applications.

    Raises:
        CannotRunError: None of them does.
    """
    found = next((folder for folder in folders if (folder / "sample_apps" / "__main__.py").exists()), None)
    if found is None:
        raise CannotRunError(f"the sample applications are not where they should be: {folders[0] / 'sample_apps'}")
    return found


def _run_samples(arguments: list[str], folder: Path) -> int:
    from meshmw.testing import dies_with_parent

    command = dies_with_parent([sys.executable, "-m", "sample_apps", *arguments])
    # The child has a session of its own, so that Ctrl-C reaches it once, from here, and not from the terminal as well.
    process = subprocess.Popen(command, cwd=folder, start_new_session=True)  # noqa: S603
    # The child stops what it has started; this process waits for that.
    with signals_handled(lambda *_: process.send_signal(signal.SIGTERM)):
        return process.wait()


app = typer.Typer(
    name="meshmw",
    help="Keeps one trace one trace through sidecar proxies: shows where it breaks, and why.",
    epilog=f"{EXIT_CODES} Every command takes --json. NO_COLOR is honoured.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (inspect, doctor, access_log, verify, mesh_config, demo, settings):
    app.command(epilog=EXIT_CODES, no_args_is_help=_command in (inspect, verify))(_command)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"meshmw {__version__}")
        raise typer.Exit
