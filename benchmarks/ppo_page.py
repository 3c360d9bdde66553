"""What `ppo.py` found, as tables of docs/reinforcement.md. Trains nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from blocks_of_a_page import fill
from markdown_tables import table
from ppo import (
    DEFAULTS,
    OTHERS,
    RATES,
    ROLLOUTS,
    SUMS,
    TESTING,
    Done,
    Run,
    best_rates,
    best_sum,
    finished,
    scores_by_rate,
)

from mtopt._comparison.statistics import SIGNIFICANCE, Estimate, estimate, holm, paired_p

QUANTITIES = "area", "final"
Setting = tuple[str, str, float]  # task, way, rate
Difference = tuple[Estimate, float | None]  # and the corrected p


class Found:
    """The tested scores, and how each way compares with the swept sum of its task."""

    def __init__(self, done: Done) -> None:
        self.done = done
        self.rates = best_rates(done)
        self.tried = {cell: len(rates) for cell, rates in scores_by_rate(done).items()}
        best = {task: best_sum(task, done) for task in ROLLOUTS}
        self.swept = {task: (task, *setting) for task, setting in best.items() if setting is not None}
        self.differences = {quantity: self._differences(quantity) for quantity in QUANTITIES}

    def settings(self, task: str) -> list[Setting]:
        """Those that were tested, but for the swept sum."""
        cells = [(task, way) for way in (*DEFAULTS, *OTHERS) if (task, way) in self.rates]
        settings = [(*cell, self.rates[cell]) for cell in cells]
        return [each for each in settings if each != self.swept.get(task) and self.scores(each, "area")]

    def scores(self, setting: Setting, quantity: str) -> dict[int, float]:
        """By seed."""
        runs = {seed: Run(*setting, seed) for seed in TESTING}
        return {seed: float(self.done[run][quantity]) for seed, run in runs.items() if run in self.done}

    def mean(self, setting: Setting, quantity: str) -> float:
        return fmean(self.scores(setting, quantity).values())

    def n_tried(self, task: str, ways: Iterable[str]) -> int:
        """How many settings of ways the tuning has tried."""
        return sum(self.tried.get((task, way), 0) for way in ways)

    def harm(self, setting: Setting) -> float | None:
        """In which share of the looks the step raised the loss that it raised most often."""
        runs = (self.done.get(Run(*setting, seed)) for seed in TESTING)
        raised = [run["raised"] for run in runs if run is not None]
        return fmean(max(each.values()) for each in raised) if raised and all(raised) else None

    def _differences(self, quantity: str) -> dict[Setting, Difference]:
        """Of each way to the swept sum, seed by seed; the p-values are corrected for all ways and tasks together."""
        found: dict[Setting, list[float]] = {}
        for task, swept in self.swept.items():
            base = self.scores(swept, quantity)
            for setting in self.settings(task):
                own = self.scores(setting, quantity)
                found[setting] = [own[seed] - base[seed] for seed in own if seed in base]
        tested = [setting for setting, values in found.items() if len(values) > 1]
        ps = dict(zip(tested, holm([paired_p(found[setting]) for setting in tested]), strict=True))
        estimates = {setting: estimate(values) for setting, values in found.items()}
        return {setting: (each, ps.get(setting)) for setting, each in estimates.items() if each is not None}


def verdict(difference: Difference) -> str:
    found, p = difference
    if p is None or p >= SIGNIFICANCE:
        return "no difference found"
    return "better" if found.mean > 0 else "worse"


def results_table(path: Path, task: str) -> str:
    """Each way that was tested: how much was tuned, its scores, and how these compare with the swept sum."""
    found = Found(finished(path))
    head = ["way", "settings", "rate"]
    for quantity in QUANTITIES:
        head += [quantity, "to the swept sum", "p"]
    rows = []
    if (swept := found.swept.get(task)) is not None and found.scores(swept, "area"):
        scores = [text for quantity in QUANTITIES for text in (f"{found.mean(swept, quantity):.1f}", "", "")]
        name = swept[1].replace("sum", "sum, swept")
        rows.append([name, found.n_tried(task, SUMS), _rate(swept), *scores, "", ""])
    for setting in found.settings(task):
        scores = [text for quantity in QUANTITIES for text in _scores(found, setting, quantity)]
        harm = found.harm(setting)
        told = verdict(found.differences["area"][setting]) if setting in found.differences["area"] else ""
        share = "" if harm is None else f"{harm:.0%}"
        rows.append([setting[1], found.n_tried(task, [setting[1]]), _rate(setting), *scores, share, told])
    return table([*head, "harm", "verdict on the area"], rows)


def _rate(setting: Setting) -> str:
    rate = setting[-1]
    return f"{rate:g}" + (" (the last that was tried)" if rate in (RATES[0], RATES[-1]) else "")


def _scores(found: Found, setting: Setting, quantity: str) -> list[str]:
    mean = f"{found.mean(setting, quantity):.1f}"
    if setting not in found.differences[quantity]:
        return [mean, "", ""]
    difference, p = found.differences[quantity][setting]
    half = "" if difference.half is None else f" ± {difference.half:.1f}"
    shown = "" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"
    return [mean, f"{difference.mean:+.1f}{half}", shown]


def coefficients_table(path: Path, task: str) -> str:
    """Each pair of coefficients of the sum: its mean area at its best rate, on the seeds for tuning."""
    scores = {way: max(rates.values()) for (of, way), rates in scores_by_rate(finished(path)).items() if of == task}
    pairs = {SUMS[way]: score for way, score in scores.items() if way in SUMS}
    entropies = sorted({entropy for _, entropy in pairs})
    rows = []
    for value in sorted({value for value, _ in pairs}):
        cells = (pairs.get((value, entropy)) for entropy in entropies)
        rows.append([f"value {value:g}", *("" if cell is None else f"{cell:.1f}" for cell in cells)])
    return table(["area", *(f"entropy {entropy:g}" for entropy in entropies)], rows)


def tuned_table(path: Path, task: str) -> str:
    """Each way at each of its rates, tested or not: its mean area on the seeds for tuning."""
    found = scores_by_rate(finished(path))
    by_way = {way: found[task, way] for way in (*DEFAULTS, *OTHERS) if (task, way) in found}
    rates = sorted({rate for scores in by_way.values() for rate in scores})
    rows = []
    for way, scores in by_way.items():
        rows.append([way, *(f"{scores[rate]:.1f}" if rate in scores else "" for rate in rates)])
    return table(["area", *(f"rate {rate:g}" for rate in rates)], rows)


def publish(results: Path, page: Path) -> None:
    blocks = {f"ppo {task}": results_table(results, task) for task in ROLLOUTS}
    blocks |= {f"coefficients {task}": coefficients_table(results, task) for task in ROLLOUTS}
    blocks |= {f"tuned {task}": tuned_table(results, task) for task in ROLLOUTS}
    fill(page, blocks)
