"""The backward that combines nothing: one ordinary one of all losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._graph.alive import graph_errors_explained
from .._graph.supports import Edge
from .._transform import Losses
from .backward import Backward, taken_back
from .explanation import NEAR_PLAIN, Explanation
from .known import Known


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
        "one ordinary backward, rows summed by autograd", reason, NEAR_PLAIN
    )
    return backward.known.explained


def add_up_again(losses: Losses, origins: Sequence[Edge], known: Known, parameters: Sequence[Tensor]) -> bool:
    """The same for a sum without any transform, of a form that is known; False if more must be looked at first."""
    scalars = losses.scalars or ()
    together = not all(scalar.requires_grad for scalar in scalars)  # they are entries of one tensor
    if together or known.explained is None or not known.suffices(parameters):
        return False
    with graph_errors_explained(), taken_back(origins):
        torch.autograd.backward(scalars)
    return True
