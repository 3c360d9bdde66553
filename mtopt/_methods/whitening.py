"""Whitening: the combined gradient over the root of its second moment at the weights of now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from .._checks import check_beta, check_flag, check_positive
from .._dtypes import widen
from .._history import Average, Key, product_added
from .._transform import HistoryTransform

LARGE = 2.0**40  # a share of which the square times a second moment may overflow
Share = float | Tensor
"""How much of a loss's row there is in the combined gradient: of all of it, or number by number."""


class Whitening(HistoryTransform):
    r"""Divides the combined gradient by the root of its second moment, as if the current weights had always held.

    With $\lambda_i$ the share of $g_i$ that the transforms before it have just chosen, for each number of a parameter:

    $$d = \sum_i \lambda_i g_i, \qquad F_{ij} \leftarrow \beta F_{ij} + (1 - \beta)\, g_i g_j, \qquad
      C = \sum_{i} \lambda_i^2 \hat F_{ii} \quad \Big(\text{or } \sum_{ij} \lambda_i \lambda_j \hat F_{ij}\Big),
      \qquad \text{out} = \frac{d}{\sqrt{C} + \epsilon}$$

    Adam divides by a second moment of past combined gradients. Their weights may have been different ones, so it undoes
    what a method decides. The second moment of the whitened gradient is near 1, so Adam then takes the step that it
    would take with the current weights. In front of SGD, whitening makes an Adam without momentum. Put it last in the
    list, behind transforms that only scale or mix rows, with `at="parameters"` or `"all parameters"`. Alone in the list
    it whitens the plain sum.

    Args:
        beta: Weight $\beta$ of the previous second moments, in [0, 1): the inner optimizer's $\beta_2$.
        eps: The constant $\epsilon > 0$.
        pairs: Whether the products of two losses' gradients count. For each number of a parameter this keeps
            $T (T + 1) / 2$ numbers instead of T.

    Raises:
        TypeError: If `pairs` is neither True nor False.
        ValueError: If `beta` or `eps` is out of range.

    Example:
        >>> Whitening(beta=0.99)
        Whitening(beta=0.99)

    Source:
        Liu et al. 2026 (MAdam), arXiv:2606.03904, with `pairs=True`.
    """

    def __init__(self, *, beta: float = 0.999, eps: float = 1e-8, pairs: bool = False) -> None:
        super().__init__()
        self.beta = check_beta(beta, "beta")
        self.eps = check_positive(eps, "eps")
        self.pairs = check_flag(pairs, "pairs")

    def seen(self, moments: Mapping[Key, Average], rows: Mapping[int, Tensor]) -> dict[Key, Average]:
        """The second moments after the rows of a step, by pairs of loss indices. Changes the previous ones."""
        wide = {i: widen(row) for i, row in rows.items()}
        pairs = [(i, i) for i in wide] + (list(combinations(sorted(wide), 2)) if self.pairs else [])
        return {(i, j): product_added(moments.get((i, j)), wide[i], wide[j], self.beta) for i, j in pairs}

    def whitened(self, combined: Tensor, shares: Mapping[int, Share], moments: Mapping[Key, Average]) -> Tensor:
        """The combined gradient, divided by that root."""
        scale = _scale(shares)
        total: Tensor | None = None
        for (i, j), moment in moments.items():
            if i in shares and j in shares:
                total = torch.zeros_like(moment.mean) if total is None else total
                weight = (shares[i] / scale) * (shares[j] / scale) * (1 if i == j else 2)
                if isinstance(weight, Tensor):
                    total.addcmul_(moment.mean, weight.to(total))
                else:
                    total.add_(moment.mean, alpha=weight)
        if total is None:
            return combined
        wide = widen(combined) if scale == 1 else widen(combined) / scale
        return (wide / total.clamp_min_(0).sqrt_().add_(self.eps / scale)).to(combined.dtype)


def _scale(shares: Mapping[int, Share]) -> float:
    """A power of two, by which very large shares are divided so that their squares are numbers; else 1."""
    largest = max((abs(share) for share in shares.values() if not isinstance(share, Tensor)), default=0.0)
    return 2.0 ** math.frexp(largest)[1] if LARGE < largest < math.inf else 1.0
