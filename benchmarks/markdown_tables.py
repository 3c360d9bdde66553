"""Numbers and tables as a page shows them. Knows none of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

WITHIN = re.compile(r"(?<=\d) (?=ms|MB|±)|(?<=±) (?=\d)|(?<=<) (?=\d)|(?<=T) (?==)|(?<==) (?=\d)")
UNBROKEN = "\N{NO-BREAK SPACE}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = True) -> str:
    """A Markdown table that breaks no number from its unit; columns of numbers, all but the first, are set right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    lines = ("| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, rule, *rows))
    return "\n".join(WITHIN.sub(UNBROKEN, line) for line in lines)


def three(number: float) -> str:
    """With two digits behind the point, or three in all."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def in_units(number: float, unit: str) -> str:
    """As 41.0 kB or 2.00 GB."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"
