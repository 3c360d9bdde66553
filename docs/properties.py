"""Writes the table of the methods' properties when the site is built: from the classes, so that it cannot go stale."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

import mtopt
from mtopt._combine.combination import Held
from mtopt._combine.pipeline import Pipeline
from mtopt._draws import Draws
from mtopt._transform import Losses, Site, Transform

MARK = "<!-- the table of properties -->"
HEADER = ("method", "random", "state", "scales", "losses", "rows", "harmless", "3 × g")
KINDS = {
    mtopt.LossWeighting: "Loss weightings",
    mtopt.GramianTransform: "From the Gramian",
    mtopt.RowTransform: "Coordinate by coordinate",
}


NEEDED: dict[type[Transform], tuple[Any, ...]] = {mtopt.ConstantWeights: (1.0,), mtopt.CRMOGM: (mtopt.MGDA(),)}
"""What a method cannot be made without."""


class Properties(Extension):
    """What mkdocs.yml names: an extension of Python-Markdown, since MkDocs and Zensical both run those."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.preprocessors.register(_Tables(md), "properties", priority=28)  # before comments are taken for HTML


class _Tables(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return [new for line in lines for new in (tables().split("\n") if line == MARK else [line])]


def tables() -> str:
    """One for each kind."""
    return "\n\n".join(f"**{title}**\n\n{_table(kind)}" for kind, title in KINDS.items())


def _table(kind: type[Transform]) -> str:
    rows = [HEADER, ("---",) * len(HEADER), *(_row(method) for method in _methods(kind))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _methods(kind: type[Transform]) -> Iterator[Transform]:
    """Every public method of a kind, with its default settings."""
    for name in sorted(mtopt.__all__, key=str.lower):
        method = getattr(mtopt, name)
        if isinstance(method, type) and issubclass(method, kind) and method not in (kind, mtopt.Every):
            yield usual(method)


def usual(method: type[Transform]) -> Transform:
    """One with its default settings."""
    return method(*copy.deepcopy(NEEDED.get(method, ())))


def _row(method: Transform) -> tuple[str, ...]:
    name = type(method).__name__
    state = {name for name, part in vars(method).items() if hasattr(part, "state_dict") and not isinstance(part, Draws)}
    random = any(isinstance(part, Draws) for part in vars(method).values())
    weighting = isinstance(method, mtopt.LossWeighting)
    facts = (
        random,
        bool(state),
        method.scale_equivariant,
        method.uses_values,
        not weighting and isinstance(_combination(method), Held),
        method.non_conflicting,
    )
    return (f"[`{name}`][mtopt.{name}]", *("yes" if fact else "" for fact in facts), _size(method))


def _losses(n: int) -> Losses:
    return Losses(tuple(range(n)), n, None, tuple(torch.ones(n)))


def _combination(method: Transform) -> Any:
    return Pipeline(method).combination(_losses(3), [Site(_losses(3))])


def _size(method: Transform) -> str:
    """What becomes of three equal gradients of length 5: so many times one of them, or always the same length."""
    lengths = []
    for length in (5.0, 10.0):
        fresh = copy.deepcopy(method)
        weights = Pipeline(fresh).weights(_losses(3))
        if weights is None:
            combination = _combination(fresh)
            for loss in range(3):
                combination.add(0, loss, torch.tensor([length]))
            lengths.append(float(combination.result()[0]))
        else:
            lengths.append(float(weights.sum()) * length)
    if abs(lengths[1] - 2 * lengths[0]) < 1e-3:
        return f"{lengths[0] / 5:.3g} g"
    return f"length {lengths[0]:.3g}" if abs(lengths[1] - lengths[0]) < 1e-3 else "neither"


if __name__ == "__main__":
    print(tables())
