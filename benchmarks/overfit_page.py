"""What `overfit.py` compares, and what came out: ways, settings to try, tests, tables of docs/overfitting.md.

Trains nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from blocks_of_a_page import fill
from evidence.claims import Paired, paired
from evidence.methods import SignAgnostic
from evidence.summary import NO_DIFFERENCE
from evidence.words import EDGE, p_value
from markdown_tables import table
from resumable import beside, read_runs

import mtopt
from mtopt import GradDrop
from mtopt._comparison.statistics import estimate

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FIRST_RATES = RATES[2:5]  # then outwards, for all ways alike, until no way's best is at an edge
FIRST_STRENGTHS = 3
TUNING, TESTING = range(100, 103), range(10)  # seeds
PLAIN, DROPOUT, DECAY = "plain sum", "dropout", "weight decay"
REGULARIZERS = DROPOUT, DECAY
QUICK = "quick_digits"
TITLES = {
    "yeast": "Yeast",
    "two_digits": "Two digits",
    "multi_fashion": "Multi-Fashion",
    "census": "Census-Income",
    "transfer": "Transfer",
    QUICK: "Quick digits",
}


@dataclass(frozen=True)
class Way:
    """What is trained with.

    Attributes:
        make: From the strength to the transforms.
        at: Where the rows are; "trunk" is the trunk's output.
        strengths: What is tuned beside the rate, from the weakest on: the first three, and more if the last is best.
        momentum: Adam's β₁.
    """

    make: Callable[[float], list[mtopt.Transform]] = lambda _: []
    at: str = "activations"
    strengths: tuple[float, ...] = (0.0,)
    momentum: float = 0.9


def ways(problem: str) -> dict[str, Way]:
    """By name. A stack's activations have the dims network, example and feature: a batch decides over dim 1."""
    dropouts, decays = (0.1, 0.3, 0.5, 0.7, 0.85), (0.1, 0.3, 1.0, 3.0, 10.0)
    sums = {PLAIN: Way(), DROPOUT: Way(strengths=dropouts), DECAY: Way(strengths=decays)}
    if problem == "transfer":  # no example has two losses: only decisions over examples differ from the plain sum
        leak = {"target": 1.0}
        return sums | {
            "GradDrop, marginalized, leak 1": Way(lambda _: [GradDrop(leak=leak, marginalize=1)], "trunk"),
            "GradDrop, marginalized": Way(lambda _: [GradDrop(marginalize=1)], "trunk"),
            "GradDrop, at parameters, leak 1": Way(lambda _: [GradDrop(leak=leak)], "parameters"),
            "momentum, then GradDrop, at parameters, leak 1": Way(
                lambda _: [mtopt.Momentum(), GradDrop(leak=leak)], "parameters", momentum=0.0
            ),
            "Random GradDrop": Way(lambda _: [GradDrop(keep=0.0, marginalize=1)], "trunk"),
            "sign-agnostic masking": Way(lambda _: [SignAgnostic()], "parameters"),
        }
    return sums | {
        "GradDrop": Way(lambda _: [GradDrop()]),
        "GradDrop, tuned leak": Way(lambda leak: [GradDrop(leak=leak)], strengths=(0.25, 0.5, 0.75)),
        "GradDrop, marginalized": Way(lambda _: [GradDrop(marginalize=1)], "trunk"),
        "GradDrop, at parameters": Way(lambda _: [GradDrop()], "parameters"),
        "momentum, then GradDrop, at parameters": Way(
            lambda _: [mtopt.Momentum(), GradDrop()], "parameters", momentum=0.0
        ),
        "Random GradDrop": Way(lambda _: [GradDrop(keep=0.0)]),
        "sign-agnostic masking": Way(lambda _: [SignAgnostic()]),
    }


@dataclass(frozen=True)
class Run:
    """One training."""

    problem: str
    way: str
    rate: float
    strength: float
    seed: int


Done = Mapping[Run, Mapping[str, Any]]
"""Finished trainings, with their scores and losses at the best validation score, the least validation loss, the end."""
Setting = tuple[float, float]  # rate, strength
Tests = dict[tuple[str, str], Paired]  # by problem and way


def finished(path: Path) -> Done:
    return read_runs(path, Run)


