"""The backward pass that combines nothing: one ordinary one of all losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._graph.alive import graph_errors_explained
from .._graph.supports import Edge
from .._transform import Losses, LossesLike
from .backward import Backward, taken_back
from .explanation import NEAR_PLAIN, Explanation


def combine_plain(backward: Backward) -> Explanation:
    """Nothing to combine: autograd adds the rows up."""
    if not backward.can_be_taken_back:
        backward.look_at_all()
    backward.agree()
    backward.run(backward.starts())
    reason = (
        "one loss is alone here" if backward.pipeline.gradient_transforms else "no transform asks for single gradients"
    )
    backward.known.explained = backward.explanation(
        "one ordinary backward pass, rows summed by autograd", reason, NEAR_PLAIN
    )
    return backward.known.explained


def add_up_again(losses: LossesLike, present: Losses, origins: Sequence[Edge]) -> None:
    """The same for a sum without any transform, of a form of which enough is known."""
    roots, starts = list(present.scalars or ()), None
    if isinstance(losses, Tensor):
        roots, starts = [losses], [torch.ones_like(losses)]
    with graph_errors_explained(), taken_back(origins):
        torch.autograd.backward(roots, starts)
