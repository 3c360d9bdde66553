"""Row at parameters as means over the ranks, and a check that all ranks made the same of them. No transforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    here = reached.here
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
        sent = [i for i, losses in enumerate(reached.owners) if position in losses]
        travelling = _Travelling(backward.ranks, position, reached, sent, mine)
        if before is not None:
            yield before.position, before.arrived()
        before = travelling
    if before is not None:
        yield before.position, before.arrived()


def mean_of_sums(backward: Backward, starts: Sequence[Tensor], reached: Reached) -> Row:
    """The mean of the gradients of all losses together, by one pass."""
    here = reached.here
    found = torch.autograd.grad(
        [gradient_edge(origin) for origin in backward.origins],
        [gradient_edge(edge) for edge in here.values()],
        starts,
        retain_graph=backward.retain_graph,
        allow_unused=True,
    )
    sent = [i for i, losses in enumerate(reached.owners) if losses]
    return _Travelling(backward.ranks, 0, reached, sent, dict(zip(here, found, strict=True))).arrived()


class _Travelling:
    """Rows on their way to their mean over the ranks: one buffer for each dtype and device.

    Args:
        position: Of the loss.
        sent: The numbers of the targets that all ranks have a row of; that of a rank without one is zero.
        rows: This rank's, by number. What no loss owns does not travel.
    """

    def __init__(
        self, ranks: Ranks, position: int, reached: Reached, sent: Sequence[int], rows: Mapping[int, Tensor | None]
    ) -> None:
        self.ranks = ranks
        self.position = position
        self.n_targets = len(reached.targets)
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i in sent:
            target = reached.targets[i]
            kinds.setdefault((target.dtype, target.device), []).append(i)
        self.views = {i: row for i, row in rows.items() if not reached.owners[i] and row is not None}
        self.work = []
        for (dtype, device), members in kinds.items():
            buffer = torch.empty(sum(reached.targets[i].numel() for i in members), dtype=dtype, device=device)
            start = 0
            for i in members:
                target, row = reached.targets[i], rows.get(i)
                view = self.views[i] = buffer.as_strided(target.shape, target.stride(), start)
                if row is None:
                    view.zero_()
                else:
                    check_dense(row.layout is torch.strided)
                    torch.div(row, ranks.size, out=view)
                start += target.numel()
            self.work.append(ranks.start_sum(buffer))

    def arrived(self) -> Row:
        for work in self.work:
            self.ranks.finish(work)
        return [self.views.get(i) for i in range(self.n_targets)]


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