def tuning(problem: str, done: Done) -> list[Run]:
    """All runs of the tuning so far: the first ones, and more where these are finished and a best one is at an edge."""
    quick = problem == QUICK
    rates = set(FIRST_RATES[1:2] if quick else FIRST_RATES)
    counts = dict.fromkeys(ways(problem), 1 if quick else FIRST_STRENGTHS)
    while True:
        runs = [
            Run(problem, name, rate, strength, seed)
            for name, way in ways(problem).items()
            for strength in way.strengths[: counts[name]]
            for rate in sorted(rates)
            for seed in (TUNING[:1] if quick else TUNING)
        ]
        if quick or any(run not in done for run in runs):
            return runs
        before = len(rates), sum(counts.values())
        tried = set(rates)
        for name, (rate, strength) in best(problem, {run: done[run] for run in runs}).items():
            strengths = ways(problem)[name].strengths
            rates.add(beside(RATES, rate, tried))
            counts[name] += strength == strengths[: counts[name]][-1] and counts[name] < len(strengths)
        if before == (len(rates), sum(counts.values())):
            return runs


def validated(problem: str, done: Done) -> dict[str, dict[Setting, float]]:
    """By way the mean validation score of each setting, over the seeds for tuning."""
    found: dict[str, dict[Setting, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, record in done.items():
        if run.problem == problem and run.seed in TUNING:
            found[run.way][run.rate, run.strength].append(record["best"]["validation"][0])
    return {way: {setting: fmean(scores) for setting, scores in by.items()} for way, by in found.items()}


def best(problem: str, done: Done) -> dict[str, Setting]:
    return {way: max(by, key=by.__getitem__) for way, by in validated(problem, done).items()}


def testing(problem: str, done: Done) -> list[Run]:
    """The runs with the best setting of each way."""
    seeds = TESTING[:3] if problem == QUICK else TESTING
    return [Run(problem, way, *setting, seed) for way, setting in best(problem, done).items() for seed in seeds]


# -- tables ------------------------------------------------------------------------------------------------------------


class Found:
    """What was chosen and tested on each problem."""

    def __init__(self, done: Done) -> None:
        runs = {name: testing(name, done) for name in TITLES}
        self.problems = [name for name, own in runs.items() if own and all(run in done for run in own)]
        self.validated = {name: validated(name, done) for name in self.problems}
        self.chosen = {name: best(name, done) for name in self.problems}
        self.tested: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for run in (run for name in self.problems for run in runs[name]):
            self.tested[run.problem, run.way][run.seed] = done[run]

    def numbers(self, key: tuple[str, str], place: str, split: str, which: int = 0) -> dict[int, float]:
        """By seed: a score (0) or a loss (1)."""
        return {seed: record[place][split][which] for seed, record in self.tested[key].items()}

    def mean(self, key: tuple[str, str], place: str, split: str, which: int = 0) -> float:
        return fmean(self.numbers(key, place, split, which).values())

    def tests(self, place: str = "best", which: int = 0) -> Tests:
        """Each way against the plain sum by the test score, or loss, corrected for all problems together."""
        values = {key: self.numbers(key, place, "test", which) for key in self.tested}
        return paired({key: (own, values[key[0], PLAIN]) for key, own in values.items() if key[1] != PLAIN})

    def leader(self, problem: str, names: Iterable[str]) -> str:
        """The way with the best score in the tuning."""
        return max(names, key=lambda way: max(self.validated[problem][way].values()))

    def against_regularizers(self) -> dict[str, tuple[str, str, Paired]]:
        """The form of GradDrop that led in the tuning, against the regularizer that led, on each problem."""
        pairs = {}
        for problem in self.problems:
            forms = (way for way in self.chosen[problem] if "GradDrop" in way and way != "Random GradDrop")
            ours = self.leader(problem, forms)
            pairs[problem, ours, self.leader(problem, REGULARIZERS)] = problem
        scores = {key: self.numbers(key, "best", "test") for key in self.tested}
        found = paired({key: (scores[key[0], key[1]], scores[key[0], key[2]]) for key in pairs})
        return {problem: (ours, theirs, test) for (problem, ours, theirs), test in found.items()}


def tables(done: Done) -> dict[str, str]:
    """All tables by name."""
    found = Found(done)
    tests, of_losses = found.tests(), found.tests("least loss", 1)
    blocks = {"all": all_table(found, tests), "losses": all_table(found, of_losses, losses=True)}
    blocks |= {"regularizers": regularizers_table(found), "overfit": overfit_table(found)}
    for problem in found.problems:
        blocks[f"{problem} scores"] = scores_table(found, tests, problem)
        blocks[f"{problem} gaps"] = gaps_table(found, problem)
    return blocks


def publish(done: Done, page: Path) -> None:
    fill(page, tables(done))


def all_table(found: Found, tests: Tests, losses: bool = False) -> str:
    """The differences to the plain sum of all ways on all problems, those of scores in hundredths."""
    names = dict.fromkeys(way for problem in found.problems for way in found.chosen[problem] if way != PLAIN)
    rows = [[way, *(_short(tests.get((problem, way)), losses) for problem in found.problems)] for way in names]
    return table(("", *(TITLES[problem] for problem in found.problems)), rows)


def regularizers_table(found: Found) -> str:
    rows = []
    for problem, (ours, theirs, test) in found.against_regularizers().items():
        rows.append((TITLES[problem], ours, theirs, _points(test), p_value(test.p), test.verdict(True)))
    return table(("", "GradDrop", "regularizer", "difference", "p", ""), rows)


def overfit_table(found: Found) -> str:
    """The plain sum: where its validation loss is least, and what it has become at the end."""
    head = ("", "step", "validation loss", "at the end", "training score at the end", "test score at the end")
    rows = []
    for problem in found.problems:
        key = (problem, PLAIN)
        step = fmean(record["least loss"]["step"] for record in found.tested[key].values())
        losses = [f"{found.mean(key, place, 'validation', 1):.3f}" for place in ("least loss", "end")]
        scores = [f"{100 * found.mean(key, 'end', split):.1f}" for split in ("training", "test")]
        rows.append((TITLES[problem], f"{step:.0f}", *losses, *scores))
    return table(head, rows)


def scores_table(found: Found, tests: Tests, problem: str) -> str:
    """What was chosen of how many trainings, the test score, and the difference to the plain sum."""
    rows = []
    for way, (rate, strength) in found.chosen[problem].items():
        score = estimate([100 * score for score in found.numbers((problem, way), "best", "test").values()])
        test = tests.get((problem, way))
        shown = ("", "", "") if test is None else (_points(test), p_value(test.p), test.verdict(True))
        runs = len(TUNING) * len(found.validated[problem][way])
        mean = "" if score is None or score.half is None else f"{score.mean:.2f} ± {score.half:.2f}"
        rows.append((way, f"{rate:g}{_edge(rate)}" + (f", {strength:g}" if strength else ""), runs, mean, *shown))
    return table(("way", "chosen", "tuning runs", "test score", "difference", "p", ""), rows)


def gaps_table(found: Found, problem: str) -> str:
    """Training and test scores at the best validation score and at the end, and the least test loss."""
    head = ("way", "step", "training", "test", "gap", "end: training", "end: test", "end: gap", "test loss")
    rows = []
    for way in found.chosen[problem]:
        key = (problem, way)
        cells = [f"{fmean(record['best']['step'] for record in found.tested[key].values()):.0f}"]
        for place in ("best", "end"):
            training, test = (100 * found.mean(key, place, split) for split in ("training", "test"))
            cells += [f"{training:.1f}", f"{test:.1f}", f"{training - test:.1f}"]
        rows.append((way, *cells, f"{found.mean(key, 'least loss', 'test', 1):.3f}"))
    return table(head, rows)


def _points(test: Paired) -> str:
    return f"{100 * test.difference.mean:+.2f} ± {100 * (test.difference.half or 0):.2f}"


def _short(test: Paired | None, losses: bool) -> str:
    if test is None:
        return ""
    word, mean = test.verdict(larger_is_better=not losses), test.difference.mean
    return (f"{mean:+.3f}" if losses else f"{100 * mean:+.2f}") + ("" if word == NO_DIFFERENCE else f", {word}")


def _edge(rate: float) -> str:
    return EDGE if rate in (RATES[0], RATES[-1]) else ""
