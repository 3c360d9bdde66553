"""Sign purity and sign dropout on plain tensors: no modules, no hooks, no optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .sums import Keep, SignSums, keep_probability, norm_ratio, wide_dtype, widen


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
    leaks = check_leak(leak, len(rows))
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
        wide_type = wide_dtype(rows.dtype)
        draws = sums.draw(generator) if uniform is None else uniform.reshape(shape).to(wide_type, copy=True)
        return sums.result(draws, keep, renormalize=renormalize)
    wide = widen(rows)
    signed = marginal(wide, activation, dims)
    draws = draw(shape, rows, generator) if uniform is None else uniform.reshape(shape)
    masked = wide * kept_shares(signed, pick_positive(signed, draws, keep), leaks)
    if renormalize:
        masked = masked * norm_ratio(wide.sum(0), masked.sum(0))
    return masked.sum(0).to(rows.dtype)


def marginal(rows: Tensor, activation: Tensor | None, dims: tuple[int, ...] | None) -> Tensor:
    """What the signs are taken of: the rows, or their sum over `dims` as they push the activation away from zero."""
    if dims is None:
        return rows
    assert activation is not None
    return (rows * activation.sign()).sum([d + 1 for d in dims], keepdim=True)


def pick_positive(signed: Tensor, uniform: Tensor, keep: Keep) -> Tensor:
    """Whether the positive sign is picked, coordinate by coordinate."""
    return uniform < keep_probability(signed.clamp_min(0).sum(0), signed.clamp_max(0).sum(0), keep)


def kept_shares(signed: Tensor, picked: Tensor, leaks: Sequence[float]) -> Tensor:
    """How much of each row is kept, in the shape of `signed`: 1, or its leak."""
    opposite = (signed * (2 * picked.to(signed.dtype) - 1)).lt_(0)  # 1 - mask, as a number
    if not any(leaks):
        return 1 - opposite
    drop = 1 - torch.tensor(leaks, dtype=signed.dtype, device=signed.device)
    # Not leak + (1 - leak) * mask: this form is exactly 1 where nothing is dropped.
    return 1 - drop.reshape(-1, *[1] * (signed.ndim - 1)) * opposite


def draw(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """U ~ Uniform[0, 1), in float32 or wider: in half precision it is coarse, and may be 1, which drops all."""
    return torch.rand(tuple(shape), dtype=wide_dtype(like.dtype), device=like.device, generator=generator)


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


def check_leak(leak: float | Sequence[float], n_losses: int | None = None) -> tuple[float, ...]:
    """The leaks as numbers in [0, 1]; one for each of `n_losses` where that is known."""
    if isinstance(leak, (int, float)):
        return (check_share(leak, "leak"),) * (n_losses or 1)
    leaks = tuple(check_share(value, f"leak[{i}]") for i, value in enumerate(leak))
    if n_losses is not None and len(leaks) != n_losses:
        raise ValueError(
            f"`leak` has {len(leaks)} values for {n_losses} losses. Give one number, or one number per loss."
        )
    return leaks


def check_share(value: float, label: str) -> float:
    """A leak: a number in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{label}` must be between 0 (pure GradDrop) and 1 (never dropped), but it is {value}.")
    return float(value)


def check_keep(keep: Keep) -> Keep:
    if callable(keep):
        return keep
    if not isinstance(keep, (int, float)):
        raise TypeError(f"`keep` must be a number or a function of the purity, but it is {type(keep).__name__}.")
    if not 0 <= keep < math.inf:
        raise ValueError(f"`keep` must be 0 or a finite number above it, but it is {keep}.")
    return float(keep)


def check_marginalize(marginalize: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if marginalize is None:
        return None
    dims = (marginalize,) if isinstance(marginalize, int) else tuple(marginalize)
    if not dims or any(isinstance(d, bool) or not isinstance(d, int) for d in dims):
        raise ValueError(f"`marginalize` must be a dim or several dims of the activation, but it is {marginalize!r}.")
    return dims


def _check_rows(rows: Tensor) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        found = str(rows.dtype) if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"`rows` must be a real floating-point tensor of shape (T, *S), but it is {found}.")
    if rows.ndim == 0 or len(rows) == 0:
        raise ValueError(
            f"`rows` must have one row per loss, shape (T, *S) with T > 0, but it has shape {tuple(rows.shape)}."
        )
