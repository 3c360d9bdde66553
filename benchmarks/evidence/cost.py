"""What a step of each method costs, by turns in one process, and how many steps are as long as the plain sum's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from time import perf_counter, process_time

from cells import Sample
from measure import Series, interleave, quartiles
from problems.base import Problem

from .methods import AGAIN, PLAIN, Method, Setting
from .training import FAILURES, MakeUpdate, Training, ours

BUDGET = 20.0  # seconds for one method

Costs = dict[str, dict[str, float]]  # by method: `ms` of a step, and its `ratio` to the plain sum's


def costs_of(
    problem: Problem, methods: Mapping[str, Method], repeats: int, *, processor: bool = False
) -> tuple[Costs, dict[str, str]]:
    """The costs of methods, and why others cannot be used here; in time of the processor, if other programs run."""
    setting = Setting(problem.lrs[0])
    updates = {name: ours(method, setting, 10 * repeats, 0) for name, method in methods.items()}
    return measured(problem, {**updates, AGAIN: updates[PLAIN]}, setting, repeats, processor=processor)


def measured(
    problem: Problem,
    updates: Mapping[str, MakeUpdate],
    setting: Setting,
    repeats: int,
    *,
    processor: bool = False,
) -> tuple[Costs, dict[str, str]]:
    """Whole steps, interleaved; the ratio is the median over rounds of that within one round."""
    cells: dict[str, Callable[[], Sample]] = {}
    refused: dict[str, str] = {}
    for name, make_update in updates.items():
        try:
            training = Training(problem, make_update, setting, 10 * repeats, 0)
            training.step()
        except FAILURES as error:
            refused[name] = f"{type(error).__name__}: {error}"
        else:
            cells[name] = _timed(training, process_time if processor else perf_counter)
    series: dict[str, Series] = {}
    order = random.Random(0)
    interleave(cells, series, repeats=repeats, budget=BUDGET, always=PLAIN, order=order, advance=lambda name: None)
    costs = {}
    for name, own in series.items():
        milliseconds = 1e3 * quartiles(own.steps())[1]
        costs[name] = {"ms": round(milliseconds, 4), "ratio": round(quartiles(own.ratios(series[PLAIN]))[1], 4)}
    return costs, refused


def _timed(training: Training, clock: Callable[[], float]) -> Callable[[], Sample]:
    def run() -> Sample:
        start = clock()
        training.step()
        seconds = clock() - start
        return Sample(seconds, seconds)

    return run
