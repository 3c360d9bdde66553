"""What a backward pass would cost, from its parts by the clock and the sizes of the rows. No advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .._combine.pipeline import Pipeline
from .._combine.products import PART
from .._dtypes import wide_dtype
from .._graph.batching import Batching
from .._graph.loss_graph import LossGraph
from .._graph.losses import read_losses
from .._graph.recall import RecalledRows, RecalledTop, can_be_recalled
from .._graph.rows import plan_of
from .._graph.sites import final_sites
from .._graph.supports import Edge
from .._methods.graddrop import GradDrop
from .._optimizer import MultiLossOptimizer
from .._transform import Site
from .clock import seconds_of, seconds_of_each
from .places import Place
from .rows import (
    Batch,
    RowsAt,
    batch_of,
    is_leaf,
    is_parameter,
    plain_backward,
    rows_at,
    rows_at_meetings,
    rows_thrown_away,
)

MANY = 64  # parameters from which on Python's share hardly counts


@dataclass(frozen=True)
class Cost:
    """A predicted backward of all losses, with `GradDrop()`.

    Attributes:
        at: Where the gradients are combined: `"activations"`, `"parameters"` or `"module"`.
        seconds: How long it takes.
        times: The same as a multiple of the plain sum's backward.
        memory: Bytes by which the peak of the step grows, at most; it grows by less where the plain sum's peak is
            elsewhere.
        memory_of_rows: The same for a method that needs all rows at once (those from the Gramian); `None` where such a
            method has nothing to combine.
    """

    at: str
    seconds: float
    times: float
    memory: int
    memory_of_rows: int | None


@dataclass(frozen=True)
class Sizes:
    """Bytes of the combined gradients at some tensors.

    Attributes:
        own: In their own dtypes.
        wide: In those in which they are summed.
        largest: The largest of them, wide.
    """

    own: int
    wide: int
    largest: int

    def held(self, n: int) -> int:
        """Bytes of n rows at each, and of the copy in which a part of them lies side by side."""
        return n * self.own + min(n * self.largest, 4 * PART)


def sizes_of(sites: Sequence[RowsAt]) -> Sizes:
    rows = [at.rows[0] for at in sites if len(at.rows) > 1]
    own = [row.numel() * row.element_size() for row in rows]
    wide = [row.numel() * wide_dtype(row.dtype).itemsize for row in rows]
    return Sizes(sum(own), sum(wide), max(wide, default=0))


def plain_seconds(batch: Batch) -> float:
    """A backward of the plain sum."""
    return seconds_of(lambda: plain_backward(batch), batch.device)


def _seconds_of_combination(batch: Batch, sites: Sequence[RowsAt], transform: GradDrop) -> float:
    """The bare combination of rows that are there."""
    pipeline = Pipeline(transform)

    def combine() -> None:
        for at in sites:
            # Its values do not matter here, and nobody has kept them.
            activation = torch.ones_like(at.rows[0]) if pipeline.marginalized and at.rows else None
            combination = pipeline.combination(batch.losses, [Site(batch.losses, activation)])
            for position, row in zip(at.positions, at.rows, strict=True):
                combination.add(0, position, row)
            combination.result()

    return seconds_of(combine, batch.device)


def _seconds_of_sites(batch: Batch) -> float:
    """Finding the sites: in a step like others before, the top of the graph is enough, where it tells all."""
    origins = batch.graph.origins
    top = LossGraph.top(origins)
    if top is not None and not top.bundled and not top.narrowed and can_be_recalled(top, is_parameter):
        sites, _ = final_sites(top, is_parameter)
        if sites and all(site.separate for site in sites):
            recalled = RecalledTop(top, sites)
            return seconds_of(lambda: recalled.sites_in(origins, is_parameter), batch.device)

    def find() -> None:
        graph = LossGraph(origins)
        graph.look_through_parts()
        final_sites(graph, is_parameter)

    return seconds_of(find, batch.device)


def _seconds_of_leaves(batch: Batch, batching: Batching) -> float:
    """Finding the parameters: in a step like others before, they are where they were."""
    graph = batch.graph
    edges = [(leaf, 0) for leaf in graph.leaves()]
    plan = plan_of(graph, edges, batching, retain_graph=False)
    if graph.states is None and plan.whole and can_be_recalled(graph, is_parameter):
        recalled = RecalledRows(graph, edges, apart=plan.apart)
        return seconds_of(lambda: recalled.targets_in(graph.origins), batch.device)
    return seconds_of(lambda: LossGraph(graph.origins).look_through_bundles(), batch.device)


def cost_at_activations(batch: Batch, plain: float, sites: Sequence[RowsAt]) -> Cost:
    """One ordinary backward pass, and the combination on the way; what losses share above is fetched before it."""
    seconds = plain + _seconds_besides(batch, "activations") + _seconds_of_activations(batch, sites)
    sizes = sizes_of(sites)
    # Two sums of each instead of autograd's one; then at one of them the draws, and what they are compared with.
    memory = 2 * sizes.wide - sizes.own + 2 * sizes.largest
    return Cost("activations", seconds, seconds / plain, memory, sizes.held(len(batch.losses)))


def _seconds_of_activations(batch: Batch, sites: Sequence[RowsAt]) -> float:
    seconds = _seconds_of_sites(batch) + _seconds_of_combination(batch, sites, GradDrop(seed=0))
    if not all(meeting.separate for meeting in batch.several):
        seconds += seconds_of(lambda: rows_at_meetings(batch), batch.device)
    return seconds


def cost_at_parameters(batch: Batch, plain: float, sites: Sequence[RowsAt], batching: Batching) -> Cost:
    """A backward of the shared part for each loss, several at a time by vmap, and the combination."""
    seconds = _seconds_besides(batch, "parameters") + _seconds_of_parameters(batch, sites, batching)
    sizes = sizes_of(sites)
    memory = 2 * sizes.wide + 2 * sizes.largest
    inner = [meeting for meeting in batch.meetings if not is_leaf(meeting.edge)]
    chunk = min(batching.size_for(batch.graph, inner) if inner else 1, len(batch.losses) - 1)
    if chunk > 2:  # the first two rows become the two sums
        memory += (chunk - 1) * sizes.own
    return Cost("parameters", seconds, seconds / plain, memory, sizes.held(len(batch.losses)))


def _seconds_of_parameters(batch: Batch, sites: Sequence[RowsAt], batching: Batching) -> float:
    edges = [(leaf, 0) for leaf in batch.graph.leaves()]
    rows = seconds_of(lambda: rows_thrown_away(batch, edges, batching), batch.device)
    return rows + _seconds_of_leaves(batch, batching) + _seconds_of_combination(batch, sites, GradDrop(seed=0))


def cost_at_module(batch: Batch, plain: float, edge: Edge, place: Place) -> Cost:
    """One ordinary backward pass; where losses share nodes above the module, the rows are fetched before it."""
    (site,) = rows_at(batch, [edge], Batching(1))
    seconds = plain + _seconds_besides(batch, "activations") + _seconds_of_sites(batch)
    if not batch.graph.meetings_at([edge])[edge].separate:
        seconds += seconds_of(lambda: rows_thrown_away(batch, [edge], Batching(1)), batch.device)
    seconds += _seconds_of_combination(batch, [site], GradDrop(marginalize=place.marginalize, seed=0))
    sizes = sizes_of([site])
    if place.marginalize is None:
        memory = 2 * sizes.wide - sizes.own + 2 * sizes.largest
        return Cost("module", seconds, seconds / plain, memory, sizes.held(len(site.rows)))
    # It holds the rows; the signs, a row times these, the result.
    memory = (len(site.rows) - 1) * sizes.own + 3 * sizes.wide
    return Cost("module", seconds, seconds / plain, memory, None)


def _seconds_besides(batch: Batch, at: str) -> float:
    """What the parts leave out, Python's share: what a step of a tiny model takes longer than its own parts.

    It has as many losses, and as many parameters, all shared.
    """
    n = min(MANY, sum(1 for _ in batch.graph.leaves()))
    weights = [nn.Parameter(torch.eye(2, device=batch.device)) for _ in range(n)]
    optimizer = MultiLossOptimizer(torch.optim.SGD(weights), GradDrop(seed=0), at=at)

    def losses() -> list[Tensor]:
        optimizer.zero_grad()
        made = torch.ones(2, 2, device=batch.device)
        for weight in weights:
            made = made @ weight
        return [(made * (i + 1)).sum() for i in range(len(batch.losses))]

    with torch.enable_grad():
        whole = seconds_of_each(lambda: partial(optimizer.backward, losses()), batch.device)
        tiny = batch_of(*read_losses(losses()))
        if at == "parameters":
            rows = rows_at(tiny, [(leaf, 0) for leaf in tiny.graph.leaves()], Batching())
            return max(0.0, whole - _seconds_of_parameters(tiny, rows, Batching()))
        return max(0.0, whole - plain_seconds(tiny) - _seconds_of_activations(tiny, rows_at_meetings(tiny)))
