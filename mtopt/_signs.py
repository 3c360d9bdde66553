"""Sign purity and sign dropout on plain tensors: no modules, no hooks, no optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import Keep, check_keep, check_leaks, check_marginalize
from ._draws import Part
from ._draws import uniform as draw
from ._dtypes import holds_squares, solid_dtype, wide_dtype, widen
from ._ranks import ALONE, Ranks
from ._scratch import Scratch


def sign_purity(rows: Tensor) -> Tensor:
    r"""Share of the gradient mass that is positive, coordinate by coordinate.

    $$P = \frac{\sum_i \max(g_i, 0)}{\sum_i |g_i|} \in [0, 1]$$

    Args:
        rows: One gradient per loss, shape `(T, *S)`.

    Returns:
        Purity, shape `S`, float32 or wider; 0.5 where every row is zero.

    Raises:
        TypeError: If `rows` is not a real floating-point tensor.
        ValueError: If `rows` has no loss dimension, or no row.

    Example:
        >>> sign_purity(torch.tensor([[7.0, 3.0, 0.0], [-3.0, 1.0, 0.0]]))
        tensor([0.7000, 1.0000, 0.5000])

    Source:
        Eq. (1) of Chen et al. 2020, [arXiv:2010.06808](https://arxiv.org/abs/2010.06808).
    """
    _check_rows(rows)
    rows = widen(rows)
    positive, negative = rows.clamp_min(0).sum(0), rows.clamp_max(0).sum(0)
    purity = positive / (positive - negative)
    return purity.masked_fill((positive == 0) & (negative == 0), 0.5)


def sign_dropout(
    rows: Tensor,
    *,
    uniform: Tensor | None = None,
    leak: float | Sequence[float] = 0.0,
    keep: Keep = 1.0,
    activation: Tensor | None = None,
    marginalize: int | Sequence[int] | None = None,
    renormalize: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Combine the rows by Gradient Sign Dropout: pick one sign per coordinate, drop the rest.

    With purity $P$, keep function $f$ and one $U \sim \mathrm{Uniform}[0, 1)$ shared by all losses,
    the positive sign is picked iff $U < f(P)$, and

    $$\tilde g = \sum_i \bigl(\ell_i + (1 - \ell_i) M_i\bigr) g_i, \qquad
      M_i = 0 \text{ iff } g_i \text{ has the sign that was not picked.}$$

    Args:
        rows: One gradient per loss, shape `(T, *S)`.
        uniform: The draws $U$ in [0, 1), shape `S`, or `S` without the marginalized dims.
            `None` draws them, in float32 or wider whatever the dtype of `rows`.
        leak: Share $\ell \in [0, 1]$ of its gradient that a loss keeps whatever the pick: one number, or one per loss.
        keep: Slope $k \ge 0$ of $f(P) = \mathrm{clip}(½ + k (P - ½), 0, 1)$, or $f$ itself.
            1 makes the result an unbiased estimate of the sum; 0 ignores purity.
        activation: The activation $A$ that the rows are gradients of, shape `S`. Needed by `marginalize`.
        marginalize: Dims of `S` over which one joint decision is taken, on $\sum \mathrm{sgn}(A) \circ g_i$.
        renormalize: Rescale the result to the norm of the plain sum. It biases the mean, and total
            cancellation becomes a fixed point.
        generator: Source of the draws when `uniform` is not given.

    Returns:
        The combined gradient, shape `S`, dtype of `rows`.

    Raises:
        TypeError: If `rows` is not a real floating-point tensor.
        ValueError: If an argument is out of range or does not fit the shape of `rows`.

    Example:
        >>> rows = torch.tensor([[7.0, 3.0], [-3.0, 1.0]])
        >>> sign_dropout(rows, uniform=torch.tensor([0.9, 0.9]))
        tensor([-3.,  4.])

    Source:
        Algorithm 1 of Chen et al. 2020, [arXiv:2010.06808](https://arxiv.org/abs/2010.06808).
    """
    _check_rows(rows)
    leaks = check_leaks(leak, len(rows))
    keep = check_keep(keep)
    dims = check_marginalize(marginalize)
    if dims is not None:
        if activation is None or activation.shape != rows.shape[1:]:
            found = "none was given" if activation is None else f"it has shape {tuple(activation.shape)}"
            raise ValueError(
                f"`activation` must have the shape of a row, {tuple(rows.shape[1:])}, for `marginalize`, but {found}."
            )
        dims = dims_of(dims, activation.ndim)
    shape = decision_shape(rows.shape[1:], dims)
    if uniform is not None and uniform.numel() != math.prod(shape):
        raise ValueError(
            f"`uniform` must have one draw per decision, shape {tuple(shape)}, but it has {tuple(uniform.shape)}."
        )
    if dims is None:
        sums = SignSums(leaky=any(leaks))
        for row, share in zip(rows, leaks, strict=True):
            sums.add(row, share)
        draws = sums.draw(generator) if uniform is None else uniform.reshape(shape).to(sums.total, copy=True)
        return sums.result(draws, keep, renormalize=renormalize)
    wide = widen(rows)
    signed = marginal(wide, activation, dims)
    draws = draw(signed[0], generator) if uniform is None else uniform.reshape(shape)
    masked = wide * kept_shares(signed, pick_positive(signed, draws, keep), leaks)
    if renormalize:
        masked = masked * norm_ratio(wide.sum(0), masked.sum(0))
    return masked.sum(0).to(rows.dtype)


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
            self.borrowed = row.dtype == wide_dtype(row.dtype) and row.is_contiguous()  # the row itself, as yet
            self.total = row if self.borrowed else row.to(wide_dtype(row.dtype), copy=True)
            self.positive = torch.clamp_min(self.total, 0, out=self.scratch.take(self.total))
            if self.leaky:
                self.droppable = self.total * (1 - leak)
                self.droppable_positive = self.positive * (1 - leak)
            return
        row = row.to(self.total.dtype)
        if self.borrowed:
            self.total, self.borrowed = self.total + row, False
        else:
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
        return draw(self.total, generator, part=part, scratch=self.scratch)

    def result(self, uniform: Tensor, keep: Keep, *, renormalize: bool, ranks: Ranks = ALONE) -> Tensor:
        """The combined gradient. The sums and `uniform` are used up."""
        total, positive = self.total, self.positive
        assert total is not None
        if self.borrowed:
            total = total.clone()
        self.total = None
        del self.positive
        negative = (total - positive if self.leaky or renormalize else total.sub_(positive)).clamp_max_(0)
        purity = self.scratch.take(negative)
        picked = pick(positive, negative, uniform, keep, out=purity)
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


def pick(positive: Tensor, negative: Tensor, uniform: Tensor, keep: Keep, *, out: Tensor | None = None) -> Tensor:
    """1 where the positive sign is picked, else 0, in the memory of `uniform`; `out` is memory for the purity.

    `positive` and `negative` are the sums of all entries above and below 0.
    """
    return uniform.lt_(_keep_probability(positive, negative, keep, out))


def _keep_probability(positive: Tensor, negative: Tensor, keep: Keep, out: Tensor | None) -> Tensor:
    """f(P) from the positive and negative mass; where there is no mass it does not matter."""
    mass = torch.sub(positive, negative, out=out)
    purity = torch.div(positive, mass, out=mass)  # exactly 1 or 0 where the signs agree
    if callable(keep):
        return keep(purity.masked_fill((positive == 0) & (negative == 0), 0.5))
    return purity if keep == 1 else purity.sub_(0.5).mul_(keep).add_(0.5).clamp_(0, 1)


def norm_ratio(total: Tensor, combined: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """‖total‖ / ‖combined‖ over the parts on all ranks, or 1 where nothing is left to rescale."""
    norms = torch.stack([_norm(total), _norm(combined)])
    if ranks.size > 1:
        norms = ranks.sum(norms.square()).sqrt()
    before, after = norms
    return torch.where(after > 0, before / after, torch.ones_like(after))


def _norm(tensor: Tensor) -> Tensor:
    """‖tensor‖ in the widest dtype, also where float32 does not hold the squares, as of 1e-26 or 1e34."""
    solid = solid_dtype(tensor.device)
    norm: Tensor = tensor.norm()
    if tensor.device.type == "cpu" and holds_squares(float(norm) ** 2, tensor.numel()):
        return norm.to(solid)  # several times as fast; elsewhere it would have to be waited for
    wide: Tensor = torch.linalg.vector_norm(tensor, dtype=solid)
    return wide


def marginal(rows: Tensor, activation: Tensor | None, dims: tuple[int, ...] | None) -> Tensor:
    """What the signs are taken of: the rows, or their sum over `dims` as they push the activation away from zero."""
    if dims is None:
        return rows
    assert activation is not None
    return (rows * activation.sign()).sum([d + 1 for d in dims], keepdim=True)


def pick_positive(signed: Tensor, draws: Tensor, keep: Keep) -> Tensor:
    """1 where the positive sign is picked, else 0, from all rows at once."""
    return pick(signed.clamp_min(0).sum(0), signed.clamp_max(0).sum(0), draws.to(signed, copy=True), keep)


def kept_shares(signed: Tensor, picked: Tensor, leaks: Sequence[float]) -> Tensor:
    """How much of each row is kept, in the shape of `signed`: 1, or its leak."""
    opposite = (signed * (2 * picked - 1)).lt_(0)  # 1 - mask, as a number
    if not any(leaks):
        return 1 - opposite
    for i, leak in enumerate(leaks):  # one by one: a tensor of the leaks would be copied to a device, and waited for
        opposite[i].mul_(1 - leak)
    # Not leak + (1 - leak) * mask: this form is exactly 1 where nothing is dropped.
    return 1 - opposite


def decision_shape(shape: Sequence[int], dims: tuple[int, ...] | None) -> tuple[int, ...]:
    """Shape of the draws: size 1 along the marginalized dims."""
    return tuple(1 if d in (dims or ()) else size for d, size in enumerate(shape))


def dims_of(dims: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """`marginalize` as non-negative dims of an activation with `ndim` dims."""
    for d in dims:
        if not -ndim <= d < ndim:
            raise ValueError(f"`marginalize` names dim {d}, but the activation has only {ndim} dims.")
    positive = tuple(sorted({d % ndim for d in dims}))
    if len(positive) < len(dims):
        raise ValueError(f"`marginalize` names one dim of the activation twice: {dims}.")
    return positive


def _check_rows(rows: Tensor) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        found = str(rows.dtype) if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"`rows` must be a real floating-point tensor of shape (T, *S), but it is {found}.")
    if rows.ndim == 0 or len(rows) == 0:
        raise ValueError(
            f"`rows` must have one row per loss, shape (T, *S) with T > 0, but it has shape {tuple(rows.shape)}."
        )
