r"""How far a batch tells the products of its losses' gradients from chance. Judges nothing.

loss               The gradient of a loss is the sum of those of its examples. Where the loss stops being a few
  |  link          numbers, a hook on this link lets one eighth of the first dimension through, and the pass gives
(32, 10)           the gradient of that part of the batch. What two losses ask for in *different* parts has no
  |                noise in common, so its mean is that of the data; and how it varies, if one part after the
trunk              other is left out (the jackknife), is its standard error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import nan

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .._combine.products import gramian
from .._graph.loss_graph import Meeting, gradient_edge
from .._graph.supports import Edge
from .rows import Batch, RowsAt

PARTS = 8  # of the batch: fewer tell no standard error, more take more passes
CLEAREST = 1000.0  # standard errors: losses without examples, such as a penalty, have no noise

Link = tuple[Node, int]
"""A node, and the number of its input."""


def signals(
    batch: Batch, sites: Sequence[Sequence[tuple[Node, RowsAt]]], fed: set[Node], positions: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """How many standard errors the product of each two losses' gradients is from 0: at each site, and at all together.

    Args:
        batch: The losses and their graph.
        sites: For each site its leaves, with the rows there.
        fed: The nodes below which there are data.
        positions: The losses to look at; for the others, and those whose examples cannot be told apart, it is NaN.

    Returns:
        Tensors of shape `(T, T)`.
    """
    links = {position: _links(batch, position, fed) for position in positions}
    looked_at = [i for i, found in links.items() if found or batch.graph.roots[i][0] not in fed]
    n = len(batch.losses)
    apart, along = torch.zeros(2, len(sites), PARTS, n, n, dtype=torch.float64)
    whole = torch.zeros(len(sites), n, n, dtype=torch.float64)
    leaves = [leaf for site in sites for leaf, _ in site]
    rest = _rows(batch, leaves, links, looked_at, None)
    for part in range(PARTS):
        rows = _rows(batch, leaves, links, looked_at, part)
        for s, site in enumerate(sites):
            for leaf, at in site:
                here = [i for i in looked_at if i in at.positions]
                if here:
                    _without_rest(rows[leaf], rest[leaf])
                    all_rows = [at.rows[at.positions.index(i)] for i in here]
                    own = [rows[leaf].get(i, torch.zeros_like(row)) for i, row in zip(here, all_rows, strict=True)]
                    products = gramian([*own, *all_rows]).to(whole)
                    index, m = torch.tensor(here), len(here)
                    apart[s, part, index[:, None], index] += products[:m, :m]
                    along[s, part, index[:, None], index] += products[:m, m:]
                    if part == 0:
                        whole[s, index[:, None], index] += products[m:, m:]
    known = torch.full((n, n), nan, dtype=torch.float64)
    index = torch.tensor(looked_at, dtype=torch.long)
    known[index[:, None], index] = 0.0
    per_site = [known + _in_standard_errors(*of) for of in zip(whole, along, apart, strict=True)]
    return per_site, known + _in_standard_errors(whole.sum(0), along.sum(0), apart.sum(0))


def _in_standard_errors(whole: Tensor, along: Tensor, apart: Tensor) -> Tensor:
    """From the products of the gradients, of each part's with the whole ones `(PARTS, T, T)`, and within each part."""
    n, inside = PARTS, apart.sum(0)
    between = (whole - inside) * n / (n - 1)
    left_out = (whole - along - along.mT + 2 * apart - inside) * n**2 / ((n - 1) * (n - 2))
    error = ((left_out - left_out.mean(0)).square().sum(0) * (n - 1) / n).sqrt()
    return (between / error).nan_to_num(0.0).clamp(-CLEAREST, CLEAREST)


def _links(batch: Batch, position: int, fed: set[Node]) -> list[Link]:
    """Where a loss stops being a few numbers: its links to tensors that have examples."""
    graph, found = batch.graph, []
    level, seen = [graph.roots[position][0]], set[Node]()
    while level:
        below = [(node, k, edge) for node in level for k, edge in enumerate(graph.edges[node]) if edge[0] in fed]
        inner = [(node, k, edge) for node, k, edge in below if graph.going_on(node, k) >> position & 1]
        long = dict.fromkeys(edge for *_, edge in inner if Meeting(edge).shape[:1] >= (PARTS,))  # type: ignore[arg-type]
        rows = dict(zip(long, _gradients(batch, position, list(long)), strict=True))  # type: ignore[arg-type]
        level = []
        for node, k, edge in inner:
            if _has_examples(rows.get(edge)):
                found.append((node, k))
            elif edge[0] not in seen:
                seen.add(edge[0])  # type: ignore[arg-type]
                level.append(edge[0])  # type: ignore[arg-type]
    return found


def _has_examples(row: Tensor | None) -> bool:
    """Whether several parts of the first dimension have a gradient: of a vector of losses one number has it."""
    if row is None or row.layout is not torch.strided:
        return False
    return sum(bool(row[_slice(part, len(row))].any()) for part in range(PARTS)) >= PARTS // 2


def _slice(part: int, n: int) -> slice:
    return slice(n * part // PARTS, n * (part + 1) // PARTS)


def _rows(
    batch: Batch, leaves: Sequence[Node], links: dict[int, list[Link]], positions: Sequence[int], part: int | None
) -> dict[Node, dict[int, Tensor]]:
    """For each leaf the rows of one part of the batch, or of what does not come from examples; none where it is 0."""
    rows: dict[Node, dict[int, Tensor]] = {leaf: {} for leaf in leaves}
    for position in positions:
        with _parted(links[position], part):
            found = _gradients(batch, position, [(leaf, 0) for leaf in leaves])
        for leaf, gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                dense = RowsAt()
                dense.add(position, gradient)
                if part is not None or dense.rows[0].any():
                    rows[leaf][position] = dense.rows[0]
    return rows


def _without_rest(rows: dict[int, Tensor], rest: dict[int, Tensor]) -> None:
    """What does not come from examples is in the rows of each part: leave it an equal share."""
    for position, row in rest.items():
        rows[position] = rows[position] - row * (1 - 1 / PARTS)


def _gradients(batch: Batch, position: int, edges: Sequence[Edge]) -> tuple[Tensor | None, ...]:
    if not edges:
        return ()
    return torch.autograd.grad(
        [gradient_edge(batch.graph.origins[position])],
        [gradient_edge(edge) for edge in edges],
        [batch.starts[position]],
        retain_graph=True,
        allow_unused=True,
    )


@contextmanager
def _parted(links: Sequence[Link], part: int | None) -> Iterator[None]:
    """While active, one part of the first dimension alone goes along these links; or nothing."""
    inputs: dict[Node, list[int]] = {}
    for node, k in links:
        inputs.setdefault(node, []).append(k)
    handles = [node.register_hook(partial(_part_of, own, part)) for node, own in inputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _part_of(
    inputs: Sequence[int], part: int | None, gradients: tuple[Tensor | None, ...], _: object
) -> tuple[Tensor | None, ...]:
    carried = list(gradients)
    for k in inputs:
        gradient = carried[k]
        if gradient is not None:
            kept = torch.zeros_like(gradient)
            if part is not None:
                own = _slice(part, len(gradient))
                kept[own] = gradient[own]
            carried[k] = kept
    return tuple(carried)
