"""Writes the table of the methods' properties when the site is built: from the classes, so that it cannot go stale."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

import mtopt
from mtopt.combine import Held
from mtopt.draws import Draws
from mtopt.methods.base import Losses, Site, Transform
from mtopt.pipeline import Pipeline

MARK = "<!-- the table of properties -->"
HEADER = (
    "method",
    "kind",
    "random",
    "keeps a state",
    "scale-equivariant",
    "reads the losses",
    "holds the rows",
    "harms no loss",
    "three equal gradients g",
)
KINDS = {mtopt.LossWeighting: "weighting", mtopt.GramianTransform: "Gramian", mtopt.RowTransform: "coordinates"}


def on_page_markdown(markdown: str, /, **_: Any) -> str:
    """The hook that MkDocs calls with a page's text."""
    return markdown.replace(MARK, table())


def table() -> str:
    rows = [HEADER, ("---",) * len(HEADER), *(_row(method) for method in methods())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def methods() -> Iterator[Transform]:
    """Every public method with its default settings, kind by kind."""
    for kind in KINDS:
        for name in sorted(mtopt.__all__, key=str.lower):
            method = getattr(mtopt, name)
            if isinstance(method, type) and issubclass(method, kind) and method is not kind:
                yield method(1.0) if method is mtopt.ConstantWeights else method()


def _row(method: Transform) -> tuple[str, ...]:
    name = type(method).__name__
    kind = next(words for kind, words in KINDS.items() if isinstance(method, kind))
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
    return (f"[`{name}`][mtopt.{name}]", kind, *("yes" if fact else "" for fact in facts), _size(method))


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
    print(table())
