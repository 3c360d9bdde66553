"""GradDrop as a transform: settings per loss name, private random state. The maths is in `_signs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._checks import Keep, check_flag, check_keep, check_marginalize, check_share, try_keep
from .._draws import Draws
from .._draws import uniform as draw
from .._dtypes import widen
from .._scratch import Scratch
from .._signs import SignSums, dims_of, kept_shares, marginal, norm_ratio, pick_positive
from .._transform import Losses, RowTransform, Site, Stream
from .settings import Setting, by_loss, check_setting


class GradDrop(RowTransform):
    r"""Gradient Sign Dropout: where the losses' gradients disagree in sign, pick one sign at random.

    The positive sign is picked with probability $f(P)$, where $P$ is the [purity][mtopt.sign_purity]. The gradients of
    the other sign are dropped, except for their leak. With `keep=1` and no leak, the result is an unbiased estimate of
    the sum of the gradients, with variance $a \cdot b$ (positive times negative mass).

    Args:
        leak: Share of its gradient, in [0, 1], that a loss keeps whatever sign is picked: one number, one per loss, or
            a dict by loss name (0 for those not named). 1 protects a loss.
        keep: Slope $k \ge 0$ of $f(P) = \mathrm{clip}(½ + k (P - ½), 0, 1)$, or the function $f$ itself.
            0 is "Random GradDrop": the sign is picked by a fair coin.
        marginalize: Dims of the activation over which one decision is made, from $\sum \mathrm{sgn}(A) \circ g_i$:
            0 for the batch, `(0, 2, 3)` for batch and space. It is needed where losses come from different examples,
            and possible only where the activation is known: in a `MultiLossLayer` or with `at=module`.
        renormalize: Whether to rescale to the norm of the plain sum, tensor by tensor. This biases the mean, and makes
            total cancellation a fixed point.
        seed: Seed of the private random numbers. `None` derives one from the state of torch's global generator, which
            stays as it was. Each method that is made gets another seed, and the same one again after
            `torch.manual_seed`.

    Raises:
        TypeError: If `keep` is neither a number nor a function of shares, or another setting has the wrong type.
        ValueError: If `leak`, `keep` or `marginalize` is out of range.

    Example:
        >>> GradDrop(leak={"seg": 1.0})
        GradDrop(leak={'seg': 1.0})

    Source:
        Algorithm 1 of Chen et al. 2020, [arXiv:2010.06808](https://arxiv.org/abs/2010.06808).
    """

    def __init__(
        self,
        *,
        leak: Setting = 0.0,
        keep: Keep = 1.0,
        marginalize: int | Sequence[int] | None = None,
        renormalize: bool = False,
        seed: int | None = None,
    ) -> None:
        self.leak = check_setting(leak, "leak", check_share)
        self.keep = try_keep(check_keep(keep))
        self.marginalize = check_marginalize(marginalize)
        self.renormalize = check_flag(renormalize, "renormalize")
        self.draws = Draws(seed)
        self.scratch = Scratch()

    scale_equivariant = True
    uses_values = False

    @property
    def sums_over_ranks(self) -> bool:  # type: ignore[override]  # here it depends on the settings
        return self.marginalize is not None or self.renormalize

    def check(self, losses: Losses) -> None:
        self.leaks(losses)

    def leaks(self, losses: Losses) -> list[float]:
        """The leak of each row."""
        return by_loss(self.leak, losses, "leak", 0.0)

    def transform(self, rows: Tensor, site: Site) -> Tensor:
        return (widen(rows) * self.shares(rows, site)).to(rows.dtype)

    def shares(self, rows: Tensor, site: Site) -> Tensor:
        wide = widen(rows)
        shares = self.decided(self.signed(wide, site), site)
        if self.renormalize:
            shares = shares * norm_ratio(wide.sum(0), (wide * shares).sum(0), site.ranks).to(shares)
        return shares

    def signed(self, rows: Tensor, site: Site) -> Tensor:
        """What the signs are taken of, one for each row and decision."""
        return marginal(rows, site.activation, self.dims(rows.ndim - 1))

    def decided(self, signed: Tensor, site: Site) -> Tensor:
        """How much of each row is kept, from what the signs are taken of."""
        leaks = self.leaks(site.losses)
        if self.joint(site, signed.ndim - 1):
            uniform = draw(signed[0], self.draws.next(signed.device))
            votes, uniform, several = _votes_of_all_ranks(signed, uniform, site)
            picked = pick_positive(votes, uniform, self.keep)
            shares = kept_shares(torch.stack([votes[i] for i in site.losses.indices]), picked, leaks)
            return torch.where(several, shares, torch.ones_like(shares))
        if len(signed) == 1:
            return torch.ones_like(signed)
        uniform = draw(signed[0], self.next_generator(signed.device, site), part=site.part, scratch=self.scratch)
        return kept_shares(signed, pick_positive(signed, uniform, self.keep), leaks)

    def joint(self, site: Site, ndim: int) -> bool:
        """Whether ranks decide together. They split the batch, dim 0: else each decides for its own examples."""
        dims = self.dims(ndim)
        return dims is not None and 0 in dims and site.ranks.size > 1

    def dims(self, ndim: int) -> tuple[int, ...] | None:
        return None if self.marginalize is None else dims_of(self.marginalize, ndim)

    def stream(self, site: Site) -> Stream | None:
        if self.marginalize is not None:
            return _MarginalStream(self, site)
        lone_rows_count = self.renormalize and site.ranks.size > 1 and site.part is None
        return None if lone_rows_count else _GradDropStream(self, site)

    def next_generator(self, device: torch.device, site: Site) -> torch.Generator | None:
        """For draws over the rows at a site: apart from the other ranks' at an activation, the same at a parameter."""
        return self.draws.next(device, site.ranks.rank if site.part is None else 0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "scratch": Scratch()}


class _MarginalStream:
    """GradDrop at one site by a joint decision. It keeps the rows as they come, without copying them."""

    def __init__(self, method: GradDrop, site: Site) -> None:
        assert site.activation is not None
        self.method = method
        self.site = site
        self.needs_lone_rows = method.renormalize or method.joint(site, site.activation.ndim)
        self.sign = widen(site.activation.sign())
        self.dims = method.dims(site.activation.ndim)
        self.positions: list[int] = []
        self.rows: list[Tensor] = []
        self.signed: list[Tensor] = []

    def add(self, position: int, row: Tensor) -> None:
        self.positions.append(position)
        self.rows.append(row)
        scratch = self.method.scratch
        outward = torch.mul(widen(row), self.sign, out=scratch.take(self.sign))
        self.signed.append(outward.sum(self.dims, keepdim=True))
        scratch.give(outward)

    def result(self) -> Tensor:
        site = replace(self.site, losses=self.site.losses.at(self.positions))
        shares = self.method.decided(torch.stack(self.signed), site)
        combined = widen(self.rows[0]) * shares[0]
        for row, share in zip(self.rows[1:], shares[1:], strict=True):
            combined.addcmul_(widen(row), share)
        if self.method.renormalize:
            combined = combined * norm_ratio(sum(map(widen, self.rows)), combined, site.ranks)  # type: ignore[arg-type]
        return combined.to(self.rows[0].dtype)


class _GradDropStream:
    """GradDrop at one site, row by row."""

    needs_lone_rows = False

    def __init__(self, method: GradDrop, site: Site) -> None:
        self.method = method
        self.site = site
        self.leaks = method.leaks(site.losses)
        self.sums = SignSums(leaky=any(self.leaks), scratch=method.scratch)

    def add(self, position: int, row: Tensor) -> None:
        self.sums.add(row, self.leaks[position])

    def result(self) -> Tensor:
        assert self.sums.total is not None
        generator = self.method.next_generator(self.sums.total.device, self.site)
        uniform = self.sums.draw(generator, self.site.part)
        method = self.method
        return self.sums.result(uniform, method.keep, renormalize=method.renormalize, ranks=self.site.ranks)


def _votes_of_all_ranks(signed: Tensor, uniform: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """One all-reduce: what each loss wants on all ranks, rank 0's draws, and whether there are several losses at all.

    A loss may be absent on some ranks, so the votes go by the loss's index, one at a time: a list of indices would be
    copied to a device, which the host would wait for.
    """
    votes = signed.new_zeros(site.losses.n_losses, *uniform.shape)
    present = signed.new_zeros(site.losses.n_losses)
    for index, wanted in zip(site.losses.indices, signed, strict=True):
        votes[index] = wanted
        present[index].fill_(1)
    mine = uniform if site.ranks.rank == 0 else torch.zeros_like(uniform)
    sums = site.ranks.sum(torch.cat([votes.flatten(), mine.flatten(), present]))
    end, stop = votes.numel(), votes.numel() + uniform.numel()
    return sums[:end].view_as(votes), sums[end:stop].view_as(uniform), sums[stop:].count_nonzero() > 1
