"""Names cut to a width. Nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence


def shortened(name: str, width: int) -> str:
    """Cut in the middle: the ends of a name tell most."""
    if len(name) <= width:
        return name
    end = (width - 1) * 2 // 3
    return f"{name[: width - 1 - end]}…{name[len(name) - end :]}"


def clipped(names: Sequence[str], width: int) -> list[str]:
    """Cut at the end, and without the words with which all begin."""
    first, last = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    common = re.sub(r"[^\W_]+$", "", first[:n])
    rest = [name[len(common) :] for name in names]
    return [name if len(name) <= width else f"{name[: width - 1]}…" for name in rest]
