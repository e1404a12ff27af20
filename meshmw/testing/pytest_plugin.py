"""The pytest plugin: fixtures for real sidecars, an OTLP receiver and the strict-context check, and reports of meshes.

Every pytest run of everyone who has meshmw installed loads it, and so it imports nothing until a fixture is used.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

if TYPE_CHECKING:
    from meshmw.testing import Envoy, EnvoyMesh, HeaderCase, OtlpReceiver, Proxy, Service
    from meshmw.testing._processes import Sidecar

_MESHES: Final[pytest.StashKey[list[EnvoyMesh]]] = pytest.StashKey()
_UNFIT_FOR_A_FILE_NAME: Final = re.compile(r"[^A-Za-z0-9.]+")
_SECTION: Final = "meshmw report"
_NOT_WRITTEN: Final = "not written"
# Most file systems take 255 bytes.
_LONGEST_NAME: Final = 150


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--meshmw-require-envoy` and `--meshmw-report`."""
    group = parser.getgroup("meshmw")
    group.addoption(
        "--meshmw-require-envoy",
        action="store_true",
        help="fail, instead of skipping, tests that need Envoy or an OTLP receiver where these are not installed",
    )
    group.addoption(
        "--meshmw-report",
        metavar="DIR",
        help="write an HTML report of the last request of each test that uses `envoy_mesh`, failed or not",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark `meshmw_headers`."""
    config.addinivalue_line(
        "markers",
        "meshmw_headers(*names): run the test once for each of these cases of the header matrix; all by default",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `trace_headers` once for each case of the header matrix."""
    if "trace_headers" not in metafunc.fixturenames:
        # A class's or a module's mark may be meant for other tests.
        if any(mark.name == "meshmw_headers" for mark in metafunc.definition.own_markers):
            pytest.fail("meshmw_headers chooses cases for `trace_headers`, which this test does not use", pytrace=False)
        return
    from meshmw.testing._requests import header_cases

    marker = metafunc.definition.get_closest_marker("meshmw_headers")
    metafunc.parametrize("trace_headers", header_cases(marker.args if marker else ()), ids=str, indirect=True)


@pytest.fixture
def trace_headers(request: pytest.FixtureRequest) -> HeaderCase:
    """A case of the header matrix; `@pytest.mark.meshmw_headers("w3c", "twice")` chooses which."""
    case: HeaderCase = request.param
    return case


def _not_installed(request: pytest.FixtureRequest, reason: Exception) -> NoReturn:
    if request.config.getoption("--meshmw-require-envoy"):
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))


@pytest.fixture
def otlp_receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    """A running `meshmw.testing.OtlpReceiver`."""
    from meshmw.errors import MissingExtraError
    from meshmw.testing import OtlpReceiver

    with contextlib.ExitStack() as stack:
        try:
            receiver = stack.enter_context(OtlpReceiver())
        except MissingExtraError as missing:
            _not_installed(request, missing)
        yield receiver


@pytest.fixture
def envoys(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[Envoy]]]:
    """A function that starts `meshmw.testing.Proxy` objects at once and returns their running `Envoy`s, in order."""
    from meshmw.errors import EnvoyError
    from meshmw.testing import find_envoy, start_envoys

    try:
        find_envoy()
    except EnvoyError as missing:
        _not_installed(request, missing)
    with contextlib.ExitStack() as stack:

        def start(*proxies: Proxy) -> list[Envoy]:
            return stack.enter_context(start_envoys(proxies))

        yield start


@pytest.fixture
def envoy_mesh(request: pytest.FixtureRequest) -> Iterator[Callable[..., EnvoyMesh]]:
    """A function that runs `meshmw.testing.Service`s with a sidecar each and an edge, and returns the `EnvoyMesh`.

    It takes what `meshmw.testing.start_mesh` takes, but for `receiver`: each mesh has a collector of its own,
    `mesh.receiver`.
    """
    from meshmw.errors import EnvoyError, MissingExtraError
    from meshmw.testing import OtlpReceiver, find_envoy, start_mesh

    try:
        find_envoy()
        with OtlpReceiver():
            pass  # where it opens once, it will for each mesh
    except (EnvoyError, MissingExtraError) as missing:
        _not_installed(request, missing)
    with contextlib.ExitStack() as stack:

        def start(*services: Service, sidecar: Sidecar = "otel", edge: Sidecar | None = "otel") -> EnvoyMesh:
            mesh = stack.enter_context(start_mesh(*services, sidecar=sidecar, edge=edge))
            request.node.stash.setdefault(_MESHES, []).append(mesh)
            return mesh

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the reports while the meshes are still up, and say beside a failure where they are."""
    report = yield
    folder = item.config.getoption("--meshmw-report")
    if folder and call.when == "call":
        # Whatever keeps a report from being written, the test has its outcome, and the others go on.
        try:
            for path in _write_reports(item.stash.get(_MESHES, []), Path(folder), item.nodeid):
                report.sections.append((_SECTION, str(path)))
        except Exception as error:
            report.sections.append((_SECTION, f"{_NOT_WRITTEN}: {type(error).__name__}: {error}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which reports were not written: beside a test that passed, pytest shows no section."""
    reports = itertools.chain.from_iterable(terminalreporter.stats.values())
    for report in reports:
        for title, text in getattr(report, "sections", ()):
            if title == _SECTION and text.startswith(_NOT_WRITTEN):
                terminalreporter.write_line(f"meshmw report of {report.nodeid} {text}")


def _write_reports(meshes: list[EnvoyMesh], folder: Path, test: str) -> Iterator[Path]:
    """Write a report of the last request of each mesh that had one; yield where."""
    from meshmw._tools.verify.report import write_report

    name = _UNFIT_FOR_A_FILE_NAME.sub("-", test).strip("-")[-_LONGEST_NAME:]
    for number, mesh in enumerate((mesh for mesh in meshes if mesh.was_asked), 1):
        path = folder / (f"{name}.html" if number == 1 else f"{name}-{number}.html")
        write_report(mesh.journey(timeout=3.0), path)
        yield path


@pytest.fixture(name="strict_context")
def _strict_context() -> Iterator[None]:
    """Fails the test if it leaves an OpenTelemetry context attached."""
    from meshmw.testing import strict_context

    with strict_context():
        yield
