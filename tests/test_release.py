"""A release: what its tag must agree with, what the package says of itself, and the tutorials as notebooks."""

from __future__ import annotations

import re
import runpy
import tarfile
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
import yaml
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import mtopt

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = runpy.run_path(str(ROOT / ".ci/check_release.py"))
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
TAG = f"v{mtopt.__version__}"
ADDRESSES = {"MTOPT_REPO_URL": "https://host.test/someone/mtopt", "MTOPT_SITE_URL": "https://pages.test/mtopt/"}


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8"))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """The files that a tag is compared with, to be changed."""
    for name in ("mtopt/_version.py", "CITATION.cff", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def test_the_files_agree_on_the_version_and_its_date():
    assert list(RELEASE["wrong_files"](TAG)) == []


@pytest.mark.parametrize("tag", ["v9.9.9", mtopt.__version__, "v"])
def test_a_tag_that_is_not_the_version_is_refused(tag):
    assert f"the tag {tag} is not v and the version of mtopt/_version.py" in list(RELEASE["wrong_files"](tag))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("CHANGELOG.md", f"## [{mtopt.__version__}] - ", "## [9.9.9] - ", "CHANGELOG.md has no dated section"),
        ("CHANGELOG.md", f"## [{mtopt.__version__}] - 20", f"## [{mtopt.__version__}] - x20", "no dated section"),
        ("CHANGELOG.md", "## [", "## [Unreleased]\n\n- New.\n\n## [", "entries under Unreleased"),
        ("CITATION.cff", f"version: {mtopt.__version__}", "version: 9.9.9", "CITATION.cff is not of version"),
        ("CITATION.cff", 'released: "', 'released: "1', "the date in CHANGELOG.md"),
    ],
)
def test_a_file_that_was_forgotten_is_refused(copy, name, old, new, said):
    text = (copy / name).read_text(encoding="utf-8")
    assert old in text
    (copy / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert said in "\n".join(RELEASE["wrong_files"](TAG, copy))


def archive(folder: Path, metadata: str, kind: str) -> Path:
    """A wheel or a source archive that has nothing but its metadata."""
    if kind == "wheel":
        with zipfile.ZipFile(path := folder / "mtopt.whl", "w") as wheel:
            wheel.writestr("mtopt.dist-info/METADATA", metadata)
    else:
        member = tarfile.TarInfo("mtopt/PKG-INFO")
        member.size = len(metadata)
        with tarfile.open(path := folder / "mtopt.tar.gz", "w:gz") as source:
            source.addfile(member, BytesIO(metadata.encode()))
    return path


@pytest.mark.parametrize("kind", ["wheel", "source"])
@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("Name: mtopt\nProject-URL: Source, https://host.test\n", 0),
        ("Name: mtopt\n", 1),
        ("Name: mtopt\nProject-URL: Source, https://example.org/mtopt\n", 1),
    ],
)
def test_an_archive_without_addresses_or_with_the_placeholder_is_refused(tmp_path, kind, metadata, wrong):
    assert len(list(RELEASE["wrong_archive"](archive(tmp_path, metadata, kind)))) == wrong


# -- what the package says of itself -----------------------------------------------------------------------------------


def metadata(monkeypatch, addresses: dict[str, str]) -> dict:
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)
    for name, address in addresses.items():
        monkeypatch.setenv(name, address)
    return ProjectMetadata(str(ROOT), PluginManager()).core.config


def test_without_addresses_the_package_has_none_and_its_readme_is_the_file(monkeypatch):
    found = metadata(monkeypatch, {})
    assert found["urls"] == {}
    assert found["readme"]["text"] == (ROOT / "README.md").read_text(encoding="utf-8")


def test_addresses_come_from_the_environment_and_nowhere_else(monkeypatch):
    urls = metadata(monkeypatch, ADDRESSES)["urls"]
    assert urls["Source"] == ADDRESSES["MTOPT_REPO_URL"]
    assert urls["Changelog"].startswith(ADDRESSES["MTOPT_SITE_URL"])
    assert "://" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_link_of_a_published_readme_has_a_host_and_leads_to_what_exists(monkeypatch):
    links = re.findall(
        r'(?:\]\(|\b(?:href|src|srcset)=")([^)\s"]+)', metadata(monkeypatch, ADDRESSES)["readme"]["text"]
    )
    assert links
    assert [link for link in links if not re.match(r"https?://|#", link)] == []
    minor = mtopt.__version__.rpartition(".")[0]
    for page in {link.partition("#")[0] for link in links if link.startswith(ADDRESSES["MTOPT_SITE_URL"])}:
        path = page.removeprefix(f"{ADDRESSES['MTOPT_SITE_URL']}{minor}/")
        assert (ROOT / "docs" / (f"{path[:-1] or 'index'}.md" if path.endswith("/") or not path else path)).exists(), (
            page
        )


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("docs/index.md", "SITE/"),
        ("docs/recipes.md#use-a-trainer", "SITE/recipes/#use-a-trainer"),
        ("docs/api/index.md", "SITE/api/"),
        ("docs/pictures/a.svg", "SITE/pictures/a.svg"),
        ("docs/examples/ddp.py", "REPO/docs/examples/ddp.py"),
        ("docs/examples", "REPO/docs/examples"),
        ("CONTRIBUTING.md", "REPO/CONTRIBUTING.md"),
        ("https://elsewhere.test/docs/a.md", "https://elsewhere.test/docs/a.md"),
        ("#install", "#install"),
    ],
)
def test_pages_and_pictures_are_on_the_site_and_the_rest_in_the_repository(path, address):
    absolute = runpy.run_path(str(ROOT / ".ci/metadata.py"))["absolute"]
    assert absolute(f"[a]({path})", "SITE", "REPO") == f"[a]({address})"
    assert absolute(f'<img src="{path}">', "SITE", "REPO") == f'<img src="{address}">'


def test_the_package_names_the_versions_of_python_that_its_tests_run_on():
    named = re.findall(r"Python :: (3\.\d+)'", str(PROJECT["classifiers"]))
    assert named == workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]["python"]


# -- how it is published -----------------------------------------------------------------------------------------------


def test_the_site_and_the_package_get_their_addresses_from_the_repository():
    assert workflow("release")["env"] == workflow("pages")["env"]
    assert set(workflow("pages")["env"]) == ADDRESSES.keys()
    assert all("${{ " in address and "github." in address for address in workflow("pages")["env"].values())


def test_the_release_says_that_no_host_has_run_it_yet():
    assert "Unproven until it has run" in (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")


def test_nothing_is_published_that_was_not_compared_built_and_tried():
    jobs = workflow("release")["jobs"]
    steps = [step.get("run", "") for step in jobs["package"]["steps"]]
    checks = [n for n, step in enumerate(steps) if "check_release.py" in step]
    assert checks[0] < steps.index(".ci/package dist") < checks[1]
    assert (jobs["publish"]["needs"], jobs["docs"]["needs"]) == ("package", "publish")


def test_only_the_job_that_publishes_may_ask_for_an_identity():
    jobs = workflow("release")["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_every_action_is_pinned(path):
    used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
    assert all(re.search(r"@(v\d+|release/v\d+|[0-9a-f]{40})$", action) for action in used)


@pytest.mark.parametrize("name", ["bug_report", "request"])
def test_a_form_asks_for_what_the_optimizer_says(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
    assert "optimizer.explain()" in str(form["body"])
    assert len({field["id"] for field in form["body"]}) == len(form["body"])


# -- the tutorials as notebooks ----------------------------------------------------------------------------------------


@pytest.fixture
def notebooks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import notebooks

    return notebooks


def code(page: str) -> list[str]:
    """The code of a page in its order: Python, and what is installed for it."""
    fences = re.findall(r"^```(python|bash)\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    return [f"%{text}" if language == "bash" else text for language, text in fences]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_has_the_code_of_its_page_in_order_and_what_it_prints(notebooks, path):
    page = path.read_text(encoding="utf-8")
    made = notebooks.notebook(page, "https://pages.test")
    nbformat.validate(made)
    cells = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [cell.source for cell in cells] == code(page)
    printed = re.findall(r"^```\n\n```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [cell.outputs[0].text for cell in cells if cell.outputs] == printed


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_link_of_a_notebook_leads_to_a_page(notebooks, path):
    made = notebooks.notebook(path.read_text(encoding="utf-8"), "https://pages.test/")
    text = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert "][mtopt." not in text
    assert "as a notebook" not in text
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        page = link.removeprefix("https://pages.test/")
        assert re.match("https?:", page) or (ROOT / f"docs/{page.rstrip('/') or 'index'}.md").exists(), link


def test_a_notebook_is_the_same_each_time_and_says_which_kernel_runs_it(notebooks, tmp_path):
    for folder in ("first", "second"):
        notebooks.main(tmp_path / folder)
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_text(encoding="utf-8") == (tmp_path / "second" / path.name).read_text(encoding="utf-8")
        assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"
    assert [path.stem for path in sorted((tmp_path / "first").iterdir())] == [path.stem for path in TUTORIALS]
