"""What is refused once the graph is known: steps in which nothing, or something else, would be combined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from .._graph.loss_graph import LossGraph, Meeting
from .._graph.supports import Edge
from .._torch import COMPILED, REENTRANT_CHECKPOINT, has_sparse_gradient
from .backward import Backward
from .fan_out import COMBINED_ALREADY, FAN_OUT, combines_itself

WAYS_OUT = (
    "Put a MultiLossLayer where they should meet, name a module with `at=module` (and `GradDrop(marginalize=0)` where "
    'the losses come from different examples), or use `at="parameters"`.'
)
DIFFERENT_PARTS = (
    "The `losses` read different parts of the tensor where they meet, so no coordinate is reached by two of them and "
    "there is nothing to combine. " + WAYS_OUT
)


def check_real(dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise TypeError(
            f"The `losses` meet at a tensor of dtype {dtype}, whose gradients have no sign. Share only real tensors "
            f"between the losses, or name a real activation by `at`."
        )


def check_dense(dense: bool) -> None:
    if not dense:
        raise TypeError(
            "The `losses` meet at a parameter with sparse gradients, which cannot be combined. Make the Embedding "
            'dense (`sparse=False`), or let the losses meet above it: share one call of it, with `at="activations"`.'
        )


def hides_who_reaches_what(graph: LossGraph) -> bool:
    """Whether rows of zeros are none: one node stands for a whole model, or losses are bundled in some ways."""
    whole = not graph.kinds.isdisjoint((COMPILED, REENTRANT_CHECKPOINT))
    return whole or (graph.states is not None and graph.cut)


def check_meetings(backward: Backward, meetings: Sequence[Meeting], *, joint: Sequence[Sequence[Edge]] = ()) -> None:
    """Raise if no transform would have anything to decide on."""
    for meeting in meetings:
        check_real(meeting.dtype)
        check_dense(not any(has_sparse_gradient(node) for node, _, _ in meeting.entries))
        backward.pipeline.first_backwards.expect(len(meeting.positions), len(meeting.shape))
    if any(len(backward.positions_at(group)) > 1 for group in joint):
        return
    several = [meeting for meeting in meetings if not meeting.separate or len(meeting.positions) > 1]
    if not several:
        if any(backward.graph.disjoint(edge) for edge in backward.graph.states or ()):
            raise RuntimeError(DIFFERENT_PARTS)
        if not any(map(backward.graph.shared, backward.graph.edges)):
            raise RuntimeError(
                "The `losses` share nothing that requires a gradient, so there is nothing to combine: the shared part "
                "is frozen (requires_grad=False, torch.no_grad(), .detach()), or they never meet at one tensor. "
                "Unfreeze it, or use `transforms=[]`. " + WAYS_OUT
            )
        raise RuntimeError(
            "The `losses` never meet at one tensor, so there is nothing to combine: they share nothing, or one node (a "
            "compiled model, a split batch, a loss tensor not made by torch.stack) makes a tensor of its own for each. "
            + WAYS_OUT
        )
    if backward.pipeline.marginalized is None and all(backward.graph.disjoint(meeting.edge) for meeting in several):
        raise RuntimeError(DIFFERENT_PARTS)


def check_marked(backward: Backward, marked: Iterable[Edge]) -> None:
    reached = backward.positions_at(marked)
    if not reached:
        raise RuntimeError(
            "The module named by `at` made nothing that the `losses` depend on: it was not called in this step, or "
            "before the optimizer was made; its output needs no gradient; or it ran inside a reentrant checkpoint, "
            "where it cannot be seen. Call it, checkpoint with use_reentrant=False, or put a MultiLossLayer in its "
            "place."
        )
    for position in range(len(backward.losses)):
        if position not in reached:
            raise ValueError(
                f"`losses[{backward.losses.label(position)}]` does not reach the module named by `at`. Name a module "
                f"that all losses depend on, or give None for that loss."
            )


def refuse_layers(backward: Backward) -> None:
    if FAN_OUT.__name__ in backward.graph.kinds and any(map(combines_itself, backward.graph.edges)):
        raise RuntimeError(COMBINED_ALREADY)
