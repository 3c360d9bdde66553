"""The same training by others: TorchJD's methods, and a loop by hand. No mtopt in their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torchjd.aggregation as torchjd
from problems.base import Batch, Problem, SharedTrunk, TrunkAndHeads
from torch import Tensor, nn
from torch.optim import Optimizer
from torchjd.autojac import jac_to_grad, mtl_backward

import mtopt
from mtopt import Transform
from mtopt._comparison.memory import peak_on_cpu

from .methods import PLAIN, Method, Setting
from .training import MakeUpdate, Training, ours

AGGREGATORS: dict[str, Callable[[], torchjd.Aggregator]] = {
    "CAGrad": lambda: torchjd.CAGrad(0.4),
    "GradDrop": torchjd.GradDrop,
    "MGDA": torchjd.MGDA,
    "PCGrad": torchjd.PCGrad,
    "UPGrad": torchjd.UPGrad,
}
TRANSFORMS: dict[str, Callable[[int], Transform]] = {
    "CAGrad": lambda seed: mtopt.CAGrad(c=0.4),
    "GradDrop": lambda seed: mtopt.GradDrop(seed=seed),
    "MGDA": lambda seed: mtopt.MGDA(),
    "PCGrad": lambda seed: mtopt.PCGrad(seed=seed),
    "UPGrad": lambda seed: mtopt.UPGrad(),
}
PAIRS = (PLAIN, *AGGREGATORS)
OURS, THEIRS = "mtopt", "peer"
IN_TIME = "peer, equal time"  # the peer again, with as many steps as it takes in the time of ours


def update_of(pair: str, side: str, setting: Setting, steps: int, seed: int) -> MakeUpdate:
    """A method's step by mtopt, at parameters as TorchJD has it, or by the other."""
    if side == OURS:
        make = TRANSFORMS.get(pair)
        transforms = (lambda seed: []) if make is None else (lambda seed: [make(seed)])
        return ours(Method(transforms, "parameters"), setting, steps, seed)
    return by_hand if pair == PLAIN else _by_torchjd(AGGREGATORS[pair])


def by_hand(problem: Problem, model: nn.Module, inner: Optimizer) -> Callable[[Batch], Mapping[str, Tensor]]:
    """The loop that everybody writes."""

    def update(batch: Batch) -> Mapping[str, Tensor]:
        inner.zero_grad()
        losses = problem.losses(model, batch)
        total = sum(losses.values())
        assert isinstance(total, Tensor)
        torch.autograd.backward(total)
        inner.step()
        return losses

    return update


def _by_torchjd(make: Callable[[], torchjd.Aggregator]) -> MakeUpdate:
    def by_torchjd(problem: Problem, model: nn.Module, inner: Optimizer) -> Callable[[Batch], Mapping[str, Tensor]]:
        assert isinstance(problem, SharedTrunk)
        assert isinstance(model, TrunkAndHeads)
        aggregator, shared = make(), list(model.trunk.parameters())

        def update(batch: Batch) -> Mapping[str, Tensor]:
            inner.zero_grad()
            features, losses = problem.features_and_losses(model, batch)
            mtl_backward(list(losses.values()), features=features)
            jac_to_grad(shared, aggregator)
            inner.step()
            return losses

        return update

    return by_torchjd


def peak(problem: Problem, make_update: MakeUpdate, setting: Setting) -> int:
    """Bytes of tensors that a step takes at most; the first step is not looked at."""
    training = Training(problem, make_update, setting, 10, 0)
    training.step()
    return peak_on_cpu(lambda: (training.step(), None)[1])
