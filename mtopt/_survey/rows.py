"""One batch's rows at any place of its graph, with nothing changed. Judges nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .._combine.conflict import Conflict
from .._combine.products import PART
from .._graph.alive import check_alive
from .._graph.batching import Batching
from .._graph.loss_graph import LossGraph, Meeting, gradient_edge
from .._graph.losses import cotangents
from .._graph.rows import rows_at as rows_at_sites
from .._graph.rows import rows_below
from .._graph.sites import final_sites
from .._graph.supports import Edge
from .._torch import AccumulateGrad, operator_of, variable_of
from .._transform import Losses


@dataclass(frozen=True)
class Batch:
    """The losses of one batch, and the graph below them.

    Attributes:
        starts: The gradient that each loss starts with.
        meetings: All of the frontier.
        sites: Where all losses have met, which is what `at="activations"` acts on.
    """

    losses: Losses
    graph: LossGraph
    starts: Sequence[Tensor]
    meetings: Sequence[Meeting]
    sites: Sequence[Meeting]

    @property
    def device(self) -> torch.device:
        return self.starts[0].device

    @property
    def names(self) -> list[str]:
        return [self.losses.label(i) for i in range(len(self.losses))]

    @property
    def several(self) -> list[Meeting]:
        """Where `at="activations"` combines rows; or would, if the losses had a coordinate in common there."""
        return list(self.sites) or [meeting for meeting in self.meetings if len(meeting.positions) > 1]


def batch_of(losses: Losses, roots: Sequence[Edge]) -> Batch:
    """What is known of the losses before any gradient."""
    graph = LossGraph(roots)
    graph.look_through_parts()
    check_alive(graph)
    sites, _ = final_sites(graph, is_parameter)
    return Batch(losses, graph, cotangents(graph.roots, None), graph.frontier(parting=True), sites)


@dataclass
class RowsAt:
    """The rows at one tensor, each with the position of its loss: dense, and complex numbers as two real ones.

    Attributes:
        plain: Whether they were dense and real, as a combination needs them.
    """

    rows: list[Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    plain: bool = True

    def add(self, position: int, row: Tensor) -> None:
        self.plain = self.plain and row.layout is torch.strided and not row.is_complex()
        dense = row.to_dense()
        self.rows.append(torch.view_as_real(dense.resolve_conj()) if row.is_complex() else dense)
        self.positions.append(position)


@dataclass(frozen=True)
class ConflictAt:
    """How the rows agree at a module's shared parameters, or at an activation.

    Attributes:
        name: Of the module, as in `model.named_modules()`; or of the operation that made the activation.
        shape: Of the activation; `None` for a module.
        size: How many numbers there are.
        losses: Those that come there.
        conflict: How they agree.
    """

    name: str
    shape: tuple[int, ...] | None
    size: int
    losses: tuple[str, ...]
    conflict: Conflict

    def to_dict(self) -> dict[str, Any]:
        shape = None if self.shape is None else list(self.shape)
        own = {"name": self.name, "shape": shape, "size": self.size, "losses": list(self.losses)}
        return own | self.conflict.to_dict()


def conflict_at(batch: Batch, name: str, sites: Sequence[RowsAt], shape: tuple[int, ...] | None = None) -> ConflictAt:
    """The conflict of the rows at some tensors; part by part, so that no copy of all of them is made."""
    conflict = Conflict(batch.names)
    for at in sites:
        flats = [row.reshape(-1) for row in at.rows]
        for start in range(0, flats[0].numel() if flats else 0, PART):
            conflict.add([flat[start : start + PART] for flat in flats], at.positions)
    losses = sorted({position for at in sites for position in at.positions})
    size = sum(at.rows[0].numel() for at in sites if at.rows)
    return ConflictAt(name, shape, size, tuple(batch.names[loss] for loss in losses), conflict)


def made_by(meeting: Meeting) -> str:
    """The operation that made an activation."""
    return operator_of(meeting.edge[0])


def is_leaf(edge: Edge) -> bool:
    return type(edge[0]) is AccumulateGrad


def is_parameter(leaf: Node) -> bool:
    """Whether a leaf is trained, unlike an input that requires grad."""
    return isinstance(variable_of(leaf), nn.Parameter)


def plain_backward(batch: Batch) -> None:
    """What `sum(losses).backward()` computes, thrown away."""
    torch.autograd.grad(
        [gradient_edge(origin) for origin in batch.graph.origins],
        [gradient_edge((leaf, 0)) for leaf in batch.graph.leaves()],
        batch.starts,
        retain_graph=True,
        allow_unused=True,
    )


def rows_at(batch: Batch, edges: Sequence[Edge], batching: Batching) -> list[RowsAt]:
    """The rows at some edges; none where one loss alone comes."""
    found = [RowsAt() for _ in edges]
    for loss, rows in rows_below(batch.graph, batch.starts, edges, batching, retain_graph=True):
        for (node, _), at, row in zip(edges, found, rows, strict=True):
            if row is not None and batch.graph.shared(node):
                at.add(loss, row)
    return found


def rows_at_meetings(batch: Batch) -> list[RowsAt]:
    """What each loss brings by itself to where several meet, which is what `at="activations"` combines."""
    found = [RowsAt() for _ in batch.several]
    for position, row in rows_at_sites(batch.graph, batch.starts, batch.several, Batching(1)):
        for at, part in zip(found, row, strict=True):
            if part is not None:
                at.add(position, part)
    return found


def rows_thrown_away(batch: Batch, edges: Sequence[Edge], batching: Batching) -> None:
    """For the clock: to hold all rows takes time that a step need not spend."""
    for _ in rows_below(batch.graph, batch.starts, edges, batching, retain_graph=True):
        pass


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards the random state and the model's buffers are as before: a checkpointed region computes them anew."""
    cuda = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=sorted(cuda)):
            yield
    finally:
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.data.copy_(before)  # .data: autograd may hold the buffer, whose version shall stay
