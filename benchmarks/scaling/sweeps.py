"""The time of a step at each size, all methods by turns. One process; prints nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torchjd.aggregation as peers
from cells import METHODS as CELLS
from cells import PLAIN as PLAIN_CELL
from cells import Cell, sgd, torchjd_mtl, wrapped
from measure import Advance, Series, interleave, quartiles
from models import Problem
from torch import Tensor, nn
from torch.nn import functional

from mtopt import MultiLossOptimizer, UPGrad

from .theory import (
    AGAIN,
    DEPTH,
    DROP_ACTIVATIONS,
    DROP_PARAMETERS,
    OUTPUTS,
    PLAIN,
    SEPARATE,
    TORCHJD,
    UPGRAD_ACTIVATIONS,
    UPGRAD_PARAMETERS,
    Size,
)


def make_problem(size: Size) -> Problem:
    """The same weights and the same batch at every call; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = size.width
        trunk = nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(width, width), nn.ReLU())))
        heads = [nn.Linear(width, OUTPUTS) for _ in range(size.losses)]
        targets = torch.randn(size.losses, size.batch, OUTPUTS).unbind()
        return Problem(trunk, heads, torch.randn(size.batch, width), targets, functional.mse_loss)


def _separate(problem: Problem) -> Cell:
    """What a user writes who wants each gradient by itself, before anything is combined."""

    def backward(features: Tensor, losses: list[Tensor]) -> None:
        for loss in losses:
            torch.autograd.backward(loss, retain_graph=loss is not losses[-1])

    return Cell(problem, sgd(problem), backward)


METHODS: dict[str, Callable[[Problem], Cell]] = {
    PLAIN: CELLS[PLAIN_CELL],
    AGAIN: CELLS[PLAIN_CELL],
    DROP_ACTIVATIONS: lambda problem: wrapped(problem, MultiLossOptimizer(sgd(problem))),
    UPGRAD_ACTIVATIONS: lambda problem: wrapped(problem, MultiLossOptimizer(sgd(problem), UPGrad())),
    DROP_PARAMETERS: lambda problem: wrapped(problem, MultiLossOptimizer(sgd(problem), at="parameters")),
    UPGRAD_PARAMETERS: lambda problem: wrapped(problem, MultiLossOptimizer(sgd(problem), UPGrad(), at="parameters")),
    TORCHJD: lambda problem: torchjd_mtl(problem, peers.UPGrad()),
    SEPARATE: _separate,
}


def measure(sizes: Sequence[Size], *, repeats: int, budget: float, advance: Advance) -> list[dict[str, Any]]:
    """All methods at each size, as JSON. `advance` is told each size."""
    points = []
    for size in sizes:
        advance(str(size))
        found: dict[str, Series] = {}
        interleave(
            {method: make(make_problem(size)).step for method, make in METHODS.items()},
            found,
            repeats=repeats,
            budget=budget,
            always=PLAIN,
            order=random.Random(0),
            advance=lambda _: None,
        )
        methods = {method: summary(series, found[PLAIN]) for method, series in found.items()}
        points.append({"size": asdict(size), "methods": methods})
    return points


def summary(series: Series, plain: Series) -> dict[str, Any]:
    """Quartiles: of the step, of its ratio to the plain sum's and of what it adds in the same round; all samples."""
    added = [s.step - plain.samples[i].step for i, s in series.samples.items()]
    return {
        "ms": _milliseconds(quartiles(series.steps())),
        "ratio": [round(x, 4) for x in quartiles(series.ratios(plain))],
        "added_ms": _milliseconds(quartiles(added)),
        "rounds": list(series.samples),
        "samples_ms": _milliseconds(series.steps()),
    }


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [round(1e3 * x, 4) for x in seconds]
