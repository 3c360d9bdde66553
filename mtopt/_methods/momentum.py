"""Momentum per loss: each loss's average gradient instead of that of this step."""

from __future__ import annotations

from .._checks import check_beta, check_flag
from .._transform import HistoryTransform


class Momentum(HistoryTransform):
    r"""Each loss's running average gradient in place of its gradient, so that old decisions are not mixed in.

    $$m_i \leftarrow \beta\, m_i + (1 - \beta)\, g_i, \qquad \hat m_i = m_i / (1 - \beta^{t_i})$$

    An optimizer's own momentum averages what was decided, with the gradients of then. Here the gradients are averaged,
    and the decision is one of now. It stands first in the list, at `at="parameters"` or `"all parameters"`, in front of
    an inner optimizer without momentum: Adam with `betas=(0.0, ...)`, SGD with `momentum=0`. It keeps one number
    for each of a parameter's and each loss that reaches it.

    Args:
        beta: Weight $\beta$ of the average before, in [0, 1).
        absent: Whether the average of a loss that is absent (`None`) takes the place of its gradient. Then a step may
            have one loss, and cost one backward, whatever the number of losses.

    Raises:
        TypeError: If `absent` is neither True nor False.
        ValueError: If `beta` is out of range.

    Example:
        >>> Momentum(absent=True)
        Momentum(absent=True)

    Source:
        Section 3.3 and algorithm 1 of Liu, Chu, Thuerey 2025 (M-ConFIG),
        [arXiv:2408.11104](https://arxiv.org/abs/2408.11104).
    """

    def __init__(self, *, beta: float = 0.9, absent: bool = False) -> None:
        super().__init__()
        self.beta = check_beta(beta, "beta")
        self.absent = check_flag(absent, "absent")
