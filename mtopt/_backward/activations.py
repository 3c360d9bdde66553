"""Rows where the losses first meet, combined within one ordinary backward; and the backward that combines nothing."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .._combine.combination import Combination
from .._graph.loss_graph import Edge, Meeting
from .._graph.taking import Finish, Take, rows_taken
from .._torch import AccumulateGrad, operator_of
from .._transform import Site
from .backward import Backward
from .explanation import Explanation
from .refusals import check_meetings, refuse_layers

NEAR_PLAIN = "this costs little more than a plain sum: look for the time elsewhere, such as in the forward pass"


def combine_plain(backward: Backward) -> Explanation:
    """Nothing to combine: autograd adds the rows up."""
    backward.agree()
    backward.run(backward.starts())
    reason = (
        "one loss is alone here" if backward.pipeline.gradient_transforms else "no transform asks for single gradients"
    )
    return backward.explanation("one ordinary backward, rows summed by autograd", reason, NEAR_PLAIN)


def combine_at_activations(backward: Backward) -> Explanation:
    """The frontier: rows where the losses first meet, combined within one ordinary backward."""
    refuse_layers(backward)
    meetings = [meeting for meeting in backward.graph.frontier() if len(meeting.positions) > 1]
    if backward.has_several:
        check_meetings(backward, meetings)
    # Where they meet at a parameter its rows are needed from all ranks, as they are where a transform asks for it.
    leaves = [m for m in meetings if type(m.edge[0]) is AccumulateGrad and backward.is_parameter(m.edge[0])]
    together = meetings if backward.pipeline.sums_over_ranks else leaves
    backward.agree(combines=len(meetings) > 0, sites=[_signature(backward, meeting) for meeting in together])
    starts = backward.starts()
    handlers = []
    for meeting in meetings:
        combination = (
            _RowsOfAllRanks(backward)
            if meeting in leaves and backward.ranks.size > 1
            else backward.combination_at(None)
        )
        for position in meeting.roots:
            combination.add(0, position, starts[position])
            starts[position] = torch.zeros_like(starts[position])
        handlers.append(combining(combination))
    sites = [backward.site_explained(kind_of(meeting.edge), meeting.shape, meeting.positions) for meeting in meetings]
    how = "one ordinary backward, rows combined where the losses meet"
    why = 'at="activations": where the losses first meet, one backward has the gradients of all of them'
    explanation = backward.explanation(how, why, NEAR_PLAIN, sites)
    with rows_taken(meetings, handlers):
        backward.run(starts)
    return explanation


class _RowsOfAllRanks:
    """Keeps the rows at a parameter, where losses meet directly, until they are averaged over the ranks."""

    def __init__(self, backward: Backward) -> None:
        self.backward = backward
        self.rows: dict[int, Tensor] = {}

    def add(self, site: int, position: int, row: Tensor) -> None:
        self.rows[position] = row

    def result(self) -> list[Tensor | None]:
        positions = sorted(self.rows)
        mean = self.backward.ranks.sum(torch.stack([self.rows[p] for p in positions]) / self.backward.ranks.size)
        combination = self.backward.pipeline.combination(self.backward.losses, [Site(self.backward.agreed)])
        for position, row in zip(positions, mean, strict=True):
            combination.add(0, position, row)
        return combination.result()


def _signature(backward: Backward, meeting: Meeting) -> tuple[object, ...]:
    """A meeting as all ranks must have it: at a parameter with the same losses and shape."""
    if type(meeting.edge[0]) is not AccumulateGrad:
        return (meeting.edge[0].name(),)
    return (meeting.shape, *(backward.losses.indices[position] for position in meeting.positions))


def combining(combination: Combination) -> tuple[Take, Finish]:
    return partial(combination.add, 0), lambda: combination.result()[0]


def kind_of(edge: Edge) -> str:
    """What a site is, in words."""
    return "parameter" if type(edge[0]) is AccumulateGrad else f"output of {operator_of(edge[0])}"
