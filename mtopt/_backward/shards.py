"""Parameters that FSDP2 has split over the ranks: where each shard lies, and who holds the others. No rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .._draws import Part
from .._ranks import ALONE, Ranks, ranks_of
from .._sharded import like
from .._torch import is_flattened_by_fsdp1
from .._transform import Losses, Site

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shard:
    """One parameter's part on this rank.

    Attributes:
        ranks: Those that hold the other parts.
        replicas: Those that hold the same part.
    """

    parameter: DTensor
    part: Part
    ranks: Ranks
    replicas: Ranks

    def site(self, losses: Losses) -> Site:
        return Site(losses, None, self.ranks, self.part)

    def local(self, gradient: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        assert isinstance(gradient, DTensor)
        if gradient.placements != self.parameter.placements:
            raise RuntimeError(
                f"A sharded parameter has placements {self.parameter.placements}, but its gradient has "
                f'{gradient.placements}, so its rows cannot be combined. Use `at="activations"`.'
            )
        return gradient.to_local()

    def whole(self, combined: Tensor) -> Tensor:
        """The combined part as a gradient of the parameter."""
        return like(self.parameter, combined)


def shards_of(parameters: Sequence[Tensor]) -> list[Shard]:
    """The shards of the parameters that are trained; empty where none is sharded.

    Raises:
        RuntimeError: If only some are sharded, or they are split in a way in which rows cannot be combined.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if any(map(is_flattened_by_fsdp1, trained)):
        raise RuntimeError(
            "The parameters are flattened by FullyShardedDataParallel (FSDP1), where rows at parameters cannot be had. "
            'Use FSDP2 (torch.distributed.fsdp.fully_shard), or `at="activations"`.'
        )
    if "torch.distributed.tensor" not in sys.modules:  # slow to import, and nobody has made a DTensor yet
        return []
    from torch.distributed.tensor import DTensor

    sharded = [parameter for parameter in trained if isinstance(parameter, DTensor)]
    if sharded and len(sharded) < len(trained):
        raise RuntimeError(
            "Some of the optimizer's parameters are sharded and some are not, so their rows cannot be combined alike. "
            'Apply fully_shard to the root module, too, or use `at="activations"`.'
        )
    return [_shard(parameter) for parameter in sharded]


def _shard(parameter: DTensor) -> Shard:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Split

    mesh = parameter.device_mesh
    start = [0] * parameter.ndim
    ranks = replicas = ALONE
    for dim, placement in enumerate(parameter.placements):
        others = ranks_of(mesh.get_group(dim))
        if isinstance(placement, Replicate) and replicas is ALONE:
            replicas = others
        elif type(placement) is Split and ranks is ALONE:
            ranks = others
            size = -(-parameter.shape[placement.dim] // mesh.size(dim))  # as torch.chunk cuts
            start[placement.dim] = min(mesh.get_local_rank(dim) * size, parameter.shape[placement.dim])
        else:
            raise RuntimeError(
                f"A parameter is sharded as {parameter.placements}, and its rows cannot be combined: at most one dim "
                f'of the mesh may split it, and one replicate it. Use `at="activations"`.'
            )
    return Shard(parameter, Part(tuple(parameter.shape), tuple(start)), ranks, replicas)
