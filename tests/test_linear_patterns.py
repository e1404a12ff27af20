"""No text costs more than its length: no pattern that sees a stranger's text can go back over it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import signal
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

import pytest

import meshmw
import meshmw._context
import meshmw._policy
import meshmw.wire
from meshmw._policy.outbound import Destinations
from meshmw._policy.patterns import BaggageKeys, PathPatterns
from meshmw._policy.xfcc import spiffe_id
from meshmw._regex import compiled_late

PACKAGES = (meshmw.wire, meshmw._context, meshmw._policy)
SIZE = 65_536
# What one of the grammars takes, over and over, and what none of them takes at the end.
PARTS = ["0", "a", "-", " ", ",", "=", ";", "a=1,", "a=1;p;", " \t", ".", "a.", "0.", "*", "?", "/", "\\", '"', 'a="\\']
ENDS = ["", "\n", "\x00", '"', "=", "\xff"]


# Seconds for one pattern on all texts: a linear one takes a few thousandths of it, and a quadratic one minutes.
HANGS_AFTER = 20.0


# What `compiled_late` keeps until somebody uses the pattern.
LATE = type(compiled_late("").__wrapped__)


def patterns_in(value, name, depth=5):
    """Yield the patterns that a value is or holds, by where it is."""
    held = {}
    if isinstance(value, re.Pattern):
        yield name, value
    elif isinstance(getattr(value, "__wrapped__", None), LATE):
        yield name, value()
    elif isinstance(value, dict):
        held = value
    elif isinstance(value, (tuple, list)):
        held = dict(enumerate(value))
    elif isinstance(value, type) and value.__module__.startswith("meshmw"):
        held = vars(value)
    elif is_dataclass(value) and type(value).__module__.startswith("meshmw"):
        held = {each.name: getattr(value, each.name) for each in fields(value)}
    for key, each in held.items() if depth else ():
        yield from patterns_in(each, f"{name}.{key}", depth - 1)


def patterns(packages=PACKAGES):
    """Every pattern that a module of these packages keeps, once, by where it is."""
    seen = set()
    for package in packages:
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # To import the second configures this process.
            if found.name.endswith(("__main__", "meshmw.auto")):
                continue
            for name, value in vars(importlib.import_module(found.name)).items():
                for place, pattern in patterns_in(value, name):
                    if pattern not in seen:
                        seen.add(pattern)
                        yield pytest.param(pattern, id=f"{found.name}.{place}")


# What is made of settings or of an argument is tested below, by what it decides.
MADE_WHEN_ASKED = {
    "_policy/outbound.py:Destinations.__init__",
    "_policy/patterns.py:PathPatterns.__init__",
    "_policy/patterns.py:_key_expression",
    "_tools/access_log/formats.py:_tight_pattern",
    "_tools/access_log/formats.py:TextFormat._strict",
    "_tools/access_log/rows.py:Shape.__init__",
    # Whose own calls are looked for below.
    "_regex.py:compiled_late",
}


OF_RE = ("compile", "search", "match", "fullmatch", "split", "sub", "subn", "findall", "finditer")
USES = {"compiled_late", *(f"re.{name}" for name in OF_RE)}


def uses_of_re(node, place):
    """Yield where functions compile or use patterns by `re` itself; no module shows those."""
    for child in ast.iter_child_nodes(node):
        inner = place
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = [*place, child]
        if (
            any(not isinstance(each, ast.ClassDef) for each in place)
            and isinstance(child, (ast.Attribute, ast.Name))
            and ast.unparse(child) in USES
        ):
            yield ".".join(each.name for each in place)
        yield from uses_of_re(child, inner)


def test_every_pattern_is_one_that_these_tests_know():
    home = Path(meshmw.__file__).parent
    found = {
        f"{path.relative_to(home)}:{place}"
        for path in home.rglob("*.py")
        for place in uses_of_re(ast.parse(path.read_text(encoding="utf-8")), [])
    }
    assert found == MADE_WHEN_ASKED
    assert list(uses_of_re(ast.parse("import re\ndef f():\n    return [re.sub('a*b', '', 'a')]"), [])) == ["f"]
    assert list(uses_of_re(ast.parse("class C:\n    def f(self):\n        compiled_late('a*b')"), [])) == ["C.f"]


def test_every_pattern_that_an_import_compiles_is_found():
    program = """
import re, sys
compiled, compile = [], re.compile
def noted(*asked, **flags):
    found = compile(*asked, **flags)
    caller = sys._getframe(1)
    if caller.f_globals["__name__"].startswith("meshmw") and caller.f_code.co_name == "<module>":
        compiled.append(found)
    return found
