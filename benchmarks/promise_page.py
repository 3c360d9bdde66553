"""What `promise.py` found, as tables of docs/physics.md. Trains nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from blocks_of_a_page import fill
from markdown_tables import table
from promise import (
    AS_PEOPLE_RUN_IT,
    AT_EACH_MEMORY,
    BETAS,
    EQUAL_TIME,
    IN_TURN,
    METHODS,
    MORE_WEIGHTS,
    NORMS,
    ON_MOMENTA,
    PAIRS,
    PROBLEMS,
    STEPS,
    SUM,
    TESTING,
    WEIGHTS,
    WHITENED,
    Cell,
    Done,
    Run,
    best_rates,
    finished,
    scores_by_rate,
    steps_of,
    ways,
)
from scipy import stats

from mtopt._comparison.statistics import estimate, holm

UNSWEPT = AS_PEOPLE_RUN_IT[0]
SHORT = BETAS[0]
NAMES = {
    "helmholtz": "Helmholtz",
    "burgers": "Burgers",
    "poisson": "Poisson",
    "heat": "Heat",
    "wave": "Wave",
    "convection": "Convection",
    "allen-cahn": "Allen–Cahn",
    "kovasznay": "Kovasznay",
    "sharp-burgers": "Burgers, sharp",
}


class Found:
    """The tested scores, log10 of the error, one for each seed: and what the tuning chose."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.rates = best_rates(done)
        by_rate = scores_by_rate(done)
        self.tuned = {cell: min(scores.values()) for cell, scores in by_rate.items()}
        self.tried = {cell: len(scores) for cell, scores in by_rate.items()}

    def problems(self) -> list[str]:
        """Those that were trained, in the order of the tables."""
        trained = {problem for problem, *_ in self.rates}
        return [problem for problem in NAMES if problem in trained]

    def tested(self, cell: Cell) -> bool:
        problem, way, beta = cell
        return cell in self.rates and all(Run(problem, way, self.rates[cell], beta, s) in self.done for s in TESTING)

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


def publish(results: Path, docs: Path) -> None:
    found = Found(finished(results))
    blocks = {"recipe": recipe_table(found), "ratios": ratios_table(found)}
    blocks |= {"methods": methods_table(found), "harm": harm_table(found)}
    blocks |= {"whitening": whitening_table(found), "pairs": pairs_table(found)}
    blocks |= {f"promise {problem}": errors_table(found, problem) for problem in PROBLEMS}
    fill(docs / "physics.md", blocks)


def _sums() -> list[str]:
    return [f"{SUM}, weight {weight:g}" for weight in (*WEIGHTS, *MORE_WEIGHTS)]


def recipe_table(found: Found) -> str:
    """The errors of the sums and the recipe on each problem, and of how many trainings each is the best."""
    head = ["", "sum, weights 1, β₂ 0.999", "sum, weights 1, β₂ swept", "sum, all swept", "its weight, rate, β₂"]
    rows = []
    for problem in found.problems():
        unswept, swept = (problem, *AS_PEOPLE_RUN_IT), found.best(problem, _sums())
        one = found.best(problem, [UNSWEPT])
        cells = [f"{found.error(unswept):.4f} ({found.tried[unswept]})"]
        cells.append(f"{found.error(one):.4f} ({found.runs(problem, [UNSWEPT])})")
        cells.append(f"{found.error(swept):.4f} ({found.runs(problem, _sums())})")
        cells.append(f"{swept[1].rsplit(maxsplit=1)[-1]}, {found.rates[swept]:g}, {swept[2]:g}")
        for recipe in ("recipe", "recipe" + EQUAL_TIME):
            ours = (problem, recipe, SHORT)
            cells.append(f"{found.error(ours):.4f} ({found.tried[ours]})")
        rows.append([NAMES[problem], *cells])
    return table([*head, "recipe, equal steps", "recipe, equal time"], rows)


def ratios_table(found: Found) -> str:
    """The recipe over the sums, in as many steps and in as much time; p of the latter, corrected for the problems."""
    head = ["", "equal steps, / all swept", "/ weights 1, β₂ 0.999", "steps in equal time", "equal time, / all swept"]
    rows, missed, reached = [], [], []
    for problem in found.problems():
        swept, unswept = (found.scores(cell) for cell in (found.best(problem, _sums()), (problem, *AS_PEOPLE_RUN_IT)))
        in_steps, in_time = (found.scores((problem, "recipe" + ending, SHORT)) for ending in ("", EQUAL_TIME))
        missed.append(_p(in_time, swept, 1.2, "greater"))
        reached.append(_p(in_time, unswept, 0.5, "less"))
        steps = str(steps_of("recipe" + EQUAL_TIME, problem, STEPS))
        rows.append([NAMES[problem], *(interval(in_steps, other) for other in (swept, unswept)), steps])
        rows[-1] += [interval(in_time, swept), "", interval(in_time, unswept), ""]
    for row, *ps in zip(rows, holm(missed), holm(reached), strict=True):
        row[5], row[7] = (f"{p:.2g}" for p in ps)
    return table([*head, "p > 1.2", "/ weights 1, β₂ 0.999", "p < 0.5"], rows)


