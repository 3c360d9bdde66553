"""A tensor that may be split over ranks, and what this process holds of it. Calls nobody."""

from __future__ import annotations

from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def like(parameter: Tensor, held: Tensor) -> Tensor:
    """What this process holds, as a tensor that is split as the parameter is."""
    if not hasattr(parameter, "to_local"):
        return held
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    sharded: Tensor = DTensor.from_local(
        held, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return sharded
