"""What a look at the whole graph has shown, so that the next backward need not look at all of it. No gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .._combine.pipeline import Pipeline
from .._graph.loss_graph import LossGraph
from .._graph.recall import RecalledRows, RecalledTop
from .._torch import has_post_accumulate_hooks, tree_leaves, variable_of
from .explanation import Explanation

LOOKS = 2  # at the whole graph before one at its top may do
EVERY = 64  # backward passes: so often the whole graph is looked at anew
FORMS = 64  # are remembered
LARGE = 2**16  # numbers in the transforms' state: from there on no copy of it is kept during a backward pass


@dataclass
class RowsAgain:
    """How rows at parameters are taken again, target by target.

    Attributes:
        graph: As it was.
        numbers: Of the parameters in the optimizer.
        owners: The losses that reach each.
        alone: Whether each counts where one loss alone reaches it.
        how: In words.
    """

    graph: RecalledRows
    numbers: list[int | None]
    owners: Sequence[Sequence[int]]
    alone: Sequence[bool]
    how: str


@dataclass
class Known:
    """What is known of the graphs of one form: with the same losses, which end in the same operations.

    Attributes:
        shared: How many parameters several losses reach.
        exclusive: How many one alone reaches.
        heads: Whether one of these stands beside no shared one; `None` as long as nobody has asked.
        looks: How often the whole graph was looked at.
        since: Backwards since the last look.
        plain: Whether the graph can be walked from the top, and what a backward pass changes can be taken back: in the
            optimizer's parameters, and in inputs that had no `.grad`.
        small: Whether the transforms have a state that can be copied in each backward pass.
        top: The top of the graph, where the sites were found by it alone.
        rows: The whole graph, where each loss is taken by one pass to the parameters.
        tries: How often that could not be kept.
        explained: What was said of it.
        of: What it was said of.
    """

    shared: int = 0
    exclusive: int = 0
    heads: bool | None = None
    looks: int = 0
    since: int = 0
    plain: bool = False
    small: bool = False
    top: RecalledTop | None = None
    rows: RowsAgain | None = None
    tries: int = 0
    explained: Explanation | None = None
    of: object = None

    def suffices(self, parameters: Sequence[Tensor]) -> bool:
        """Whether nothing more is needed of the whole graph: what this backward pass does can be taken back."""
        self.since += 1
        return (
            self.plain
            and self.small
            and self.looks >= LOOKS
            and self.since < EVERY
            and all(parameter.grad is None for parameter in parameters)
        )

    def learn(self, graph: LossGraph, parameters: Sequence[Tensor], pipeline: Pipeline) -> None:
        """Take what the whole graph shows, before its backward pass; once, how large the transforms' state is."""
        own = set(map(id, parameters))
        if self.looks == LOOKS - 1:
            self.small = _is_small(pipeline)
        self.plain = graph.ordered and all(
            not has_post_accumulate_hooks(leaf)
            and (id(leaf) in own or (leaf.grad is None and not isinstance(leaf, nn.Parameter)))
            for leaf in map(variable_of, graph.leaves())
        )
        shared = [graph.shared(leaf) for leaf in graph.leaves()]
        self.shared, self.exclusive = sum(shared), len(shared) - sum(shared)
        self.looks += 1
        self.since = 0
        self.top = self.rows = self.explained = self.heads = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "top": None, "rows": None}  # types of nodes cannot be pickled


def _is_small(pipeline: Pipeline) -> bool:
    try:
        parts = tree_leaves(pipeline.state())
    except Exception:  # a transform of the user's may have none
        return False
    return sum(part.numel() for part in parts if isinstance(part, Tensor)) <= LARGE


def known_of(form: object, forms: dict[object, Known]) -> Known:
    """What is known of a form, among those that are remembered."""
    if form not in forms and len(forms) >= FORMS:
        forms.clear()
    return forms.setdefault(form, Known())
