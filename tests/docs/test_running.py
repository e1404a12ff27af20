"""A page that does not do what it says fails, at its own line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import blocks, running
from tests.docs.blocks import Page
from tests.docs.running import Run, compare


@pytest.fixture
def run_page(tmp_path: Path):
    def run_page(text: str) -> None:
        file = blocks.ROOT / "docs" / "page.md"
        path = tmp_path / "page.md"
        path.write_text(text)
        page = blocks.read(path)
        run = Run(Page(file, page.blocks, page.ports), tmp_path, lambda name: f"address of {name}", {})
        try:
            for block in page.blocks:
                run.block(block)
        finally:
            run.close()

    return run_page


def test_a_block_runs_with_what_stands_hidden_around_it(run_page) -> None:
    run_page("<!-- test: setup\na = 1\n-->\n<!-- test: after\nassert b == 2\n-->\n```python\nb = a + 1\n```\n")


def test_a_traceback_shows_the_line_of_the_page(run_page) -> None:
    with pytest.raises(AssertionError, match=r'page\.md", line 4,'):
        run_page("# A page\n\n```python\nprint(unknown)\n```\n")


def test_a_block_may_go_on_in_the_program_before_it(run_page) -> None:
    run_page("```python\na = 1\n```\n<!-- test: continue -->\n```python\nassert a == 1\n```\n")
    with pytest.raises(AssertionError, match="NameError"):
        run_page("```python\na = 1\n```\n```python\nassert a == 1\n```\n")


def test_an_endless_loop_ends_with_enough(run_page) -> None:
    run_page("<!-- test: setup\ndef handle():\n    raise Enough\n-->\n```python\nwhile True:\n    handle()\n```\n")


def test_output_that_is_not_what_was_written_fails(run_page) -> None:
    run_page("```console\n$ echo one; echo two\n...\ntwo\n```\n")
    run_page("```python\nprint('one')\n```\n<!-- test: output -->\n```text\none\n```\n")
    with pytest.raises(AssertionError, match="shown"):
        run_page("```console\n$ echo one\ntwo\n```\n")


def test_dots_stand_for_anything_and_nothing_else_does() -> None:
    compare("a ... ms", "b\na 12 ms\n")
    with pytest.raises(AssertionError):
        compare("a.b", "axb")


def test_a_command_that_ends_otherwise_than_it_says_fails(run_page) -> None:
    run_page("<!-- test: exit 3 -->\n```console\n$ exit 3\n```\n")
    with pytest.raises(AssertionError, match="ended with 3"):
        run_page("```console\n$ exit 3\n```\n")


@pytest.mark.parametrize(
    "block",
    [
        "```text\nunsaid\n```\n",
        "```yaml\na: [\n```\n",
        "```yaml\napiVersion: v1\nkind: Service\nspec: {ports: [{port: none}]}\n```\n",
        "```json\n{]\n```\n",
        "```toml\na =\n```\n",
        "```nginx\nevents {}\n```\n",
        "```console\n$ pip install 'meshmw[nothing]'\n```\n",
        "```console\n$ kubectl 'apply\n```\n",
        "```cobol\n```\n",
        "<!-- test: check it cannot run -->\n```python\na b\n```\n",
        "<!-- test: elsewhere tests/nowhere.py -->\n```console\n$ ls\n```\n",
        "<!-- test: pipe false {file} -->\n```ini\n[a]\n```\n",
    ],
)
def test_what_cannot_run_is_checked_all_the_same(run_page, block: str) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011 - each parser has its own
        run_page(block)


def test_a_comment_that_is_misspelt_or_has_no_block_is_refused(run_page) -> None:
    with pytest.raises(AssertionError, match="serves"):
        run_page("<!-- test: serves 8000 -->\n```console\n$ ls\n```\n")
    with pytest.raises(AssertionError, match="no block"):
        run_page("<!-- test: exit 1 -->\n")


def test_a_file_is_there_for_later_blocks_and_a_server_listens(run_page) -> None:
    run_page(
        "<!-- test: ports 8000 -->\n<!-- test: file page.txt -->\n<!-- test: check a file -->\n```ini\nhello\n```\n"
        "<!-- test: serve 8000 -->\n```console\n$ python -m http.server 8000 --bind 127.0.0.1\n```\n"
        "```console\n$ python -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/page.txt').read())\"\n"
        "b'hello\\n'\n```\n"
    )


def test_nothing_that_installs_or_needs_a_cluster_is_run() -> None:
    for command in ("A=1 kubectl apply -f a", "python3 -m venv .venv && .venv/bin/pip install .", "docker run a"):
        assert not running.is_run(command)
    assert running.is_run("A=1 meshmw settings  # what is in force")
