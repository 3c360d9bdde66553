"""What `promise.py` found, as tables of docs/optimizer.md. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from blocks_of_a_page import fill
from markdown_tables import table
from promise import (
    BETAS,
    METHODS,
    PAIRS,
    PROBLEMS,
    RECIPES,
    SUM,
    TESTING,
    WHITENED,
    Done,
    Run,
    best_rates,
    finished,
    scores_by_rate,
    ways,
)

from mtopt._comparison.statistics import estimate

Cell = tuple[str, str, float]  # problem, way, β₂
AS_PEOPLE_RUN_IT, UNSWEPT = (f"{SUM}, weight 1", 0.999), f"{SUM}, weight 1"


class Found:
    """The tested scores, log10 of the error, one for each seed: and what the tuning chose."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.rates = best_rates(done)
        by_rate = scores_by_rate(done)
        self.tuned = {cell: min(scores.values()) for cell, scores in by_rate.items()}
        self.tried = {cell: len(scores) for cell, scores in by_rate.items()}

    def scores(self, cell: Cell) -> list[float]:
        problem, way, beta = cell
        rate = self.rates[cell]
        return [float(self.done[Run(problem, way, rate, beta, seed)]["score"]) for seed in TESTING]

    def error(self, cell: Cell) -> float:
        """The geometric mean over the seeds."""
        return float(10 ** fmean(self.scores(cell)))

    def harm(self, cell: Cell) -> float | None:
        """In which share of the looks the step raised the loss that it raised most often."""
        problem, way, beta = cell
        raised = [self.done[Run(problem, way, self.rates[cell], beta, seed)]["raised"] for seed in TESTING]
        return fmean(max(each.values()) for each in raised) if all(raised) else None

    def best(self, problem: str, names: Sequence[str], betas: Sequence[float] = BETAS) -> Cell:
        """The way and memory with the lowest error of the tuning."""
        cells = ((problem, way, beta) for way in names for beta in betas)
        return min((cell for cell in cells if cell in self.tuned), key=self.tuned.__getitem__)

    def runs(self, problem: str, names: Sequence[str], betas: Sequence[float] = BETAS) -> int:
        """How many settings a choice was made of."""
        return sum(self.tried.get((problem, way, beta), 0) for way in names for beta in betas)


def publish(results: Path, page: Path) -> None:
    found = Found(finished(results))
    blocks = {"recipe": recipe_table(found), "whitening": whitening_table(found), "pairs": pairs_table(found)}
    blocks |= {f"promise {problem}": errors_table(found, problem) for problem in PROBLEMS}
    fill(page, blocks)


def recipe_table(found: Found) -> str:
    """The sums and the recipes on each problem: what was swept, and how they compare."""
    sums = [way for way in ways() if way.startswith(SUM)]
    head = ["", *(problem.capitalize() for problem in dict.fromkeys(problem for problem, *_ in found.rates))]
    rows: dict[str, list[str]] = {}

    def add(name: str, cell: str) -> None:
        rows.setdefault(name, [name]).append(cell)

    for problem in dict.fromkeys(problem for problem, *_ in found.rates):
        unswept, swept = (problem, *AS_PEOPLE_RUN_IT), found.best(problem, sums)
        add("sum, weights 1, β₂ 0.999", f"{found.error(unswept):.4f}")
        add("sum, weights 1, β₂ swept", f"{found.error(found.best(problem, [UNSWEPT])):.4f}")
        add("sum, all swept", f"{found.error(swept):.4f} (of {found.runs(problem, sums)} settings)")
        for recipe in RECIPES:
            ours = (problem, recipe, 0.9)
            add(recipe, f"{found.error(ours):.4f} (of {found.tried[ours]})")
            add(f"{recipe} / sum, all swept", interval(found.scores(ours), found.scores(swept)))
            add(f"{recipe} / sum, weights 1, β₂ 0.999", interval(found.scores(ours), found.scores(unswept)))
    return table(head, rows.values())


def whitening_table(found: Found) -> str:
    """Each method whitened over the same without: at each memory, and both at their best one."""
    head = ["whitened / without", *(f"{p.capitalize()}, β₂ {b:g}" for p in PROBLEMS for b in BETAS), "at their best β₂"]
    columns: list[list[float]] = []
    for method in METHODS:
        pairs = [((p, method + WHITENED, b), (p, method, b)) for p in PROBLEMS for b in BETAS]
        best = [(found.best(p, [method + WHITENED]), found.best(p, [method])) for p in PROBLEMS]
        ratios = [found.error(one) / found.error(other) for one, other in pairs]
        columns.append([*ratios, _geometric(found.error(one) / found.error(other) for one, other in best)])
    mean = [_geometric(of_all) for of_all in zip(*columns, strict=True)]
    rows = [[name, *(f"{ratio:.2f}" for ratio in ratios)] for name, ratios in zip(METHODS, columns, strict=True)]
    return table(head, [*rows, ["geometric mean", *(f"{ratio:.2f}" for ratio in mean)]])


def pairs_table(found: Found) -> str:
    """Whitening by pairs over whitening by the diagonal."""
    by_pairs = [way for way in ways() if way.endswith(PAIRS)]
    head = ["by pairs / diagonal", *(f"{p.capitalize()}, β₂ {b:g}" for p in PROBLEMS for b in BETAS)]
    rows = []
    for way in by_pairs:
        cells = [((p, way, b), (p, way.removesuffix(PAIRS), b)) for p in PROBLEMS for b in BETAS]
        ratios = [found.error(one) / found.error(other) for one, other in cells]
        rows.append([way.split(",")[0], *(f"{ratio:.2f}" for ratio in ratios)])
    return table(head, rows)


def errors_table(found: Found, problem: str) -> str:
    """Every way that was tested: its error, its rate, its harm."""
    head = ["way", *(f"β₂ {beta:g}" for beta in BETAS)]
    rows = []
    for way in ways():
        cells = [_error(found, (problem, way, beta)) for beta in BETAS]
        if any(cells):
            rows.append([way, *cells])
    return table(head, rows)


def _error(found: Found, cell: Cell) -> str:
    try:
        error, harm = found.error(cell), found.harm(cell)
    except KeyError:  # a sum whose weight was not the best one in the tuning
        return ""
    return f"{error:.4f} (rate {found.rates[cell]:g}{'' if harm is None else f', harm {harm:.0%}'})"


def interval(scores: Sequence[float], others: Sequence[float]) -> str:
    """The ratio of two errors with its 95 % interval, by Student's t on the paired logarithms."""
    found = estimate([one - other for one, other in zip(scores, others, strict=True)])
    assert found is not None
    assert found.half is not None  # there are several seeds
    low, high = found.mean - found.half, found.mean + found.half
    return f"{10**found.mean:.2f} ({10**low:.2f} to {10**high:.2f})"


def _geometric(ratios: Iterable[float]) -> float:
    return math.exp(fmean(map(math.log, ratios)))
