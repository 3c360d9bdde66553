"""The generated blocks of a page whose prose is written by hand: finds and replaces them. Knows no results.

A block has its name in a comment before it, and ends with another; both are on lines of their own:

    <!-- table: peers -->

    | method | score |

    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

END = "<!-- end -->"
BLOCK = re.compile(rf"^<!-- table: (?P<name>[^\n]+) -->\n(?P<text>.*?)^{END}$", re.MULTILINE | re.DOTALL)
MARK = re.compile(rf"^(<!-- table: .+ -->|{END})$", re.MULTILINE)


def blocks_of(page: str) -> dict[str, str]:
    """The text of each block of a page, by name.

    Raises:
        ValueError: If a block has no end or no beginning, or if two have the same name.
    """
    found: dict[str, str] = {}
    for block in BLOCK.finditer(page):
        if block["name"] in found:
            raise ValueError(f"Block names must differ, but the page has two called {block['name']!r}.")
        found[block["name"]] = block["text"].strip()
    if len(MARK.findall(page)) != 2 * len(found):
        raise ValueError(f"Each `<!-- table: NAME -->` must have one `{END}` behind it, on lines of their own.")
    return found


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """The page with these blocks in place of its own; all that lies outside of them stays.

    Raises:
        ValueError: If the page lacks a block that is given, or has one that is not.
    """
    known = blocks_of(page)
    unplaced = ", ".join(name for name in blocks if name not in known)
    ungiven = ", ".join(name for name in known if name not in blocks)
    if unplaced:
        raise ValueError(f"The page has no place for: {unplaced}. Add it, between `<!-- table: NAME -->` and `{END}`.")
    if ungiven:
        raise ValueError(f"The results do not give these blocks of the page: {ungiven}. Measure them first.")
    return BLOCK.sub(lambda block: f"<!-- table: {block['name']} -->\n\n{blocks[block['name']]}\n\n{END}", page)


def fill(path: Path, blocks: Mapping[str, str]) -> None:
    """Put the blocks into the page of a file; it stays as it is where one does not fit."""
    path.write_text(filled(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
