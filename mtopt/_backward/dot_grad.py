"""Adds gradients to `.grad`, as autograd does. Computes none."""

from __future__ import annotations

import torch
from torch import Tensor

from .._torch import call_post_accumulate_hooks, is_view


def accumulate(parameter: Tensor, gradient: Tensor, *, own: bool) -> None:
    """Add to `.grad` as autograd does: in the parameter's memory layout, and calling the post-accumulate hooks.

    Gradients must be switched off.

    Args:
        parameter: A leaf.
        gradient: What is added.
        own: Whether nothing else has its memory, so that it may become the `.grad`.
    """
    if not parameter.requires_grad:
        return
    if parameter.grad is not None:
        parameter.grad.add_(gradient)
    elif gradient.layout is not torch.strided:
        parameter.grad = gradient.detach().clone()
    elif own and gradient.stride() == parameter.stride() and not is_view(gradient):
        parameter.grad = gradient.detach()
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)  # nor does it keep a larger tensor alive
    call_post_accumulate_hooks(parameter)
