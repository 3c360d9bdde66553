"""The project's addresses and its readme, for the metadata of the package. Every other field is in pyproject.toml.

The addresses come from the environment, which the workflows set from the repository's own variables. Without them the
package has none, and its readme is README.md as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"""(\]\(|\b(?:href|src|srcset)=")(?![a-z]+:|[#/])([^)\s"#]+)""")  # in Markdown, and in HTML


class Addresses(MetadataHookInterface):
    """What hatchling calls, since pyproject.toml names this file."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the dynamic fields."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository, site = (os.environ.get(f"MTOPT_{name}_URL", "").rstrip("/") for name in ("REPO", "SITE"))
        metadata["urls"] = {}
        if repository and site:
            version = metadata["version"]
            docs = f"{site}/{'.'.join(version.split('.')[:2])}"  # where the release workflow puts them
            readme = absolute(readme, docs, f"{repository}/blob/v{version}")
            metadata["urls"] = {
                "Documentation": f"{docs}/",
                "Changelog": f"{docs}/changelog/",
                "Source": repository,
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}


def absolute(readme: str, docs: str, files: str) -> str:
    """The readme with links that hold elsewhere: to pages and pictures of the site, or to files of the repository."""

    def link(match: re.Match[str]) -> str:
        opening, path = match.groups()
        if not path.startswith("docs/") or path.endswith((".py", "/")) or "." not in path:  # the site has no scripts
            return f"{opening}{files}/{path}"
        page = path.removeprefix("docs/").removesuffix("index.md")
        return f"{opening}{docs}/{re.sub(r'[.]md$', '/', page)}"

    return RELATIVE.sub(link, readme)
