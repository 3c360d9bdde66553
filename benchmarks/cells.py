"""The methods side by side: for each, one whole training step and its backward's share. No repeats, no statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from time import perf_counter

import torch
from models import Problem
from torch import Tensor
from torch.optim import SGD, Optimizer
from torchjd.aggregation import Aggregator, GradDrop
from torchjd.autojac import backward as torchjd_backward
from torchjd.autojac import jac_to_grad, mtl_backward

from mtopt import MultiLossLayer, MultiLossOptimizer

PLAIN = "plain sum"
AGAIN = "plain sum, again"  # the same in another place: how far its ratio is from 1 is the noise
TRUNK = "trunk's backward alone"
LAYER, ACTIVATIONS, MODULE = "MultiLossLayer", 'at="activations"', "at=module"
PARAMETERS, VMAP, LOOP = 'at="parameters"', 'at="parameters", vmap of 4', 'at="parameters", loop'
MTL, MTL_LOOP = "TorchJD mtl_backward", "TorchJD mtl_backward, loop"
JD, JD_LOOP = "TorchJD backward", "TorchJD backward, loop"

Backward = Callable[[Tensor, list[Tensor]], None]


@dataclass(frozen=True)
class Sample:
    """Seconds that one step took, and its backward alone (the combination included)."""

    step: float
    backward: float


class Cell:
    """One method on one problem."""

    def __init__(self, problem: Problem, optimizer: Optimizer, backward: Backward) -> None:
        self.problem = problem
        self.optimizer = optimizer
        self.backward = backward
        self.checked = False

    def step(self) -> Sample:
        """Take a step by the clock; the first one is checked afterwards."""
        start = perf_counter()
        backward = self.run()  # a call of its own, so that freeing the graph is timed, too
        sample = Sample(perf_counter() - start, backward)
        if not self.checked:
            self.check()
            self.checked = True
        return sample

    def run(self) -> float:
        """Take a step; returns the seconds of its backward."""
        self.optimizer.zero_grad()
        features, losses = self.problem.forward()
        start = perf_counter()
        self.backward(features, losses)
        seconds = perf_counter() - start
        self.optimizer.step()
        return seconds

    def check(self) -> None:
        """Raise if a step left a parameter without a finite gradient: no cell measures nothing."""
        for parameter in self.problem.parameters():
            if parameter.grad is None or not parameter.grad.isfinite().all():
                raise RuntimeError(f"A step left no finite gradient on a parameter of shape {tuple(parameter.shape)}.")
        if not any(parameter.grad.any() for parameter in self.problem.trunk.parameters() if parameter.grad is not None):
            raise RuntimeError("A step left nothing but zeros on the shared parameters.")


class TrunkBackward(Cell):
    """The yardstick for rows at parameters: the backward of the trunk alone, from a given gradient."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, sgd(problem), _no_backward)
        with torch.no_grad():
            self.gradient = torch.randn_like(problem.trunk(problem.inputs))

    def step(self) -> Sample:
        self.optimizer.zero_grad()
        features = self.problem.trunk(self.problem.inputs)
        start = perf_counter()
        torch.autograd.backward(features, self.gradient)
        seconds = perf_counter() - start
        return Sample(seconds, seconds)


def sgd(problem: Problem) -> SGD:
    """The inner optimizer of every cell."""
    return SGD(problem.parameters(), lr=1e-3)


def _no_backward(features: Tensor, losses: Sequence[Tensor]) -> None:
    raise AssertionError("the trunk's cell has a step of its own")


def _sum_backward(features: Tensor, losses: list[Tensor]) -> None:
    torch.autograd.backward(reduce(torch.add, losses))  # as sum(losses).backward()


def _plain(problem: Problem) -> Cell:
    return Cell(problem, sgd(problem), _sum_backward)


def _layer(problem: Problem) -> Cell:
    problem.share = MultiLossLayer(len(problem.heads))
    return _plain(problem)


def _activations(problem: Problem) -> Cell:
    return wrapped(problem, MultiLossOptimizer(sgd(problem)))


def _module(problem: Problem) -> Cell:
    return wrapped(problem, MultiLossOptimizer(sgd(problem), at=problem.trunk))


def _parameters(chunk_size: int | None) -> Callable[[Problem], Cell]:
    def make(problem: Problem) -> Cell:
        return wrapped(problem, MultiLossOptimizer(sgd(problem), at="parameters", chunk_size=chunk_size))

    return make


def wrapped(problem: Problem, optimizer: MultiLossOptimizer) -> Cell:
    """A step of ours."""
    return Cell(problem, optimizer, lambda features, losses: optimizer.backward(losses))


def torchjd_mtl(problem: Problem, aggregator: Aggregator, chunk_size: int | None = None) -> Cell:
    """TorchJD's way for losses that share features: it is told these, and the shared parameters."""
    shared = list(problem.trunk.parameters())

    def backward(features: Tensor, losses: list[Tensor]) -> None:
        mtl_backward(losses, features=features, parallel_chunk_size=chunk_size)
        jac_to_grad(shared, aggregator)

    return Cell(problem, sgd(problem), backward)


def _torchjd(chunk_size: int | None) -> Callable[[Problem], Cell]:
    def make(problem: Problem) -> Cell:
        aggregator = GradDrop()
        parameters = problem.parameters()

        def backward(features: Tensor, losses: list[Tensor]) -> None:
            torchjd_backward(losses, parallel_chunk_size=chunk_size)
            jac_to_grad(parameters, aggregator)

        return Cell(problem, sgd(problem), backward)

    return make


METHODS: dict[str, Callable[[Problem], Cell]] = {
    PLAIN: _plain,
    AGAIN: _plain,
    LAYER: _layer,
    ACTIVATIONS: _activations,
    MODULE: _module,
    PARAMETERS: _parameters(None),
    VMAP: _parameters(4),
    LOOP: _parameters(1),
    MTL: lambda problem: torchjd_mtl(problem, GradDrop()),
    MTL_LOOP: lambda problem: torchjd_mtl(problem, GradDrop(), 1),
    JD: _torchjd(None),
    JD_LOOP: _torchjd(1),
    TRUNK: TrunkBackward,
}