re.compile = noted
import meshmw, meshmw._regex
compile_late = meshmw._regex.compiled_late
def noted_late(*asked, **flags):
    if sys._getframe(1).f_globals["__name__"].startswith("meshmw"):
        compiled.append(compile(*asked, **flags))
    return compile_late(*asked, **flags)
meshmw._regex.compiled_late = noted_late
from tests.test_linear_patterns import patterns
known = {each.values[0] for each in patterns([meshmw])}
assert len(compiled) > 70, len(compiled)
assert not (hidden := set(compiled) - known), hidden
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


SOURCE = "".join(path.read_text(encoding="utf-8") for path in Path(meshmw.__file__).parent.rglob("*.py"))


def is_searched(place):
    """Say whether anybody does more with a pattern than to match a text from its beginning."""
    name = place.rpartition(".")[2]
    uses = set(re.findall(rf"\b{name}(?:\(\))?\.([a-z]+)", SOURCE))
    return not uses or not uses <= {"match", "fullmatch", "pattern"}


@pytest.fixture
def watch():
    """Ends a test that hangs in a pattern; `re` looks for signals while it matches."""

    def hang(*_):
        raise AssertionError("64 KiB of this take more than their length")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def literals(parsed):
    """Yield the characters that a pattern names: what it takes is made of them."""
    for op, argument in parsed:
        if op in (ops.LITERAL, ops.NOT_LITERAL):
            yield chr(argument)
        for part in argument if isinstance(argument, (tuple, list)) else [argument]:
            for inner in part if isinstance(part, list) else [part]:
                if isinstance(inner, _parser.SubPattern):
                    yield from literals(inner)


@pytest.mark.parametrize("pattern", list(patterns([meshmw])))
def test_64_kib_cost_no_more_than_their_length(pattern, request, watch):
    methods = ["fullmatch", "match"] + ["search"] * is_searched(request.node.callspec.id)
    own = list(literals(_parser.parse(pattern.pattern, pattern.flags)))
    for part in dict.fromkeys([*PARTS, "@", "\n", "x", "".join(own), *own]):
        for end in ("", "\n", "\x00"):
            text = (part * SIZE)[:SIZE] + end
            given = text.encode("utf-8", "replace") if isinstance(pattern.pattern, bytes) else text
            for method in methods:
                getattr(pattern, method)(given)


@pytest.mark.parametrize("regex", [r"[^/\s]*@", r"a*b", r"(?:a+)+b"])
def test_a_pattern_that_costs_more_is_found(regex, watch):
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    with pytest.raises(AssertionError, match="more than their length"):
        re.compile(regex).search("a" * SIZE)


def repeats_that_go_back(parsed):
    """Yield each repetition without an end that gives back what it has taken."""
    for op, argument in parsed:
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT) and argument[1] is ops.MAXREPEAT:
            yield argument
        for part in argument if isinstance(argument, (tuple, list)) else [argument]:
            for inner in part if isinstance(part, list) else [part]:
                if isinstance(inner, _parser.SubPattern):
                    yield from repeats_that_go_back(inner)


@pytest.mark.parametrize("pattern", list(patterns()))
def test_every_repetition_without_an_end_is_possessive(pattern):
    assert list(repeats_that_go_back(_parser.parse(pattern.pattern, pattern.flags))) == []


@pytest.mark.parametrize("pattern", list(patterns()))
def test_64_kib_of_anything_are_matched_or_not(pattern):
    for part in PARTS:
        text = (part * SIZE)[:SIZE]
        for end in ENDS:
            pattern.fullmatch(text + end)
            pattern.match(text + end)


@pytest.mark.parametrize(
    "matches",
    [
        PathPatterns(["/a*a*a", "*/a/*/a", "/?*?*", "/a"]).match,
        BaggageKeys(["a*a*a*a", "?*?*?", "*a"]).permits,
        Destinations(["*a*a.*a", "?*?*.?", "*.a"]).matches,
        spiffe_id,
    ],
)
def test_64_kib_of_anything_are_decided_on(matches):
    for part in PARTS:
        for end in ENDS:
            matches(("/" + part * SIZE)[:SIZE] + end)
            matches(f"uri={(part * 16_000)[:16_000]}{end}")


@pytest.mark.parametrize("regex", ["a*", "(?:a+b)++", "x(?=.*y)", "(?:a|b*)", "a++|b*?", "(?>a*)"])
def test_a_repetition_that_goes_back_is_found_wherever_it_stands(regex):
    assert list(repeats_that_go_back(_parser.parse(regex)))


@pytest.mark.parametrize("regex", ["a*+", "(?:a++b)*+", "x(?=[^y]*+y)", "a{0,255}b", "a?"])
def test_one_that_does_not_is_left_alone(regex):
    assert not list(repeats_that_go_back(_parser.parse(regex)))
