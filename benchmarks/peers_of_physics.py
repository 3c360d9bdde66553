"""ConFIG and M-ConFIG as their authors' package has them, in the place of a `MultiLossOptimizer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Direction = Callable[[list[int], list[Tensor]], Tensor]
"""From the losses of a step, by number, and their gradients to what the inner optimizer gets."""


class Peer:
    """One parameter, trained by an operator of `conflictfree`."""

    def __init__(self, parameter: Tensor, inner: torch.optim.Optimizer, direction: Direction) -> None:
        self.parameter, self.inner, self.direction = parameter, inner, direction

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self, losses: Mapping[str, Tensor | None]) -> None:
        taken = [(i, loss) for i, loss in enumerate(losses.values()) if loss is not None]
        rows = [torch.autograd.grad(loss, self.parameter)[0] for _, loss in taken]
        self.parameter.grad = self.direction([i for i, _ in taken], rows)
        self.inner.step()


def config(parameter: Tensor, rate: float, beta: float, names: Sequence[str]) -> Peer:
    """ConFIG in front of Adam."""
    from conflictfree.grad_operator import ConFIGOperator

    operator = ConFIGOperator()
    inner = torch.optim.Adam([parameter], lr=rate, betas=(0.9, beta))
    return Peer(parameter, inner, lambda _, rows: operator.calculate_gradient(torch.stack(rows)))


def m_config(parameter: Tensor, rate: float, beta: float, names: Sequence[str]) -> Peer:
    """M-ConFIG, which has Adam's momenta itself, so that the step is plain."""
    from conflictfree.momentum_operator import PseudoMomentumOperator

    operator = PseudoMomentumOperator(num_vectors=len(names), beta_2=beta)
    return Peer(parameter, torch.optim.SGD([parameter], lr=rate), operator.calculate_gradient)


PEERS = {"conflictfree ConFIG": config, "conflictfree M-ConFIG, one loss a step": m_config}
