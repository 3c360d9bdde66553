"""MultiLossLayer: one alias of an activation per loss, whose backward receives all rows at once. No optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._backward.fan_out import CompiledFanOut, FanOut, check_not_refused, register
from ._checks import check_loss_names
from ._combine.pipeline import Pipeline
from ._methods.graddrop import GradDrop
from ._ranks import ranks_of
from ._signs import dims_of
from ._transform import Losses, Site, Transform


class MultiLossLayer(nn.Module):
    """Gives each loss its own alias of a shared activation, and combines their gradients in the one backward pass.

    Any optimizer and a plain `sum(losses).backward()` will do. Active in `train()`; in `eval()` the gradients are
    simply summed. The values are never changed. It sees no loss, so the factor of a GradScaler stays in the rows: a
    transform that is not `scale_equivariant` is refused in a float16 autocast.

    Args:
        losses: How many losses there are, or their names (for settings by name).
        transforms: One transform of the rows, or a list of them, applied left to right. `None` is `GradDrop()`.
        process_group: The ranks that train together, and average their gradients. `None` is the default group.

    Shape:
        - Input: a floating-point tensor of any shape.
        - Output: a tuple of as many aliases of it as there are losses, in their order. They share memory, so they
          cannot be changed in place.

    Raises:
        ValueError: If there is no loss, a name stands twice, a transform needs loss values, or its settings do not
            fit the losses.
        TypeError: If `losses` is neither a number nor a list of names, or a transform is not a transform. In `forward`,
            if the input is no real floating-point tensor.

    Example:
        >>> share = MultiLossLayer(["seg", "depth"], GradDrop(marginalize=0))
        >>> seg, depth = share(torch.ones(4, 8))

    Source:
        The "simple deep layer" of Chen et al. 2020, [arXiv:2010.06808](https://arxiv.org/abs/2010.06808), section 3.
    """

    def __init__(
        self,
        losses: int | Sequence[str],
        transforms: Transform | Iterable[Transform] | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        n_losses, names = check_loss_names(losses)
        self.losses = Losses(tuple(range(n_losses)), n_losses, names)
        self.pipeline = Pipeline(GradDrop() if transforms is None else transforms)
        if self.pipeline.weightings:
            raise ValueError(
                f"`transforms` has {type(self.pipeline.weightings[0]).__name__}, which needs the loss values, but a "
                f"MultiLossLayer sees none. Give it to a MultiLossOptimizer."
            )
        if self.pipeline.order.at_parameters_alone:
            raise ValueError(
                f"`transforms` has {self.pipeline.order.at_parameters_alone}, which is about each parameter, but a "
                f'MultiLossLayer sees one activation. Give it to a MultiLossOptimizer with at="parameters".'
            )
        self.pipeline.check(self.losses)
        self.process_group = process_group
        self._key = register(self)

    def forward(self, activation: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(activation, Tensor) or not activation.is_floating_point():
            found = str(activation.dtype) if isinstance(activation, Tensor) else type(activation).__name__
            raise TypeError(f"`activation` must be a real floating-point tensor, but it is {found}.")
        if self.pipeline.marginalized is not None:
            dims_of(self.pipeline.marginalized, activation.ndim)
        if not self.training or not self.pipeline.gradient_transforms:
            return (activation,) * len(self.losses)
        self._refuse_scaled(activation)
        aliases: tuple[Tensor, ...]
        if torch.compiler.is_compiling():
            settings = len(self.losses), self._key, self.pipeline.marginalized is not None
            aliases = CompiledFanOut.apply(activation, *settings)  # type: ignore[no-untyped-call]
        else:
            aliases = FanOut.apply(activation, self)  # type: ignore[no-untyped-call]
        return aliases

    def combine(
        self, rows: Sequence[Tensor | None], activation: Tensor | None, made_by: int | None = None
    ) -> Tensor | None:
        """The combined gradient of the rows that came back, one or None for each loss, in a graph of a known thread."""
        check_not_refused(made_by)
        ranks = ranks_of(self.process_group)
        self.pipeline.join(ranks, self.losses)
        with self.pipeline.watched():
            combination = self.pipeline.combination(self.losses, [Site(self.losses, activation, ranks)])
            for loss, row in enumerate(rows):
                if row is not None:
                    combination.add(0, loss, row)
            return combination.result()[0]

    @property
    def transforms(self) -> list[Transform]:
        """The transforms in their order. Their random state is not in the model's `state_dict`, which stays as it is
        without this layer: to resume bit by bit, save each transform's own `state_dict()`."""
        return self.pipeline.transforms

    def _refuse_scaled(self, activation: Tensor) -> None:
        dependent = [transform for transform in self.transforms if not transform.scale_equivariant]
        device = activation.device.type
        if dependent and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            raise RuntimeError(
                f"{type(dependent[0]).__name__} depends on the scale of the losses, and a MultiLossLayer cannot take "
                f"out the factor of a GradScaler. Give it to a MultiLossOptimizer, or use bfloat16."
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._key = register(self)  # a copy is a layer of its own

    def extra_repr(self) -> str:
        return f"{list(self.losses.names) if self.losses.names else self.losses.n_losses}, {self.pipeline!r}"
