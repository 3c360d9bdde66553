"""What a backward pass did, in words. Holds no tensor and no graph."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from .._transform import Transform

SHOWN = 8
WIDTH = 100
NEAR_PLAIN = (
    "this is one backward pass, as for the plain sum; what is added is arithmetic on the rows, which shows where "
    "the losses are many and the layers cheap"
)


@dataclass
class SiteExplained:
    """One place where rows were combined."""

    kind: str
    shape: tuple[int, ...]
    losses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}: losses {_listed(self.losses)}"


@dataclass
class Explanation:
    """One backward: how it was taken and why, what to do if it is slow, the losses, the sites, the parameters."""

    how: str
    why: str
    if_slow: str
    losses: tuple[str, ...] = ()
    sites: list[SiteExplained] = field(default_factory=list)
    shared: int = 0
    exclusive: int = 0
    batching: str = ""
    ranks: int = 1

    def __str__(self) -> str:
        return "\n".join(line for text in self._lines() for line in _wrapped(text))

    def _lines(self) -> Iterator[str]:
        yield f"losses: {_listed(self.losses)}"
        yield f"engine: {self.how}"
        yield f"  why: {self.why}"
        yield f"  if it is slow: {self.if_slow}"
        if self.batching:
            yield f"  per-loss gradients: {self.batching}"
        if self.ranks > 1:
            yield f"ranks: {self.ranks}, in agreement"
        if self.sites:
            numbers = sum(math.prod(site.shape) for site in self.sites)
            yield f"sites, where rows (one gradient per loss) are combined: {len(self.sites)}, {numbers:,} numbers"
            yield from (f"  {site}" for site in self.sites[:SHOWN])
            if len(self.sites) > SHOWN:
                yield f"  ... and {len(self.sites) - SHOWN} more"
        yield (
            f"parameters: {self.shared} shared by several losses get the combined gradient, "
            f"{self.exclusive} exclusive to one get its own"
        )


def transforms_explained(transforms: Sequence[Transform]) -> str:
    """Each transform and the first line of its docstring."""
    lines = ["transforms, in this order:"] if transforms else ["transforms: none, which is the plain sum of the losses"]
    for transform in transforms:
        first, _, _ = (inspect.getdoc(type(transform)) or "").partition("\n")
        lines += _wrapped(f"  {type(transform).__name__}: {first}".removesuffix(": "))
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _wrapped(text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    return wrap(text, WIDTH, subsequent_indent=f"{indent}    ", break_long_words=False, break_on_hyphens=False)
