"""What `promise.py` found: the tested scores of each way, and what its tuning chose."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from promise import TESTING, Cell, Done, Run, best_rates, scores_by_rate
from promise_ways import BETAS, MORE_WEIGHTS, SOAP, SOAP_BETAS, WEIGHTS, sum_of

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

    def steps(self, cell: Cell) -> int:
        """How many each of its tested trainings took."""
        problem, way, beta = cell
        (steps,) = {int(self.done[Run(problem, way, self.rates[cell], beta, seed)]["steps"]) for seed in TESTING}
        return steps

    def error(self, cell: Cell) -> float:
        """The geometric mean over the seeds."""
        return float(10 ** fmean(self.scores(cell)))

    def harm(self, cell: Cell) -> float | None:
        """In which share of the looks the step raised the loss that it raised most often."""
        problem, way, beta = cell
        raised = [self.done[Run(problem, way, self.rates[cell], beta, seed)]["raised"] for seed in TESTING]
        return fmean(max(each.values()) for each in raised) if all(raised) else None

    def best(self, problem: str, names: Sequence[str], betas: Sequence[float] = BETAS) -> Cell | None:
        """The way and memory with the lowest error of the tuning; `None` if there is none."""
        cells = ((problem, way, beta) for way in names for beta in betas)
        return min((cell for cell in cells if cell in self.tuned), key=self.tuned.__getitem__, default=None)

    def swept(self, problem: str) -> Cell:
        """The best of the sums with Adam."""
        best = self.best(problem, all_sums())
        assert best is not None
        return best

    def runs(self, problem: str, names: Sequence[str], betas: Sequence[float] = BETAS) -> int:
        """How many settings a choice was made of."""
        return sum(self.tried.get((problem, way, beta), 0) for way in names for beta in betas)


def cell_of(problem: str, way: str) -> Cell:
    """At the one memory that every way of its optimizer has: Adam's shortest, or SOAP's."""
    return problem, way, SOAP_BETAS[1] if SOAP in way else BETAS[0]


def all_sums() -> list[str]:
    return [sum_of(weight) for weight in (*WEIGHTS, *MORE_WEIGHTS)]
