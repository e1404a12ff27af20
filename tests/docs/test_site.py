"""What a reader can count on: each page is in the navigation, says what to read next, and shows what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, pages
from tests.docs.tables import TABLES, shown

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def files(navigation: object) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation.values() if isinstance(navigation, dict) else navigation
    return [file for entry in entries for file in files(entry)]


def test_each_page_is_in_the_navigation_once() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(files(project["nav"])) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_page_opens_with_what_it_is_for_and_ends_with_what_to_read_next(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    title, _, body = text.partition("\n")
    assert title.startswith("# ")
    assert re.match(r"\s*(<!-- test: ports [\d ]+-->\s*)?[*A-Za-z`]", body), "the first thing is a paragraph"
    headings = [
        line for line in re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S).splitlines() if line.startswith("## ")
    ]
    assert headings[-1] == "## Read next"


@pytest.mark.parametrize("name", TABLES)
def test_a_generated_table_is_what_the_code_says(name: str) -> None:
    assert shown(name) == TABLES[name](), "run  python -m tests.docs.tables"


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= 200


def test_the_two_set_up_commands_are_one_line_each() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert [command.rpartition(" && ")[2] for command in commands] == [
        ".venv/bin/python -m sample_apps",
        ".venv/bin/pytest -n 2 --dist loadfile",
    ]
    assert README.index(commands[0]) < README.index("\n## Install")


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_package_page_has_absolute_links_and_no_comments_of_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = README
    for each in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert "<!--" not in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 10
    assert all(target.startswith(project["project"]["urls"]["Source"]) for target in targets)


def test_no_extra_names_a_package_twice() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, requirements in extras.items():
        names = [re.split(r"[^\w.-]", requirement)[0] for requirement in requirements]
        assert len(names) == len(set(names)), extra