def _p(ours: Sequence[float], others: Sequence[float], limit: float, side: str) -> float:
    """Of Student's t on the paired logarithms: that the ratio is beyond the limit."""
    differences = [one - other - math.log10(limit) for one, other in zip(ours, others, strict=True)]
    return float(stats.ttest_1samp(differences, 0.0, alternative=side).pvalue)


def methods_table(found: Found) -> str:
    """Each way at β₂ = 0.9 over the swept sum, on the problems where methods were tested."""
    problems = [p for p in found.problems() if any(found.tested((p, way, SHORT)) for way in _of_methods())]
    head = ["", *(NAMES[problem] for problem in problems)]
    rows = []
    for way in [UNSWEPT, *_of_methods(), *_rest()]:
        cells = [_over_swept(found, (problem, way, SHORT)) for problem in problems]
        if any(cells):
            rows.append([way, *cells])
    return table(head, rows)


def _over_swept(found: Found, cell: Cell) -> str:
    if not found.tested(cell):
        return ""
    ratio = found.error(cell) / found.error(found.best(cell[0], _sums()))
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def _of_methods() -> list[str]:
    return [NORMS, *(name + ending for name in METHODS for ending in ("", WHITENED, ON_MOMENTA))]


def _rest() -> list[str]:
    return ["ConFIG" + IN_TURN, *(way for way in ways() if way.startswith("conflictfree")), "recipe"]


def harm_table(found: Found) -> str:
    """In which share of the looks each way's step raised the loss that it raised most often, at β₂ = 0.9."""
    head = ["", *(NAMES[problem] for problem in found.problems())]
    rows = []
    for way in ["swept", UNSWEPT, *_of_methods(), "recipe"]:
        cells = []
        for problem in found.problems():
            cell = found.best(problem, _sums()) if way == "swept" else (problem, way, SHORT)
            harm = found.harm(cell) if found.tested(cell) else None
            cells.append("" if harm is None else f"{harm:.0%}")
        if any(cells):
            rows.append(["sum, all swept" if way == "swept" else way, *cells])
    return table(head, rows)


def whitening_table(found: Found) -> str:
    """Each method whitened over the same without: at each memory, and both at their best one."""
    head = ["whitened / without", *(f"{p.capitalize()}, β₂ {b:g}" for p in PROBLEMS for b in BETAS), "at their best β₂"]
    columns: list[list[float]] = []
    for method in AT_EACH_MEMORY:
        pairs = [((p, method + WHITENED, b), (p, method, b)) for p in PROBLEMS for b in BETAS]
        best = [(found.best(p, [method + WHITENED]), found.best(p, [method])) for p in PROBLEMS]
        ratios = [found.error(one) / found.error(other) for one, other in pairs]
        columns.append([*ratios, _geometric(found.error(one) / found.error(other) for one, other in best)])
    mean = [_geometric(of_all) for of_all in zip(*columns, strict=True)]
    rows = [[name, *(f"{ratio:.2f}" for ratio in ratios)] for name, ratios in zip(AT_EACH_MEMORY, columns, strict=True)]
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
    if not found.tested(cell):  # a sum whose weight was not the best one in the tuning
        return ""
    harm = found.harm(cell)
    return f"{found.error(cell):.4f} (rate {found.rates[cell]:g}{'' if harm is None else f', harm {harm:.0%}'})"


def interval(scores: Sequence[float], others: Sequence[float]) -> str:
    """The ratio of two errors with its 95 % interval, by Student's t on the paired logarithms."""
    found = estimate([one - other for one, other in zip(scores, others, strict=True)])
    assert found is not None
    assert found.half is not None  # there are several seeds
    low, high = found.mean - found.half, found.mean + found.half
    return f"{10**found.mean:.2f} ({10**low:.2f} to {10**high:.2f})"


def _geometric(ratios: Iterable[float]) -> float:
    return math.exp(fmean(map(math.log, ratios)))
