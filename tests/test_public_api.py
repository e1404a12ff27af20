"""What `import meshmw` offers, and what it costs."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import meshmw

PUBLIC = [
    "meshmw",
    "meshmw.grpc",
    "meshmw.httpx",
    "meshmw.httpx2",
    "meshmw.kafka",
    "meshmw.rabbitmq",
    "meshmw.wire",
    "meshmw.testing",
    "meshmw.settings",
]
OPTIONAL = [
    "fastapi",
    "starlette",
    "django",
    "flask",
    "werkzeug",
    "httpx2",
    "grpc",
    "confluent_kafka",
    "aiokafka",
    "pika",
    "aio_pika",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_sorted_and_everything_in_it_is_there(name):
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(
        module.__all__, key=lambda each: (not each.isupper(), each[0].islower(), each)
    )
    assert all(hasattr(module, each) for each in module.__all__)


def test_dir_shows_the_public_names_and_others_raise():
    assert set(dir(meshmw)) == {*meshmw.__all__, *meshmw._MODULES}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = meshmw.nonsense


def test_every_public_object_says_what_it_does():
    for name in meshmw.__all__:
        found = getattr(meshmw, name)
        # A closed set of words has no docstring of its own.
        assert inspect.getdoc(found) or get_args(found), name


def test_type_checkers_and_the_program_find_the_same_names():
    tree = ast.parse(Path(meshmw.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name for node in block.body for alias in node.names} - {"Context"}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert imported | defined | {"__version__"} == {*meshmw.__all__, *meshmw._MODULES}


def test_one_import_is_enough_for_every_public_module():
    used = "; ".join(f"meshmw.{name}" for name in meshmw._MODULES)
    done = subprocess.run([sys.executable, "-c", f"import meshmw; {used}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    ["meshmw", "meshmw.asgi", "meshmw.wsgi", "meshmw.httpx", "meshmw.propagator", "meshmw.kafka", "meshmw.rabbitmq"],
)
def test_a_bare_import_needs_no_extra(name):
    """The optional packages are hidden, as in an installation without any extra."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    use = "meshmw.configure; meshmw.MeshPropagator(); meshmw.Settings" if name == "meshmw" else "pass"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{hidden}\nimport {name}\nimport meshmw\n{use}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("meshmw.flask", "flask", "flask"), ("meshmw.grpc", "grpc", "grpc"), ("meshmw.httpx2", "httpx2", "httpx2")],
)
def test_a_missing_extra_is_named_with_the_command_that_brings_it(name, package, extra):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None\nimport {name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"pip install 'meshmw[{extra}]'" in done.stderr.splitlines()[-1]


def test_importing_the_package_alone_loads_no_sdk():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, meshmw; sys.exit('opentelemetry.sdk' in sys.modules)"],
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        "meshmw.baggage",
        "meshmw.concurrency",
        "meshmw.errors",
        "meshmw.frames",
        "meshmw.httpx",
        "meshmw.httpx2",
        "meshmw.streams",
        "meshmw.wire",
        "meshmw.wire.b3",
        "meshmw.wire.baggage",
        "meshmw.wire.headers",
        "meshmw.wire.traceparent",
        "meshmw.wire.tracestate",
    ],
)
def test_dir_of_a_module_shows_what_it_offers_and_each_says_what_it_does(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for each in module.__all__:
        offered = getattr(module, each)
        assert inspect.getdoc(offered) or not (inspect.isclass(offered) or inspect.isroutine(offered)), each
