"""Sentences as paragraphs of a page, and tables that do not break within a number. Knows nothing of what they say."""

from __future__ import annotations

import re
import textwrap

WIDTH = 120
WITHIN = re.compile(r"(?<=\d) (?=ms|MB|±)|(?<=±) (?=\d)|(?<=<) (?=\d)|(?<=T) (?==)|(?<==) (?=\d)")
UNBROKEN = "\N{NO-BREAK SPACE}"


def paragraph(*sentences: str) -> str:
    """Sentences, on lines of one length."""
    text = " ".join(" ".join(sentences).split())
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def with_whole_numbers(page: str) -> str:
    """The same page, whose tables do not break a number from its unit."""
    lines = (WITHIN.sub(UNBROKEN, line) if line.startswith("|") else line for line in page.split("\n"))
    return "\n".join(lines)
