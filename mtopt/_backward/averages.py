"""Row at parameters as means over the ranks, and a check that all ranks made the same of them. No transforms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._graph.loss_graph import gradient_edge
from .._graph.passes import Row
from .._graph.rows import rows_below
from .._graph.supports import Edge
from .._ranks import Ranks
from .backward import Backward
from .refusals import check_dense


@dataclass
class Reached:
    """What the losses of any rank reach.

    Attributes:
        targets: Parameters in the order that all ranks know; then what is none, and differs from rank to rank.
        owners: The losses that reach each, by position in `backward.agreed`; none for what is no parameter.
        edges: The edge of each in this rank's graph, if it is there.
    """

    targets: list[Tensor]
    owners: list[list[int]]
    edges: list[Edge | None]

    @property
    def here(self) -> dict[int, Edge]:
        """The edges of this rank, by number."""
        return {i: edge for i, edge in enumerate(self.edges) if edge is not None}


def averaged(backward: Backward, reached: Reached) -> Iterator[tuple[int, Row]]:
    """Each loss's mean rows. While they travel between the ranks, the next loss's are computed."""
    targets, owners, here = reached.targets, reached.owners, reached.here
    found = rows_below(
        backward.graph,
        backward.starts(),
        list(here.values()),
        backward.batching,
        retain_graph=backward.retain_graph,
    )
    before: _Travelling | None = None
    for position, index in enumerate(backward.agreed.indices):
        mine: dict[int, Tensor | None] = {}
        if index in backward.losses.indices:
            _, rows = next(found)
            mine = dict(zip(here, rows, strict=True))
        rows_here = {i: (targets[i], mine.get(i)) for i in range(len(targets)) if position in owners[i]}
        travelling = _Travelling(backward.ranks, position, rows_here)
        travelling.views.update({i: row for i, row in mine.items() if not owners[i] and row is not None})
        if before is not None:
            yield before.position, before.arrived(len(targets))
        before = travelling
    if before is not None:
        yield before.position, before.arrived(len(targets))


def mean_of_sums(backward: Backward, starts: Sequence[Tensor], reached: Reached) -> Row:
    """The mean of the gradients of all losses together, by one pass."""
    here, targets, owners = reached.here, reached.targets, reached.owners
    found = torch.autograd.grad(
        [gradient_edge(origin) for origin in backward.origins],
        [gradient_edge(edge) for edge in here.values()],
        starts,
        retain_graph=backward.retain_graph,
        allow_unused=True,
    )
    mine = dict(zip(here, found, strict=True))
    rows = {i: (target, mine.get(i)) for i, target in enumerate(targets) if owners[i]}
    travelling = _Travelling(backward.ranks, 0, rows)
    travelling.views.update({i: row for i, row in mine.items() if not owners[i] and row is not None})
    return travelling.arrived(len(targets))


class _Travelling:
    """One loss's rows on their way to their mean over the ranks: one buffer for each dtype and device."""

    def __init__(self, ranks: Ranks, position: int, rows: dict[int, tuple[Tensor, Tensor | None]]) -> None:
        self.ranks = ranks
        self.position = position
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, (target, _) in rows.items():
            kinds.setdefault((target.dtype, target.device), []).append(i)
        self.views: dict[int, Tensor] = {}
        self.work = []
        for (dtype, device), members in kinds.items():
            buffer = torch.empty(sum(rows[i][0].numel() for i in members), dtype=dtype, device=device)
            start = 0
            for i in members:
                target, row = rows[i]
                view = self.views[i] = buffer.as_strided(target.shape, target.stride(), start)
                if row is None:
                    view.zero_()
                else:
                    check_dense(row.layout is torch.strided)
                    torch.div(row, ranks.size, out=view)
                start += target.numel()
            self.work.append(ranks.start_sum(buffer))

    def arrived(self, n_targets: int) -> Row:
        for work in self.work:
            self.ranks.finish(work)
        return [self.views.get(i) for i in range(n_targets)]


def check_alike(ranks: Ranks, gradients: Sequence[Tensor | None]) -> None:
    """Raise if a transform did not do the same on all ranks: their parameters would drift apart."""
    if ranks.size == 1:
        return
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for gradient in gradients:
        if gradient is not None:
            real = torch.view_as_real(gradient) if gradient.is_complex() else gradient
            sums.append(real.view(integers[real.element_size()]).sum())
    checksum = int(torch.stack([part.to(sums[0].device) for part in sums]).sum())
    if any(theirs != [checksum] for theirs in ranks.gather([checksum])):
        raise RuntimeError(
            "The ranks combined the same rows to different gradients, and nothing was changed. A transform of yours "
            "depends on something that the ranks do not share: draw its random numbers from a seed in its `state_dict`."
        )
