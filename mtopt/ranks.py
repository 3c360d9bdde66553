"""What would diverge silently over several ranks, and is therefore refused. No communication."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from .combine import Pipeline
from .methods.base import GramianTransform


def refuse_ranks(pipeline: Pipeline, group: Any, *, parameters: bool = False) -> None:
    """Raise where each rank would decide on its own gradients alone, unlike one process on all batches.

    Raises:
        RuntimeError: If there are several ranks and the decision would need all of their rows.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1):
        return
    if parameters:
        what = 'rows at parameters (`at="parameters"`, or losses that meet at a parameter)'
    elif pipeline.marginalized is not None:
        what = "`marginalize`"
    elif any(isinstance(transform, GramianTransform) for transform in pipeline.row_transforms):
        what = "transforms of the Gramian"
    elif pipeline.weightings:
        what = "loss weightings"
    else:
        return
    raise RuntimeError(
        f"Several ranks are running, and {what} must then be agreed among them, which mtopt cannot do yet. Use "
        f"GradDrop without `marginalize` at activations, where each example's decision is its own."
    )
