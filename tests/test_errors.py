"""An extra is named where its package is not installed, and nothing else is called not installed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

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
        ("raise TypeError('Descriptors cannot be created directly')", "TypeError Descriptors cannot be created"),
    ],
)
def test_a_package_that_is_installed_and_broken_says_what_it_says(statement, failure, expected):
    assert said(statement, EXTRAS[statement][0], failure).startswith(expected)


@pytest.mark.parametrize(("module", "is_extra"), [("typer", True), ("rich", True), ("click", False)])
def test_the_command_line_is_called_not_installed_only_where_it_is(module, is_extra):
    statement = "from meshmw.__main__ import main; sys.stderr = sys.stdout; main(['inspect'])"
    shown = said(statement, "meshmw._tools.commands", ABSENT.format(module))
    assert shown.startswith("meshmw: the command line is not installed" if is_extra else "ModuleNotFoundError")
