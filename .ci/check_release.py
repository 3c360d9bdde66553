"""Refuses what is not ready to be published: `python .ci/check_release.py v0.2.0 dist/*`. It builds nothing.

The tag, the version, CITATION.cff and the changelog must agree, and the archives must have the addresses.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "example.org"


def wrong_files(tag: str, root: Path = ROOT) -> Iterator[str]:
    """What does not go with the tag, among the files of the repository."""
    version, citation, changelog = (
        (root / name).read_text(encoding="utf-8") for name in ("mtopt/_version.py", "CITATION.cff", "CHANGELOG.md")
    )
    number = tag.removeprefix("v")
    if f'__version__ = "{number}"\n' not in version or not tag.startswith("v"):
        yield f"the tag {tag} is not v and the version of mtopt/_version.py"
    if f"\nversion: {number}\n" not in citation:
        yield f"CITATION.cff is not of version {number}"
    sections = dict(re.findall(r"^## \[(\S+)\](.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    date = re.match(r" - (\d{4}-\d{2}-\d{2})\n", sections.get(number, ""))
    if date is None or "\n- " not in sections[number]:
        yield f"CHANGELOG.md has no dated section `## [{number}] - YYYY-MM-DD` with entries"
    elif f'\ndate-released: "{date[1]}"\n' not in citation:
        yield f"CITATION.cff is not of {date[1]}, the date in CHANGELOG.md"
    if "\n- " in sections.get("Unreleased", ""):
        yield "CHANGELOG.md has entries under Unreleased: move them to the version"


def wrong_archive(path: Path) -> Iterator[str]:
    """What the metadata of a built archive lacks."""
    metadata = metadata_of(path)
    if "\nProject-URL: " not in metadata:
        yield f"{path.name} has no addresses: set MTOPT_REPO_URL and MTOPT_SITE_URL before it is built"
    if PLACEHOLDER in metadata:
        yield f"{path.name} has the placeholder {PLACEHOLDER} for an address"


def metadata_of(path: Path) -> str:
    """The metadata of a wheel, or of a source archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
            return wheel.read(name).decode()
    with tarfile.open(path) as source:
        (name,) = (name for name in source.getnames() if name.count("/") == 1 and name.endswith("/PKG-INFO"))
        member = source.extractfile(name)
        assert member is not None
        return member.read().decode()


def main(tag: str, *archives: str) -> str | None:
    """The reasons not to publish, a line each, or None."""
    wrong = [*wrong_files(tag), *(reason for name in archives for reason in wrong_archive(Path(name)))]
    return "\n".join(wrong) or None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
