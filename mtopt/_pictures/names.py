"""Names cut to a width. Nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence


def shortened(name: str, width: int, end: int | None = None) -> str:
    """Cut in the middle, with `end` characters behind the cut: the ends of a name tell most."""
    if len(name) <= width:
        return name
    if end is None:
        end = (width - 1) * 2 // 3
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def abbreviated(path: str, width: int) -> str:
    """A dotted path, with as few parents as it takes cut to a letter: `e.l.3.attention.query`; numbers stay."""
    *parents, last = path.split(".")
    for i, parent in enumerate(parents):
        if len(".".join([*parents, last])) > width and not parent.isdigit():
            parents[i] = parent[:1]
    return shortened(".".join([*parents, last]), width)


def clipped(names: Sequence[str], width: int) -> list[str]:
    """Cut so that they can still be told apart: no words with which all begin, then the end, the middle, a number."""
    if max(map(len, names)) > width:
        names = _without_common_beginning(names)
    for end in range(width):
        cut = [shortened(name, width, end) for name in names]
        if len(set(cut)) == len(set(names)):
            return cut
    numbers = [f" {i}" for i in range(len(names))]
    told = zip(names, numbers, strict=True)
    return [name if len(name) <= width else shortened(name + number, width, len(number)) for name, number in told]


def _without_common_beginning(names: Sequence[str]) -> list[str]:
    first, last = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    common = re.sub(r"[^\W_]+$", "", first[:n])
    return [name.removeprefix(common) for name in names]
