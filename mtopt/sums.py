"""Running sums over rows, from which a sign dropout is decided, and the memory that they work in. No settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .distributed import ALONE, Ranks
from .draws import Part

Keep = float | Callable[[Tensor], Tensor]


class Scratch:
    """Memory for intermediate numbers, kept for the next site: on a CPU, fresh memory costs more than sums in it."""

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
        return tensor.device.type == "cpu" and tensor.numel() >= self.SMALL


class SignSums:
    """Sign dropout from running sums over the rows: its memory does not grow with the number of losses."""

    def __init__(self, *, leaky: bool, scratch: Scratch | None = None) -> None:
        self.leaky = leaky
        self.scratch = Scratch() if scratch is None else scratch
        self.total: Tensor | None = None

    def add(self, row: Tensor, leak: float) -> None:
        # Both sums take the same rows in the same order: only then is `total - positive`
        # exactly 0 for unanimous signs.
        if self.total is None:
            self.dtype = row.dtype
            self.total = row.to(wide_dtype(row.dtype), copy=True)
            self.positive = torch.clamp_min(self.total, 0, out=self.scratch.take(self.total))
            if self.leaky:
                self.droppable = self.total * (1 - leak)
                self.droppable_positive = self.positive * (1 - leak)
            return
        row = row.to(self.total.dtype)
        self.total.add_(row)
        part = torch.clamp_min(row, 0, out=self.scratch.take(self.total))
        self.positive.add_(part)
        if self.leaky:
            self.droppable.add_(row, alpha=1 - leak)
            self.droppable_positive.add_(part, alpha=1 - leak)
        self.scratch.give(part)

    def draw(self, generator: torch.Generator | None, part: Part | None = None) -> Tensor:
        """The draws that `result` needs; where the rows are part of a larger tensor, that part of its draws."""
        assert self.total is not None
        uniform = self.scratch.take(self.total)
        if part is None:
            return self._fill(uniform, generator)
        whole = self._fill(torch.empty(part.shape, dtype=uniform.dtype, device=uniform.device), generator)
        return uniform.copy_(part.of(whole, uniform.shape))

    def _fill(self, uniform: Tensor, generator: torch.Generator | None) -> Tensor:
        if uniform.dtype != torch.float32 or not self.scratch.keeps(uniform) or uniform.numel() % 2:
            return uniform.uniform_(generator=generator)
        # On a CPU, 24 bits of each half of 64-bit draws are the same grid in two thirds of the time.
        bits = self.scratch.take(uniform)
        bits.as_strided((bits.numel(),), (1,)).view(torch.int64).random_(generator=generator)
        uniform.copy_(bits.view(torch.int32).bitwise_and_(0xFFFFFF)).mul_(2**-24)
        self.scratch.give(bits)
        return uniform

    def signs(self, uniform: Tensor, keep: Keep) -> Tensor:
        """The sign that is picked at each coordinate, 1 or -1. The sums and `uniform` are used up."""
        total, positive = self.total, self.positive
        assert total is not None
        self.total = None
        del self.positive
        negative = total.sub_(positive).clamp_max_(0)
        return uniform.lt_(keep_probability(positive, negative, keep)).mul_(2).sub_(1)

    def result(self, uniform: Tensor, keep: Keep, *, renormalize: bool, ranks: Ranks = ALONE) -> Tensor:
        """The combined gradient. The sums and `uniform` are used up."""
        total, positive = self.total, self.positive
        assert total is not None
        self.total = None
        del self.positive
        negative = (total - positive if self.leaky or renormalize else total.sub_(positive)).clamp_max_(0)
        purity = self.scratch.take(negative)
        picked = uniform.lt_(keep_probability(positive, negative, keep, out=purity))  # 1 or 0
        # lerp multiplies: an inf on the dropped side becomes NaN, and an overflow stays visible.
        if self.leaky:
            dropped = self.droppable.sub_(self.droppable_positive).lerp_(self.droppable_positive, 1 - picked)
            combined = total - dropped
        else:
            combined = negative.lerp_(positive, picked)
        if renormalize:
            combined = combined * norm_ratio(total, combined, ranks)
        self.scratch.give(positive, purity, picked)
        return combined.to(self.dtype)


def keep_probability(positive: Tensor, negative: Tensor, keep: Keep, *, out: Tensor | None = None) -> Tensor:
    """f(P) from the positive and negative mass; where there is no mass it does not matter."""
    mass = torch.sub(positive, negative, out=out)
    purity = torch.div(positive, mass, out=mass)  # exactly 1 or 0 where the signs agree
    if callable(keep):
        return keep(purity.masked_fill((positive == 0) & (negative == 0), 0.5))
    return purity if keep == 1 else purity.sub_(0.5).mul_(keep).add_(0.5).clamp_(0, 1)


def norm_ratio(total: Tensor, combined: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """‖total‖ / ‖combined‖ over the parts on all ranks, or 1 where nothing is left to rescale."""
    norms = torch.stack([total.norm(), combined.norm()])
    if ranks.size > 1:
        norms = ranks.sum(norms.square()).sqrt()
    before, after = norms
    return torch.where(after > 0, before / after, torch.ones_like(after))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def widen(rows: Tensor) -> Tensor:
    """Half-precision rows in float32, where sums and weights neither overflow nor are rounded."""
    return rows.to(wide_dtype(rows.dtype))


def solid_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
