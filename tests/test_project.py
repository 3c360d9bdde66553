"""The project's files: they agree with the code, and with each other."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.util import resolve_name
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import mtopt

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOSTED = (".github/workflows/tests.yml", ".github/workflows/pages.yml", ".readthedocs.yaml")
BUILDERS = (".ci/run", "CONTRIBUTING.md", *HOSTED)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- one version, one paper --------------------------------------------------------------------------------------------


def test_the_newest_version_of_the_changelog_is_this_one():
    assert re.findall(r"^## \[(\d\S*)\]", text("CHANGELOG.md"), re.MULTILINE)[0] == mtopt.__version__


def test_the_citation_is_of_this_version_and_licence_and_of_the_paper():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert (citation["version"], citation["license"]) == (mtopt.__version__, PROJECT["project"]["license"])
    assert "arXiv:2010.06808" in [identifier["value"] for identifier in citation["preferred-citation"]["identifiers"]]


def test_readme_and_citation_cite_the_same_paper():
    paper = yaml.safe_load(text("CITATION.cff"))["preferred-citation"]
    bibtex = " ".join(text("README.md").split("```bibtex")[1].split("```")[0].split())
    assert " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]) in bibtex
    for field in ("title", "collection-title", "volume", "year"):
        assert f"= {{{paper[field]}}}" in bibtex


# -- hosting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTED)
def test_what_no_host_has_run_yet_says_so(name):
    assert yaml.safe_load(text(name))
    assert "Unproven until it has run" in text(name)


def test_every_supported_python_meets_the_lowest_and_the_newest_torch():
    matrix = yaml.safe_load(text(".github/workflows/tests.yml"))["jobs"]["tests"]["strategy"]["matrix"]
    minors = [int(version.removeprefix("3.")) for version in matrix["python"]]
    assert all(later == minor + 1 for minor, later in pairwise(minors))
    lowest, newest = matrix["torch"]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    assert PROJECT["project"]["dependencies"] == [f"torch{newest}"]
    assert lowest == newest.replace(">=", "==") + ".*"


@pytest.mark.parametrize("name", BUILDERS)
def test_the_site_is_never_built_with_the_option_that_switches_strictness_off(name):
    builds = re.findall(r"mkdocs build.*", text(name))
    assert not [build for build in builds if re.search(r"\s(-q|--quiet)\b", build)]
    assert all("--strict" in build for build in builds)


def test_the_source_archive_has_files_that_exist():
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name).exists(), name


# -- the map of the code -----------------------------------------------------------------------------------------------


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "mtopt").rglob("*.py"))
}


def section(title: str) -> str:
    return text("CONTRIBUTING.md").split(f"\n## {title}\n")[1].split("\n## ")[0]


def imported(module: str) -> set[str]:
    """The package's own modules that a module imports when it is loaded."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {base}
    return found & MODULES.keys()


def place(module: str, order: list[str]) -> int:
    """Where the reading order has a module, or else its folder."""
    path = MODULES[module].relative_to(ROOT / "mtopt")
    return order.index(path.as_posix() if path.as_posix() in order else f"{path.parent.as_posix()}/")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_is_read_before_it(module):
    order = re.findall(r"`([\w/]+(?:\.py|/))`", section("Reading order"))
    assert all(place(other, order) <= place(module, order) for other in imported(module))


def test_the_table_of_places_names_what_exists():
    names = re.findall(r"`([\w./-]+)`", section("Where is it?"))
    assert len(names) > 20
    for name in {name for name in names if "." in name or "/" in name}:
        assert (ROOT / name).exists() or (ROOT / "mtopt" / name).exists(), name
