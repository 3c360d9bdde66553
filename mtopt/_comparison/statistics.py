"""Means, intervals and paired tests over seeds, and the words that they allow. No training and no output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .arguments import PLAIN
from .extras import extra
from .runs import RunRecord

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
LEAST_SEEDS = 3

BETTER, WORSE, NO_DIFFERENCE, TOO_FEW = "better", "worse", "no difference found", "too few seeds"


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values ± `half`, Student's 95 % interval; `half` is `None` for one value, which has none."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Result:
    """One method in one quantity.

    Attributes:
        estimate: Over its seeds; `None` if no run has the quantity.
        difference: To the plain sum, over the seeds that both have; `None` for the plain sum itself.
        p: Of the paired t test, after Holm's correction; `None` where there is no test.
        verdict: One of the four words; `None` for the plain sum itself.
    """

    estimate: Estimate | None
    difference: Estimate | None = None
    p: float | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Quantity:
    """A loss or a metric, and the result of each method."""

    kind: str
    name: str
    larger_is_better: bool
    results: Mapping[str, Result]


@dataclass(frozen=True)
class Cost:
    """What the runs of one method cost, each the median over its runs; and how many of them diverged."""

    runs: int
    diverged: int
    seconds_per_step: float | None
    memory: float | None
    steps: float | None


@dataclass(frozen=True)
class Summary:
    """All that is said of a study.

    Attributes:
        quantities: The losses, then the metrics.
        costs: Of each method.
        tests: How many tests the p-values are corrected for.
        copies: Seeds left out, because the plain sum's run was the same as with an earlier seed.
        clock: By what the steps were timed, in words.
    """

    quantities: list[Quantity]
    costs: dict[str, Cost]
    tests: int
    copies: list[int]
    clock: str = ""


def summarize(runs: Sequence[RunRecord], methods: Iterable[str], threads: int | None = None) -> Summary:
    """The runs of a study, the plain sum's among them, as means, differences to the plain sum, and words."""
    methods = list(methods)
    copies = _copied_seeds(runs)
    values = _values([run for run in runs if run["seed"] not in copies])
    differences = {
        (quantity, method): _difference(by_method.get(method, {}), by_method.get(PLAIN, {}))
        for quantity, by_method in values.items()
        for method in methods
        if method != PLAIN
    }
    tested = [key for key, d in differences.items() if len(d) >= LEAST_SEEDS]
    corrected = dict(zip(tested, holm([paired_p(differences[key]) for key in tested]), strict=True))
    quantities = []
    for (kind, name), by_method in values.items():
        results = {}
        for method in methods:
            key = (kind, name), method
            mean = estimate(list(by_method.get(method, {}).values()))
            p = corrected.get(key)
            if method == PLAIN:
                results[method] = Result(mean)
            else:
                difference = estimate(differences[key])
                results[method] = Result(mean, difference, p, _verdict(difference, p, kind == "metric"))
        quantities.append(Quantity(kind, name, kind == "metric", results))
    costs = {method: _cost(runs, method) for method in methods}
    return Summary(quantities, costs, len(tested), copies, _clock(runs, threads))


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and interval; `None` without any value."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None, 1)
    quantile = extra("scipy.special").stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    return Estimate(fmean(values), float(quantile) * stdev(values) / math.sqrt(len(values)), len(values))


def paired_p(differences: Sequence[float]) -> float:
    """Of the two-sided t test that the mean difference is 0; two values or more."""
    mean, deviation = fmean(differences), stdev(differences)
    if deviation == 0:
        return float(mean == 0)
    t = abs(mean) / deviation * math.sqrt(len(differences))
    return float(2 * extra("scipy.special").stdtr(len(differences) - 1, -t))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, by Holm's step-down method, in the given order."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def _verdict(difference: Estimate | None, p: float | None, larger_is_better: bool) -> str:
    if difference is None or p is None:
        return TOO_FEW
    if p >= SIGNIFICANCE:
        return NO_DIFFERENCE
    return BETTER if (difference.mean > 0) == larger_is_better else WORSE


def _values(runs: Sequence[RunRecord]) -> dict[tuple[str, str], dict[str, dict[int, float]]]:
    """By kind and name of the quantity, then by method, then by seed; nothing of diverged runs but the names."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for kind, key in (("loss", "losses"), ("metric", "metrics")):
        for run in runs:
            for name, value in run[key].items():
                by_seed = values.setdefault((kind, name), {}).setdefault(run["method"], {})
                if value is not None:
                    by_seed[run["seed"]] = value
    return values


def _difference(values: Mapping[int, float], plain: Mapping[int, float]) -> list[float]:
    return [value - plain[seed] for seed, value in values.items() if seed in plain]


def _copied_seeds(runs: Sequence[RunRecord]) -> list[int]:
    """Seeds with which the plain sum gave the very numbers of an earlier one: such runs are not independent."""
    seen: list[Any] = []
    copies = []
    for run in runs:
        if run["method"] == PLAIN and not run["diverged"]:
            numbers = [run["losses"], run["metrics"]]
            if numbers in seen:
                copies.append(run["seed"])
            seen.append(numbers)
    return copies


def _clock(runs: Iterable[RunRecord], threads: int | None) -> str:
    clocks = sorted({run["clock"] for run in runs})
    return ", ".join([*clocks, *([] if threads is None else [f"{threads} thread{'' if threads == 1 else 's'}"])])


def _cost(runs: Iterable[RunRecord], method: str) -> Cost:
    own = [run for run in runs if run["method"] == method]
    finished = [run for run in own if not run["diverged"]]
    medians = [_median([run[key] for run in finished]) for key in ("seconds_per_step", "memory", "steps")]
    return Cost(len(own), len(own) - len(finished), *medians)


def _median(values: Iterable[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else None
