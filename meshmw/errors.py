"""Every exception that meshmw raises on purpose.

MeshmwError
├── InvalidHeaderError (ValueError)           a header from outside does not follow its format
├── SettingsError (ValueError)                settings that cannot be used, all faults together
├── MissingExtraError (ModuleNotFoundError)   an optional dependency is not installed
├── IncompatibleExporterError (ImportError)   an exporter is installed, and does not fit the OpenTelemetry that is
├── IncompatibleError (RuntimeError)          OpenTelemetry's SDK raised, and no setting is at fault
├── EnvoyError (RuntimeError)                 a test proxy could not be found or would not start
└── MeshError (ValueError)                    services that cannot be made a test mesh, or one that did not start

`InvalidHeaderError` is raised by the parsers in `meshmw.wire` alone. The propagator catches exactly that one, so no
header raises into an application.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "EnvoyError",
    "IncompatibleError",
    "IncompatibleExporterError",
    "InvalidHeaderError",
    "MeshError",
    "MeshmwError",
    "MissingExtraError",
    "SettingsError",
]


class MeshmwError(Exception):
    """Stands above every exception that meshmw raises on purpose: catch it to catch them all."""


class InvalidHeaderError(MeshmwError, ValueError):
    """Says that a header does not follow its format, with a stable reason code.

    Attributes:
        header: The header's name in lower case, such as `traceparent`.
        reason: A stable code, such as `length` or `zero_trace_id`.
        position: The offset of the fault in the header's text, in characters, where one place can be named.
    """

    def __init__(self, header: str, reason: str, position: int | None = None) -> None:
        super().__init__(header, reason, position)
        self.header = header
        self.reason = reason
        self.position = position

    def __str__(self) -> str:
        place = "" if self.position is None else f" at character {self.position}"
        return f"{self.header}: {self.reason}{place}"


class SettingsError(MeshmwError, ValueError):
    """Says that settings cannot be used, and names every fault at once.

    Attributes:
        faults: One line for each fault: the variable, what it holds, what it takes.
        names: The settings at fault, as arguments of `Settings`; empty where no single one is.
    """

    def __init__(self, faults: Sequence[str], names: Sequence[str] = ()) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)
        self.names = tuple(names)

    def __str__(self) -> str:
        return "meshmw cannot start with these settings:\n" + "\n".join(f"  - {fault}" for fault in self.faults)


class MissingExtraError(MeshmwError, ModuleNotFoundError):
    """Says which extra brings the module that is missing.

    Attributes:
        extra: The extra's name, as in `pip install 'meshmw[extra]'`.
    """

    def __init__(self, what: str, extra: str, instead: str = "") -> None:
        other = f"  or set {instead}" if instead else ""
        super().__init__(f"{what} is not installed: run  pip install 'meshmw[{extra}]'{other}")
        self.extra = extra


@contextmanager
def extra_named(package: str, what: str, extra: str) -> Iterator[None]:
    """Import in the block what an extra brings, and name the extra where *package* is not installed.

    What is missing further in, or raises, is a fault of the installation that the extra's name would hide: it passes,
    with a note that says which package it is and how to get another release of it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{package}.".startswith(f"{error.name}."):
            raise MissingExtraError(what, extra) from error
        error.add_note(f"{what} is installed and cannot be used: run  pip install --upgrade 'meshmw[{extra}]'")
        raise


class IncompatibleExporterError(MeshmwError, ImportError):
    """Says that an exporter is there and cannot be used, and that it does not fit the OpenTelemetry that is installed.

    Attributes:
        extra: The extra's name, as in `pip install --upgrade 'meshmw[extra]'`.
    """

    def __init__(self, what: str, extra: str, cause: str) -> None:
        super().__init__(
            f"{what} is installed, and does not fit the OpenTelemetry that is ({cause}): "
            f"run  pip install --upgrade 'meshmw[{extra}]'"
        )
        self.extra = extra


class IncompatibleError(MeshmwError, RuntimeError):
    """Says that OpenTelemetry's SDK raised while it was set up, and what, where no setting is at fault."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"OpenTelemetry's SDK cannot be set up, and no setting is at fault: {cause}")


class EnvoyError(MeshmwError, RuntimeError):
    """Says in one line why a test proxy is not there or would not start, in Envoy's own words where it gave any."""


class MeshError(MeshmwError, ValueError):
    """Says in one line why services cannot be made a test mesh, or which of them did not start, in its own words."""


def __dir__() -> list[str]:
    return sorted(__all__)
