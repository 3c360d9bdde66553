"""What MkDocs runs before it builds: the site's own Markdown extensions, which no package has, and links to edit."""

from __future__ import annotations

from mathml import MathML
from mkdocs.config.defaults import MkDocsConfig
from properties import Properties


def on_config(config: MkDocsConfig) -> None:
    """MkDocs puts the folder of this file on the path while it is loaded, so `mkdocs` works as well as `python -m`."""
    config.markdown_extensions += [MathML(), Properties()]  # type: ignore[list-item]
    if config.repo_url:
        config.edit_uri = "edit/main/docs/"  # MkDocs would guess another branch, and warns of it where there is no URL
