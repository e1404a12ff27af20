"""No text costs more than its length: no pattern that sees a stranger's text can go back over it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]

import pytest

import meshmw._context
import meshmw._policy
import meshmw.wire
from meshmw._policy.patterns import BaggageKeys, PathPatterns
from meshmw._policy.trust import spiffe_id

PACKAGES = (meshmw.wire, meshmw._context, meshmw._policy)
SIZE = 65_536
# What one of the grammars takes, over and over, and what none of them takes at the end.
PARTS = ["0", "a", "-", " ", ",", "=", ";", "a=1,", "a=1;p;", " \t", ".", "a.", "0.", "*", "?", "/", "\\", '"', 'a="\\']
ENDS = ["", "\n", "\x00", '"', "=", "\xff"]


def patterns():
    """Every compiled pattern that a module of these packages keeps, by where it is."""
    for package in PACKAGES:
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                named = value.items() if isinstance(value, dict) else [("", value)]
                for key, pattern in named:
                    if isinstance(pattern, re.Pattern):
                        yield pytest.param(pattern, id=f"{found.name}.{name}{key}")


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
