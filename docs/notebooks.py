"""Makes a notebook of each tutorial: `python docs/notebooks.py FOLDER`, or a hook of MkDocs. It runs no code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath

import jupytext
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbformat import NotebookNode
from nbformat.v4 import new_output

TUTORIALS = sorted((Path(__file__).parent / "tutorials").glob("*.md"))
INSTALL = re.compile(r"^```bash\n(pip install .*\n)```$", re.MULTILINE)
PRINTED = re.compile(r"\A```text\n(.*?)```\n*", re.DOTALL)  # right behind the code that prints it
ITSELF = re.compile(r"^\[This page as a notebook].*\n", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
REFERENCE = re.compile(r"\[([^]]+)]\[mtopt\.[\w.]+]")  # mkdocstrings resolves these


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What MkDocs calls: the site has notebooks/NAME.ipynb, and pages can link to them."""
    for page in TUTORIALS:
        text = nbformat.writes(notebook(page.read_text(encoding="utf-8"), config.site_url or ""))
        files.append(File.generated(config, f"notebooks/{page.stem}.ipynb", content=text))
    return files


def notebook(page: str, site: str) -> NotebookNode:
    """A tutorial as a notebook, whose links lead to the site."""
    made = jupytext.reads(INSTALL.sub(r"```python\n%\1```", ITSELF.sub("", page)), fmt="md")
    made.cells = list(_with_outputs(made.cells))
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number}"  # not a random one: the same page makes the same file
        if cell.cell_type == "markdown":
            cell.source = REFERENCE.sub(r"\1", LINK.sub(lambda link: f"]({_address(link[1], site)}", cell.source))
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return made


def _with_outputs(cells: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The cells, where the text that follows code has become its output."""
    code = None
    for cell in cells:
        if code is not None and (printed := PRINTED.match(cell.source)):
            code.outputs = [new_output("stream", name="stdout", text=printed[1])]
            cell.source = cell.source[printed.end() :]
        code = cell if cell.cell_type == "code" else None
        if cell.source:
            yield cell


def _address(path: str, site: str) -> str:
    """Where the site has what a tutorial links to."""
    page = normpath(f"tutorials/{path}").removesuffix("index.md")
    return f"{site.rstrip('/')}/{re.sub(r'[.]md$', '/', page)}"


def main(folder: Path, site: str = "") -> None:
    """Write the notebooks into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in TUTORIALS:
        nbformat.write(notebook(page.read_text(encoding="utf-8"), site), folder / f"{page.stem}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
