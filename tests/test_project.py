"""The project's files: they agree with the code, and with each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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


def test_every_supported_python_meets_the_lowest_torch_that_it_can_have_and_the_newest():
    matrix = yaml.safe_load(text(".github/workflows/tests.yml"))["jobs"]["tests"]["strategy"]["matrix"]
    minors = [int(version.removeprefix("3.")) for version in matrix["python"]]
    assert all(later == minor + 1 for minor, later in pairwise(minors))
    lowest, newest = matrix["torch"]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    assert PROJECT["project"]["dependencies"] == [f"torch{newest}"]
    assert lowest == newest.replace(">=", "==") + ".*"
    assert matrix["exclude"] == [{"python": "3.14", "torch": lowest}]


def test_linters_have_one_version_each():
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    pinned = {name for name in [*extras["test"], *groups["lint"]] if name.startswith(("ruff", "mypy"))}
    assert all("==" in name for name in pinned)
    assert len(pinned) == 2


def test_the_hooks_of_a_commit_run_what_ci_runs():
    hooks = [hook for repo in yaml.safe_load(text(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert all(f"\n{' '.join(hook['entry'].split()[:2])}" in text(".ci/run").replace('" ', '"\n') for hook in hooks)


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
    """The package's own modules that a module imports: also inside functions, and for the type checker alone."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {base}
    return found & MODULES.keys()


def place(module: str, order: list[str]) -> int:
    """Where the reading order has a module, or else its room."""
    path = MODULES[module].relative_to(ROOT / "mtopt")
    return order.index(path.as_posix() if len(path.parts) == 1 else f"{path.parts[0]}/")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_is_read_before_it(module):
    order = re.findall(r"`([\w/]+(?:\.py|/))`", section("Reading order"))
    assert all(place(other, order) <= place(module, order) for other in imported(module))


def test_no_modules_import_each_other_in_a_circle():
    waiting = {module: imported(module) - {module} for module in MODULES}
    while ready := {module for module, needed in waiting.items() if not needed}:
        waiting = {module: needed - ready for module, needed in waiting.items() if module not in ready}
    assert not waiting


@pytest.mark.parametrize("room", ["_graph", "_combine", "_backward"])
def test_inside_a_room_the_order_is_that_of_the_map_too(room):
    text = section("Reading order").replace("\n", " ")
    order = re.findall(r"`(\w+)\.py`", re.split(rf"`{room}/`,", text)[1].split("; in")[0])
    modules = {module.rpartition(".")[2]: module for module in MODULES if module.startswith(f"mtopt.{room}.")}
    assert set(order) == set(modules)
    for name, module in modules.items():
        inside = {other.rpartition(".")[2] for other in imported(module) if other in modules.values()}
        assert all(order.index(other) < order.index(name) for other in inside), name


# -- the border --------------------------------------------------------------------------------------------------------


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(mtopt) == sorted(mtopt.__all__)
    assert not [name for name in vars(mtopt) if not name.startswith("_") and name not in mtopt.__all__]
    assert all(hasattr(mtopt, name) for name in mtopt.__all__)


def test_every_module_is_private():
    folders = {part for path in MODULES.values() for part in path.relative_to(ROOT / "mtopt").parts[:1]}
    assert [name for name in folders if not name.startswith("_")] == []


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'mtopt' has no attribute 'Gradrop'"):
        _ = mtopt.Gradrop


LATER = ("_comparison", "_survey", "_pictures", "_command", "_demo")  # rooms
SLOW = ("scipy", "rich", "matplotlib", "sklearn", "torch._dynamo", "torch.distributed.tensor")


def test_import_loads_nothing_that_is_only_looked_at():
    code = "import sys, torch; before = set(sys.modules); import mtopt; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in loaded if name.startswith((*SLOW, *(f"mtopt.{room}" for room in LATER)))]


# A leading underscore, names of nodes, texts of errors: what only the gateway may know of torch.
UNDOCUMENTED = re.compile(
    r"torch\.(?:_C|_compile|_dynamo|_functorch|utils\._)|(?<![\w)\]])\w+(?:\(\w*\))?\._(?:raw_saved|saved|sequence_nr|input_metadata"
    r"|version|is_view|backward_cls|post_accumulate|static_graph|fsdp)\w*|Backward0|\w+FunctionBackward|_DDPSink"
    r"|ddp_weakref|\bleaf\.variable|second time|inplace operation|donated buffer|performance drop"
)


@pytest.mark.parametrize("module", [module for module in MODULES if module != "mtopt._torch"])
def test_only_the_gateway_knows_what_torch_does_not_document(module):
    code = ast.unparse(ast.parse(MODULES[module].read_text(encoding="utf-8")))  # without comments
    assert UNDOCUMENTED.findall(code) == []


def test_the_table_of_places_names_what_exists():
    names = re.findall(r"`([\w./-]+)`", section("Where is it?"))
    assert len(names) > 20
    for name in {name for name in names if "." in name or "/" in name}:
        assert (ROOT / name).exists() or (ROOT / "mtopt" / name).exists(), name
