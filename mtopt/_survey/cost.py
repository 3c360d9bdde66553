"""What a backward would cost, from passes by the clock and the sizes of the rows. No advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .._combine.pipeline import Pipeline
from .._combine.products import PART
from .._dtypes import wide_dtype
from .._graph.batching import Batching
from .._graph.supports import Edge
from .._methods.graddrop import GradDrop
from .._transform import Site
from .places import Place
from .rows import Batch, RowsAt, is_leaf, rows_at, rows_at_meetings, rows_thrown_away


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


def combination_seconds(batch: Batch, sites: Sequence[RowsAt], transform: GradDrop) -> float:
    """The bare combination of rows that are there, at its best: the first run pays for fresh memory."""
    pipeline = Pipeline(transform)

    def combine() -> None:
        for at in sites:
            # Its values do not matter here, and nobody has kept them.
            activation = torch.ones_like(at.rows[0]) if pipeline.marginalized and at.rows else None
            combination = pipeline.combination(batch.losses, [Site(batch.losses, activation)])
            for position, row in zip(at.positions, at.rows, strict=True):
                combination.add(0, position, row)
            combination.result()

    return min(batch.timed(combine)[0] for _ in range(3))


def cost_at_activations(batch: Batch, plain: float, walk: float, sites: Sequence[RowsAt]) -> Cost:
    """One ordinary backward, and the combination on the way; what losses share above is fetched before it."""
    seconds = plain + walk + combination_seconds(batch, sites, GradDrop(seed=0))
    if not all(meeting.separate for meeting in batch.several):
        seconds += batch.timed(lambda: rows_at_meetings(batch))[0]
    sizes = sizes_of(sites)
    # Two sums of each instead of autograd's one; then at one of them the draws, and what they are compared with.
    memory = 2 * sizes.wide - sizes.own + 2 * sizes.largest
    return Cost("activations", seconds, seconds / plain, memory, sizes.held(len(batch.losses)))


def cost_at_parameters(
    batch: Batch, plain: float, walk: float, sites: Sequence[RowsAt], seconds_of_rows: float, batching: Batching
) -> Cost:
    """A backward of the shared part for each loss, several at a time by vmap, and the combination."""
    seconds = walk + seconds_of_rows + combination_seconds(batch, sites, GradDrop(seed=0))
    sizes = sizes_of(sites)
    memory = 2 * sizes.wide + 2 * sizes.largest
    inner = [meeting for meeting in batch.meetings if not is_leaf(meeting.edge)]
    chunk = min(batching.size_for(batch.graph, inner) if inner else 1, len(batch.losses) - 1)
    if chunk > 2:  # the first two rows become the two sums
        memory += (chunk - 1) * sizes.own
    return Cost("parameters", seconds, seconds / plain, memory, sizes.held(len(batch.losses)))


def cost_at_module(batch: Batch, plain: float, walk: float, edge: Edge, place: Place) -> Cost:
    """One ordinary backward; where losses share nodes above the module, the rows are fetched before it."""
    (site,) = rows_at(batch, [edge], Batching(1))
    seconds, _ = batch.timed(lambda: rows_thrown_away(batch, [edge], Batching(1)))
    if batch.graph.meetings_at([edge])[edge].separate:
        seconds = 0.0
    seconds += plain + walk + combination_seconds(batch, [site], GradDrop(marginalize=place.marginalize, seed=0))
    sizes = sizes_of([site])
    if place.marginalize is None:
        memory = 2 * sizes.wide - sizes.own + 2 * sizes.largest
        return Cost("module", seconds, seconds / plain, memory, sizes.held(len(site.rows)))
    # It holds the rows; the signs, a row times these, the result.
    memory = (len(site.rows) - 1) * sizes.own + 3 * sizes.wide
    return Cost("module", seconds, seconds / plain, memory, None)
