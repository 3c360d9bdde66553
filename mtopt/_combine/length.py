"""The combined gradient at one length, whatever the method: that of the plain sum, or of the mean. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._dtypes import solid_dtype, widen
from .._ranks import Ranks
from .._transform import Site
from .combination import Shares, Traced
from .order import Order

LENGTHS = ("sum", "mean")


class Length:
    """The length that was asked for, and how long what was combined last was without it.

    Raises:
        ValueError: If it is none that is known, or does not go together with the transforms.
    """

    def __init__(self, given: str | None, order: Order) -> None:
        if given not in (None, *LENGTHS):
            raise ValueError(f'`length` must be None, "sum" or "mean", but it is {given!r}.')
        if given is not None and not order.gradients:
            raise ValueError(
                "`length` rescales what transforms make of the gradients, but there is none. Leave it out; weights of "
                "the losses scale a plain sum."
            )
        for other in (order.whitening, order.every):
            if given is not None and other is not None:
                reason = "divides by a length of its own" if other is order.whitening else "sees no rows in most steps"
                raise ValueError(
                    f"`length` and {type(other).__name__}, which {reason}, do not go together. Leave one out."
                )
        self.given = given
        self.ratio: Tensor | None = None  # to the plain sum

    def of(self, inner: Traced, sites: Sequence[Site]) -> Traced:
        """A combination whose results have that length."""
        if self.given is None or not sites:
            return inner
        return OneLength(inner, sites, 1.0 if self.given == "sum" else 1 / len(sites[0].losses), self)

    def __str__(self) -> str:
        if self.given is None or self.ratio is None:
            return ""
        return (
            f'length="{self.given}": before it was rescaled, what was combined had {float(self.ratio):.3g} times the '
            f"length of the plain sum"
        )


class OneLength:
    """Hands rows on to a combination, and rescales all that it made of several, over all sites, by one factor.

    Args:
        inner: The combination.
        sites: Its sites.
        share: Of the length of the plain sum: 1, or 1/T for the mean.
        length: Where the ratio of the step is kept.
    """

    def __init__(self, inner: Traced, sites: Sequence[Site], share: float, length: Length) -> None:
        self.inner = inner
        self.sites = sites
        self.share = share
        self.length = length
        self.totals: list[Tensor | None] = [None] * len(sites)
        self.counts = [0] * len(sites)

    def add(self, site: int, position: int, row: Tensor) -> None:
        total = self.totals[site]
        if total is None:
            self.totals[site] = row
        else:
            self.totals[site] = widen(total) + row if self.counts[site] == 1 else total.add_(row)
        self.counts[site] += 1
        self.inner.add(site, position, row)

    def result(self) -> list[Tensor | None]:
        results = self.inner.result()
        changed = [
            i
            for i, site in enumerate(self.sites)
            if self.counts[i] > 1 or site.counts_alone or (site.ranks.size > 1 and site.part is None)
        ]
        squares = _summed([(self.sites[i].ranks, self.totals[i], results[i]) for i in changed])
        if squares is None:
            return results
        before, after = squares.sqrt()
        self.length.ratio = torch.where(before > 0, after / before, 1.0)
        factor = torch.where(after > 0, self.share * before / after, 1.0)
        for i in changed:
            if (combined := results[i]) is not None:
                results[i] = (widen(combined) * factor.to(combined.device)).to(combined.dtype)
        return results

    def shares(self, site: int) -> Shares:
        return self.inner.shares(site)


def _summed(found: Sequence[tuple[Ranks, Tensor | None, Tensor | None]]) -> Tensor | None:
    """The squared lengths of the sums and of what was made of them, over all sites, and the ranks that hold parts."""
    total: Tensor | None = None
    by_ranks: dict[Ranks, list[Tensor]] = {}
    for ranks, *both in found:
        device = next((t.device for t in both if t is not None), torch.device("cpu"))
        squares = [
            torch.zeros((), dtype=solid_dtype(device), device=device)
            if t is None
            else torch.linalg.vector_norm(t, dtype=solid_dtype(device)).square()
            for t in both
        ]
        by_ranks.setdefault(ranks, []).append(torch.stack(squares))
    for ranks, parts in by_ranks.items():
        here = ranks.sum(torch.stack([part.to(parts[0].device) for part in parts]).sum(0))
        total = here if total is None else total + here.to(total.device)
    return total
