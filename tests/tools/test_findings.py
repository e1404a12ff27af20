"""Every code of a finding stands in docs/findings.md, and none stands there that the code does not have."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import meshmw._tools
from tests.docs.blocks import ROOT

TOOLS = Path(meshmw._tools.__file__).parent
CODE = re.compile(r"[a-z]+(?:-[a-z0-9]+)*\.[a-z0-9]+(?:-[a-z0-9]+)*")
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def trees() -> Iterator[ast.Module]:
    return (ast.parse(path.read_text(encoding="utf-8")) for path in TOOLS.rglob("*.py"))


def texts(node: ast.AST) -> set[str]:
    """The texts that have the form of a code."""
    found = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    return {text for text in found if isinstance(text, str) and CODE.fullmatch(text)}


def codes() -> set[str]:
    """What is given to a finding, and what begins as that does: a code may stand in a table or have a name."""
    given = set[str]()
    for tree in trees():
        for call in ast.walk(tree):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == "Finding"
                and call.args
            ):
                given |= texts(call.args[1])
    groups = {code.partition(".")[0] for code in given}
    return {text for tree in trees() for text in texts(tree) if text.partition(".")[0] in groups}


def test_the_page_has_the_codes_of_the_code_and_no_others() -> None:
    rows = ROW.findall((ROOT / "docs" / "findings.md").read_text(encoding="utf-8"))
    assert [code for code, number in Counter(code for code, _, _ in rows).items() if number > 1] == []
    assert {code for code, _, _ in rows} == codes()


def test_other_pages_name_codes_that_exist() -> None:
    known = codes()
    groups = {code.partition(".")[0] for code in known}
    named = {
        (page.name, code)
        for page in (ROOT / "docs").rglob("*.md")
        for code in re.findall(r"\[([a-z-]+\.[a-z0-9-]+)\](?!\()", page.read_text(encoding="utf-8"))
        if code.partition(".")[0] in groups
    }
    assert named
    assert {(page, code) for page, code in named if code not in known} == set()
