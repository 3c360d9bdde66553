"""Memory for intermediate numbers, kept from site to site. No arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Memory that is taken and given back: on a CPU, fresh memory costs more than sums in it."""

    KEEP = 3
    SMALL = 2**14  # below this many numbers fresh memory is cheap

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, like: Tensor) -> Tensor:
        """An uninitialized tensor like a dense one."""
        if self.keeps(like):  # elsewhere torch's allocator keeps memory itself, in the order of its streams
            for i, free in enumerate(self._free):
                if free.dtype == like.dtype and free.numel() >= like.numel():
                    return self._free.pop(i).as_strided(like.shape, like.stride())
        return torch.empty_like(like)

    def give(self, *tensors: Tensor) -> None:
        """Take back tensors that nobody uses any more."""
        for tensor in tensors:
            if self.keeps(tensor) and len(self._free) < self.KEEP:
                whole = tensor.untyped_storage().nbytes() // tensor.element_size()
                self._free.append(tensor.detach().as_strided((whole,), (1,), 0))

    def keeps(self, tensor: Tensor) -> bool:
        """Whether memory like this is kept: large, and on a CPU."""
        return tensor.numel() >= self.SMALL and tensor.device.type == "cpu"
