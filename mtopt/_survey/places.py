"""Where to combine the gradients: rules on where the losses meet, and the module to name. Computes no cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from .._graph.batching import Batching
from .._graph.loss_graph import LossGraph, Meeting
from .._graph.rows import rows_below
from .._graph.supports import Edge
from .modules import Modules
from .rows import Batch, RowsAt, is_leaf, made_by


@dataclass(frozen=True)
class Place:
    """The best place for `at=`.

    Attributes:
        at: `"activations"`, `"parameters"` or `"module"`.
        module: The name of the module for `at=module`, as in `model.named_modules()`; for another `at` one that may be
            named instead; `None` where none will do. The forward pass must call it as a whole, which the graph does not
            show.
        marginalize: What GradDrop needs there; `None` is its default.
        code: What to write.
        reason: Why, in a sentence or two.
    """

    at: str
    module: str | None
    marginalize: int | None
    code: str
    reason: str


class Overlap:
    """Whether two rows are not zero at the same coordinate."""

    def __init__(self) -> None:
        self.found = False
        self._rows = 0
        self._seen: Tensor | None = None

    def add(self, row: Tensor) -> None:
        here = row != 0
        if here.any():
            self.found = self.found or (self._seen is not None and bool((self._seen & here).any()))
            self._seen = here if self._seen is None else self._seen | here
            self._rows += 1

    @property
    def apart(self) -> bool:
        """Whether there are several rows, and no coordinate has two: with less than two rows nobody knows."""
        return self._rows > 1 and not self.found


def overlap_of(at: RowsAt) -> Overlap:
    overlap = Overlap()
    for row in at.rows:
        overlap.add(row)
    return overlap


def best_place(batch: Batch, modules: Modules, arrived: Sequence[RowsAt]) -> tuple[Place, Edge | None]:
    """The best place by these rules, the first that fits, and for a module an edge like its output.

    1. No activation is reached by several losses: at the parameters.
    2. Where losses meet, some coordinate has two gradients: the default, at the activations. (A single number is not
       worth a decision.)
    3. They read different examples there: at the module that makes it, one decision for the batch (`marginalize=0`).
    4. They read other parts apart, such as columns: at the last module on whose output they are no longer apart.
    5. Otherwise at the parameters.

    Args:
        batch: The losses and their graph.
        modules: Those that can be named.
        arrived: The rows at `batch.several`.
    """
    inner = [meeting for meeting in batch.meetings if not is_leaf(meeting.edge)]
    everywhere = {p for meeting in inner for p in batch.graph.positions_entering(meeting)} == set(
        range(len(batch.losses))
    )
    if not inner:
        return _at_parameters(modules), None
    overlaps = [overlap_of(at) for at in arrived]
    several = [meeting for meeting in batch.several if not is_leaf(meeting.edge)]
    if any(
        not overlap.apart and not is_leaf(meeting.edge) and prod(meeting.shape) > 1
        for overlap, meeting in zip(overlaps, batch.several, strict=True)
    ):
        return _at_activations(batch, several, modules if everywhere else None), None
    if everywhere:
        found = _at_module(batch, several or _behind(batch.graph, inner), modules)
        if found is not None:
            return found
    reason = (
        "The losses meet, but have no gradient at the same coordinate of any activation that can be named, so the "
        "parameters are what is left. A MultiLossLayer may stand where no module does."
    )
    return Place("parameters", None, None, _code('"parameters"'), reason), None


def _at_parameters(modules: Modules) -> Place:
    name = modules.ending_with_last()
    reason = "Each loss has a forward pass of its own, so the losses meet at the parameters and nowhere else."
    if name is not None:
        reason += (
            f" (For one decision per feature instead of per weight: GradDrop(marginalize=0), at={modules.written(name)}"
            f", if it is called once per loss.)"
        )
    return Place("parameters", name, None, _code('"parameters"'), reason)


def _at_activations(batch: Batch, several: Sequence[Meeting], modules: Modules | None) -> Place:
    name = None if modules is None else modules.ending_with_last()
    if (
        name is not None
        and batch.graph.states is not None
        and any(batch.graph.disjoint(edge) for edge in batch.graph.states)
    ):  # its output may be what the losses are cut out of
        name = None
    named = None if modules is None or name is None else f"at={modules.written(name)}"
    here = {position for meeting in several for position in batch.graph.positions_entering(meeting)}
    others = [label for loss, label in enumerate(batch.names) if loss not in here]
    who = ", ".join(batch.names[loss] for loss in sorted(here)) if others else "All losses"
    made = ", ".join(f"{made_by(meeting)} {meeting.shape}" for meeting in several[:3])
    if len(several) == 1:
        reason = f"{who} meet at one activation, the output of {made}: the default decides there, in one backward pass."
        use = "The module next to it"
    else:
        made += ", ..." if len(several) > 3 else ""
        reason = (
            f"{who} meet at {len(several)} activations ({made}): the default decides at each, in one backward pass."
        )
        use = "To decide at the output of one module instead, and add up what goes around it"
    if others:
        wider = named or 'at="parameters"'
        reason += f" {', '.join(others)}: added further down, as in the plain sum; {wider} decides among all."
    elif named is not None:
        reason += f" {use}: {named}."
    return Place("activations", name, None, _code('"activations"'), reason)


def _at_module(batch: Batch, meetings: Sequence[Meeting], modules: Modules) -> tuple[Place, Edge] | None:
    """Rules 3 and 4, from one more pass per loss."""
    places = [meeting.edge for meeting in meetings]
    funnels = [edge for edge in modules.funnels() if edge not in places]
    edges = places + funnels
    overlaps, by_feature = [Overlap() for _ in edges], [Overlap() for _ in edges]
    for _, rows in rows_below(batch.graph, batch.starts, edges, Batching(1), retain_graph=True):
        for row, overlap, marginal in zip(rows, overlaps, by_feature, strict=True):
            if row is not None:
                overlap.add(row)
                if row.ndim > 1:
                    marginal.add((row != 0).any(0))
    for edge, overlap, marginal in zip(places, overlaps, by_feature, strict=False):
        if overlap.apart and marginal.found:
            name = modules.ending_with_last(edge)
            if name is not None:
                return _for_whole_batch(modules.written(name), name), edge
    for edge, overlap in zip(edges, overlaps, strict=True):
        name = modules.ending_with_last(edge)
        if overlap.found and name is not None and prod(Meeting(edge).shape) > 1:
            reason = (
                "Where the losses meet, each reads other numbers, or one is made of another: there is nothing to "
                "decide. This is the last module on whose output several losses have gradients at the same number."
            )
            return Place("module", name, None, _code(modules.written(name)), reason), edge
    return None


def _for_whole_batch(written: str, name: str) -> Place:
    reason = (
        "The losses meet, but each reads other examples of the batch, so no coordinate has two gradients. One decision "
        "per feature for the whole batch (marginalize=0) lets them meet."
    )
    return Place("module", name, 0, _code(written, "mtopt.GradDrop(marginalize=0), "), reason)


def _behind(graph: LossGraph, inner: Sequence[Meeting]) -> list[Meeting]:
    """Where the losses meet behind nodes that make a tensor of its own for each: a split, a vector of losses."""
    edges = {child: None for meeting in inner for child in graph.edges[meeting.edge[0]] if child[0] is not None}
    return list(graph.meetings_at(edge for edge in edges if not is_leaf(edge)).values())  # type: ignore[arg-type, misc]


def _code(at: str, transform: str = "") -> str:
    return f"mtopt.MultiLossOptimizer(optimizer, {transform}at={at})"
