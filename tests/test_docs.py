"""The docs: every code block runs, and every public name and property is described."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from methods import METHODS

import mtopt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEMO_COMMAND = 'pip install ".[demo]" && python -m mtopt'
TEST_COMMAND = 'pip install -e ".[test]" && pytest'


class Block(NamedTuple):
    language: str
    line: int  # of its opening fence, from 1
    text: str
    closed: int


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    opened: tuple[str, int] | None = None
    lines = markdown.splitlines()
    for number, line in enumerate(lines, start=1):
        if opened is None and line.lstrip().startswith("```"):
            opened = line.strip().removeprefix("```"), number
        elif opened is not None and line.strip() == "```":
            found.append(Block(*opened, "\n".join(lines[opened[1] : number - 1]) + "\n", number))
            opened = None
    assert opened is None, f"the fence of line {opened} is never closed"
    return found


def expected_output(block: Block, following: Block | None, markdown: str) -> str | None:
    """A text block right behind a python block is what it prints."""
    if following is None or following.language != "text":
        return None
    between = markdown.splitlines()[block.closed : following.line - 1]
    return None if any(between) else following.text


def run_page(page: Path) -> None:
    """Run a page's python blocks from top to bottom, in one namespace."""
    markdown = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "__main__"}
    found = blocks(markdown)
    for block, following in zip_longest(found, found[1:]):
        assert block.language in ("python", "text", "bash", "bibtex", "diff"), (
            f"{page}:{block.line}: {block.language!r}"
        )
        if block.language == "diff":  # both sides are programs
            for other in "+-":
                side = "\n".join(line[2:] for line in block.text.splitlines() if not line.startswith(other))
                compile("\n" * block.line + side, str(page), "exec")
        if block.language != "python":
            continue
        printed = io.StringIO()
        with redirect_stdout(printed):  # the padding gives tracebacks the page's own line numbers
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        expected = expected_output(block, following, markdown)
        if expected is not None:
            assert printed.getvalue() == expected, f"{page}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_code_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        run_page(page)


def test_a_failing_block_is_reported_at_its_own_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as info:
        run_page(page)
    assert (info.traceback[-1].path, info.traceback[-1].lineno + 1) == (page, 5)


def test_a_wrong_output_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        run_page(page)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_sentence_that_ends_in_a_number_begins_a_list(page):
    """A line such as "135. With" would: each number at the start of a line is 1, or follows the one before."""
    before = 0
    for number in map(int, re.findall(r"^ *(\d+)\. ", page.read_text(encoding="utf-8"), re.MULTILINE)):
        assert number in (1, before + 1)
        before = number


API = ROOT / "docs/api"
PUBLIC = sorted(name for name in mtopt.__all__ if name != "__version__")


def test_the_api_pages_document_every_public_name_once():
    pages = "".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    assert sorted(re.findall(r"^::: mtopt\.(\S+)$", pages, re.MULTILINE)) == PUBLIC


def test_the_index_of_the_api_says_of_every_public_name_when_to_use_it():
    rows = re.findall(
        r"^\| \[`(\w+)`\]\[mtopt\.\1\] \| (\S.*) \|$", (API / "index.md").read_text(encoding="utf-8"), re.M
    )
    assert sorted(name for name, _ in rows) == PUBLIC


@pytest.mark.parametrize("page", sorted(API.glob("*.md")), ids=lambda page: page.stem)
def test_what_an_api_page_shows_of_a_class_is_there(page):
    for name, options in re.findall(
        r"^::: mtopt\.(\w+)\n    options:\n((?: {6}.+\n)+)", page.read_text(encoding="utf-8"), re.M
    ):
        listed = [member for names in re.findall(r"members: \[(.*)\]", options) for member in names.split(", ")]
        assert [member for member in listed if not hasattr(getattr(mtopt, name), member)] == []


def test_the_chooser_is_what_its_script_draws_and_names_what_exists(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs/pictures")
    import chooser

    picture = (ROOT / "docs/pictures/chooser.svg").read_text(encoding="utf-8")
    assert picture == chooser.picture()
    assert len(chooser.STEPS) == 5
    names = set(re.findall(r'class="code">([A-Za-z_]+)<', picture))
    assert {"conflict_report", "UPGrad", "GradDrop"} <= names <= set(mtopt.__all__)


def test_what_a_method_says_of_its_kind_is_where_the_api_has_it():
    kinds = {"weightings": mtopt.LossWeighting, "gramian": mtopt.GramianTransform, "rows": mtopt.RowTransform}
    for page, kind in kinds.items():
        names = re.findall(r"^::: mtopt\.(\w+)$", (API / f"{page}.md").read_text(encoding="utf-8"), re.M)
        assert all(issubclass(getattr(mtopt, name), kind) for name in names), page


def test_the_readme_has_both_commands_and_ci_runs_the_second():
    bash = [block.text for block in blocks(PAGES[0].read_text(encoding="utf-8")) if block.language == "bash"]
    assert bash == [f"{DEMO_COMMAND}\n", f"{TEST_COMMAND}\n"]
    assert TEST_COMMAND in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_table_of_properties_has_every_method_and_its_properties(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import properties

    rows = [line for line in properties.tables().splitlines() if line.startswith("| [")]
    cells = {row[0].split("`")[1]: row for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in rows)}
    assert set(cells) == {type(make()).__name__ for make in METHODS.values()}
    assert all(len(row) == len(properties.HEADER) for row in cells.values())
    assert cells["GradDrop"][1:] == ["yes", "", "yes", "", "", "", "3 g"]
    assert cells["MGDA"][1:] == ["", "", "yes", "", "yes", "yes", "1 g"]
    assert cells["GradNorm"][1:] == ["", "yes", "", "yes", "yes", "", "3 g"]
    assert cells["NashMTL"][1:] == ["", "", "", "", "yes", "yes", "length 1"]
    assert cells["RLW"][1:] == ["yes", "", "yes", "", "", "", "3 g"]
