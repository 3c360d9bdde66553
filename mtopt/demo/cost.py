"""Time and peak memory of one training step, method against method. No accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ..comparison.memory import peak_on_cpu
from .data import make_data
from .intervals import Interval, median_interval
from .training import BATCH, METHODS, PLAIN, start, train_step

ROUNDS = 80
WARM_UP = 5


@dataclass(frozen=True)
class Cost:
    """Cost of a step relative to the plain sum's: 1 is as much."""

    time: Interval
    memory: float


def measure_costs(seed: int) -> dict[str, Cost]:
    """One step on one batch: forward, backward and update."""
    batch = next(make_data(seed, 1).epochs[0].batches(BATCH))
    learners = {method: start(method, seed) for method in METHODS}
    steps = {method: partial(train_step, *learner, batch) for method, learner in learners.items()}
    times = _interleaved_times(steps)
    memory = {}
    for method, (_, optimizer) in learners.items():
        optimizer.zero_grad()
        memory[method] = peak_on_cpu(steps[method])
    return {
        method: Cost(median_interval(times[method] / times[PLAIN]), memory[method] / memory[PLAIN])
        for method in METHODS
    }


def _interleaved_times(steps: Mapping[str, Callable[[], None]]) -> dict[str, torch.Tensor]:
    """Seconds of each step, `(ROUNDS,)` for each method. All take turns, so that noise hits all alike."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(WARM_UP + ROUNDS):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            before = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - before)
    return {name: torch.tensor(values[WARM_UP:], dtype=torch.float64) for name, values in times.items()}
