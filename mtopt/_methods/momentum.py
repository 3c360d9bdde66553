"""Momentum per loss: each loss's average gradient instead of this step's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .._checks import check_beta, check_flag, check_positive
from .._dtypes import widen
from .._history import Average, Key, moved
from .._transform import HistoryTransform


class Momentum(HistoryTransform):
    r"""Each loss's running average gradient in place of its gradient, so that no old decisions are mixed in.

    $$m_i \leftarrow \beta\, m_i + (1 - \beta)\, g_i, \qquad \hat m_i = m_i / (1 - \beta^{t_i})$$

    An optimizer's own momentum averages combined gradients, and so past decisions. Here the gradients are averaged
    first, and the decision is made now, on the averages. Put it first in the list, with `at="parameters"` or
    `"all parameters"`, and use an inner optimizer without momentum: Adam with `betas=(0.0, ...)`, SGD with
    `momentum=0`. For each loss that reaches a parameter it keeps as many numbers as the parameter has.

    Args:
        beta: Weight $\beta$ of the previous average, in [0, 1).
        second: Weight of the previous second moment, in [0, 1). If given, each average is divided by the root of its
            own loss's second moment, like an Adam per loss: in front of SGD that is AdaTask, and MultiAdam's sum.
        eps: Added to that root, above 0.
        absent: Whether the average of an absent loss (`None`) takes the place of its gradient. Then a step may have one
            loss, and cost one backward pass, whatever the number of losses. Such an average has weight 1: a loss
            weighting in front does not reach what is absent.

    Raises:
        TypeError: If `absent` is neither True nor False.
        ValueError: If `beta`, `second` or `eps` is out of range.

    Example:
        >>> Momentum(absent=True)
        Momentum(absent=True)

    Source:
        Section 3.3 and algorithm 1 of Liu, Chu, Thuerey 2025 (M-ConFIG),
        [arXiv:2408.11104](https://arxiv.org/abs/2408.11104). With `second`: Yang et al. 2023 (AdaTask),
        [arXiv:2211.15055](https://arxiv.org/abs/2211.15055), and Yao et al. 2023 (MultiAdam),
        [arXiv:2306.02816](https://arxiv.org/abs/2306.02816).
    """

    def __init__(
        self, *, beta: float = 0.9, second: float | None = None, eps: float = 1e-8, absent: bool = False
    ) -> None:
        super().__init__()
        self.beta = check_beta(beta, "beta")
        self.second = None if second is None else check_beta(second, "second")
        self.eps = check_positive(eps, "eps")
        self.absent = check_flag(absent, "absent")

    def moved(self, before: Mapping[Key, Average], index: int, row: Tensor) -> dict[Key, Average]:
        """A loss's averages with this step's row of a parameter in them."""
        new: dict[Key, Average] = {(index,): moved(before.get((index,)), row, self.beta)}
        if self.second is not None:
            new[index, index] = moved(before.get((index, index)), widen(row).square(), self.second)
        return new

    def row(self, averages: Mapping[Key, Average], index: int) -> Tensor:
        """What goes on in the place of a loss's row."""
        mean = averages[index,].mean
        return mean if self.second is None else mean / (averages[index, index].mean.sqrt().add_(self.eps))
