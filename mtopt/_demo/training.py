"""Trains networks on the string: sums of the losses with several weights at once, and the recipe. No output."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from .._methods import GradientNorms, Whitening
from .._optimizer import MultiLossOptimizer
from .._transform import Transform
from .fields import Fields
from .wave import Points, exact, grid, losses, stream

WEIGHTS = (1, 10, 100, 1000)  # of all losses but the equation's
LEARNING_RATE = (
    3e-2  # with cosine decay; the best of each way on this equation in benchmarks/promise.py, on other seeds
)
BETAS = (0.9, 0.9)  # Adam's, for all
LOOKS = 40  # at the error, during the training
COARSE, FINE = 31, 101  # points along each side: to measure errors, and to draw

Report = Callable[[float], None]
"""Told the share of the steps that is done."""

Step = Callable[[Points], None]


@dataclass(frozen=True)
class Way:
    """One way to train, on several seeds.

    Attributes:
        errors: Relative L2 errors, `(looks, seeds)`; the last are those of the trained networks.
        field: What the first seed's network has learned, `(FINE, FINE)`: a row for each t.
    """

    errors: Tensor
    field: Tensor


def recipe() -> list[Transform]:
    """Equal gradient norms, whitened; for `at="parameters"`."""
    return [GradientNorms(average=0.99, of="norms"), Whitening(beta=BETAS[1])]


def train_sums(seeds: Sequence[int], weights: Sequence[float], steps: int, report: Report) -> list[Way]:
    """A sum for each weight, on all seeds: one batch of networks, and one Adam, which goes number by number."""
    fields = Fields([seed for _ in weights for seed in seeds])
    errors = torch.split(_train(fields, *_sums(fields, weights), seeds, steps, report), len(seeds), dim=1)
    return [Way(errors[i], _field(fields, i * len(seeds))) for i in range(len(weights))]


def train_recipe(seeds: Sequence[int], steps: int, report: Report) -> Way:
    """The recipe on all seeds: one batch of networks, and an optimizer for each."""
    fields = Fields(seeds)
    errors = _train(fields, *_recipes(fields), seeds, steps, report)
    return Way(errors, _field(fields, 0))


def step_ratio(seed: int, pairs: int = 100) -> float:
    """How long a step of the recipe takes, in steps of a sum: medians of steps in turn, of one network each."""
    steps = [_sums(Fields([seed]), [1])[1], _with_recipe(Fields([seed]))]
    times: list[list[float]] = [[], []]
    for points in itertools.islice(stream([seed]), pairs):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step(points)
            taken.append(time.perf_counter() - start)
    return median(times[1]) / median(times[0])


def exact_field() -> Tensor:
    """The exact solution, as `Way.field`."""
    return exact(grid(FINE)).view(FINE, FINE)


def look_steps(steps: int) -> list[int]:
    """After which steps the error is measured."""
    return [steps * (i + 1) // min(LOOKS, steps) for i in range(min(LOOKS, steps))]


def _sums(fields: Fields, weights: Sequence[float]) -> tuple[list[Optimizer], Step]:
    """How sums are trained, for each weight on the same number of seeds."""
    adam = _adam(fields.parameters())
    n_seeds = len(fields.rows) // len(weights)
    of_network = torch.tensor(weights, dtype=torch.float32).repeat_interleave(n_seeds)

    def step(points: Points) -> None:
        repeated = Points(*(part.repeat(len(weights), 1, 1) for part in points))
        first, *others = losses(fields, repeated).values()
        adam.zero_grad()
        torch.autograd.backward((first + of_network * sum(others)).sum())
        adam.step()

    return [adam], step


def _recipes(fields: Fields) -> tuple[list[Optimizer], Step]:
    """How networks are trained with the recipe: they are computed together, and each has its own optimizer.

    An optimizer's losses are linear in its network's parameters, with the gradients that autograd has found for all
    networks at once; from there on all is as in a loop for one network.
    """
    rows = [row.requires_grad_() for row in fields.rows.detach()]  # they share its memory
    inners: list[Optimizer] = [_adam([row]) for row in rows]
    optimizers = [MultiLossOptimizer(inner, recipe(), at="parameters") for inner in inners]

    def step(points: Points) -> None:
        found = losses(fields, points)
        gradients = [torch.autograd.grad(loss.sum(), fields.rows, retain_graph=True)[0] for loss in found.values()]
        for i, (row, optimizer) in enumerate(zip(rows, optimizers, strict=True)):
            optimizer.zero_grad()
            optimizer.step([_linear(row, gradient[i]) for gradient in gradients])

    return inners, step


def _linear(row: Tensor, gradient: Tensor) -> Tensor:
    """A loss with that gradient; no method here asks for its value."""
    return row @ gradient


def _with_recipe(fields: Fields) -> Step:
    """One step of one network with the recipe, as in an ordinary loop."""
    optimizer = MultiLossOptimizer(_adam(fields.parameters()), recipe(), at="parameters")

    def step(points: Points) -> None:
        optimizer.zero_grad()
        optimizer.step({name: loss.sum() for name, loss in losses(fields, points).items()})

    return step


def _adam(parameters: Iterable[Tensor]) -> Adam:
    return Adam(parameters, lr=LEARNING_RATE, betas=BETAS, fused=True)


def _train(
    fields: Fields, inners: Iterable[Optimizer], step: Step, seeds: Sequence[int], steps: int, report: Report
) -> Tensor:
    """The errors of all networks, `(looks, n)`."""
    schedules, looks = [CosineAnnealingLR(inner, steps) for inner in inners], set(look_steps(steps))
    errors = []
    for number, points in enumerate(itertools.islice(stream(seeds), steps), start=1):
        step(points)
        for schedule in schedules:
            schedule.step()
        if number in looks:
            errors.append(_errors(fields))
        report(number / steps)
    return torch.stack(errors)


@torch.no_grad()
def _errors(fields: Fields) -> Tensor:
    points = grid(COARSE)
    known = exact(points)
    found: Tensor = fields(points.expand(len(fields.rows), -1, -1))
    return ((found - known).square().sum(1) / known.square().sum()).sqrt()


@torch.no_grad()
def _field(fields: Fields, i: int) -> Tensor:
    points = grid(FINE).expand(len(fields.rows), -1, -1)
    found: Tensor = fields(points)
    return found[i].view(FINE, FINE)
