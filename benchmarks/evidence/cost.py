"""What a step of each method costs, by turns in one process, and how many steps are as long as the plain sum's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from time import perf_counter

from cells import Sample
from measure import Series, interleave, quartiles
from problems.base import Problem

from .methods import AGAIN, PLAIN, Setting, methods_of
from .training import FAILURES, MakeUpdate, Training, ours

BUDGET = 20.0  # seconds for one method

Costs = dict[str, dict[str, float]]  # by method: `ms` of a step, and its `ratio` to the plain sum's


def costs_of(problem: Problem, repeats: int) -> tuple[Costs, dict[str, str]]:
    """The costs of all methods, and why others cannot be used here."""
    setting = Setting(problem.lrs[0])
    methods = methods_of(problem)
    updates = {name: ours(method, setting, 10 * repeats, 0) for name, method in methods.items()}
    return measured(problem, {**updates, AGAIN: updates[PLAIN]}, setting, repeats)


def measured(
    problem: Problem, updates: Mapping[str, MakeUpdate], setting: Setting, repeats: int
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
            cells[name] = _timed(training)
    series: dict[str, Series] = {}
    order = random.Random(0)
    interleave(cells, series, repeats=repeats, budget=BUDGET, always=PLAIN, order=order, advance=lambda name: None)
    costs = {}
    for name, own in series.items():
        milliseconds = 1e3 * quartiles(own.steps())[1]
        costs[name] = {"ms": round(milliseconds, 4), "ratio": round(quartiles(own.ratios(series[PLAIN]))[1], 4)}
    return costs, refused


def _timed(training: Training) -> Callable[[], Sample]:
    def run() -> Sample:
        start = perf_counter()
        training.step()
        seconds = perf_counter() - start
        return Sample(seconds, seconds)

    return run
