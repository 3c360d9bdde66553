"""What the results of all problems, taken together, allow to say: tests beyond those of each problem. No text."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from mtopt._comparison.statistics import LEAST_SEEDS, SIGNIFICANCE, Estimate, estimate, holm, paired_p

from .methods import BEFORE_GRADDROP, PLAIN
from .summary import BETTER, NO_DIFFERENCE, WORSE

TUNED_SUMS = ("tuned weights", "weight decay")

Found = Mapping[str, Any]  # the results of a problem, as they are written
Results = Mapping[str, Found]  # by problem
Scores = Mapping[int, float]  # by seed
Pair = tuple[str, str]  # problem, method
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Paired:
    """One method against another with the same seeds.

    Attributes:
        difference: Of the scores.
        raw: The p-value of the paired t test.
        p: The same, corrected for all tests that were made together with it.
    """

    difference: Estimate
    raw: float
    p: float

    def verdict(self, larger_is_better: bool) -> str:
        """One of three words."""
        if self.p >= SIGNIFICANCE:
            return NO_DIFFERENCE
        return BETTER if (self.difference.mean > 0) == larger_is_better else WORSE


@dataclass(frozen=True)
class Gain:
    """A method that is better than the plain sum on a problem.

    Attributes:
        pair: The problem and the method.
        sum: The better of the tuned sums in the test, if any has finished.
        against: The method against it.
        beats: Whether it is better than that one, too.
        overall: Whether it is better than the plain sum even if corrected for the tests of all problems.
    """

    pair: Pair
    sum: str | None
    against: Paired | None
    beats: bool
    overall: bool


def paired(pairs: Mapping[Key, tuple[Scores | None, Scores | None]]) -> dict[Key, Paired]:
    """Tests of the first scores against the second, corrected for their number; none where a run has failed."""
    differences = {
        key: [score - other[seed] for seed, score in own.items()]
        for key, (own, other) in pairs.items()
        if own is not None and other is not None and own.keys() == other.keys() and len(own) >= LEAST_SEEDS
    }
    raw = {key: paired_p(values) for key, values in differences.items()}
    found = {}
    for (key, values), p in zip(differences.items(), holm(list(raw.values())), strict=True):
        difference = estimate(values)
        assert difference is not None
        found[key] = Paired(difference, raw[key], p)
    return found


def scores(entry: Mapping[str, Any] | None) -> Scores | None:
    """The scores by seed; `None` if a run has diverged, or there are none."""
    runs = [] if entry is None else entry.get("runs", [])
    return {run["seed"]: run["score"] for run in runs} if runs and all("score" in run for run in runs) else None


def methods_tested(found: Found) -> Iterator[tuple[str, str]]:
    """The methods of a problem that are more than a tuned sum, and the verdict on each."""
    for name, entry in found["methods"].items():
        if name not in (PLAIN, *TUNED_SUMS) and "summary" in entry:
            yield name, entry["summary"]["verdict"]


def best_sum(found: Found) -> str | None:
    """The tuned sum with the better mean in the test."""
    means = {name: fmean(s.values()) for name in TUNED_SUMS if (s := scores(found["methods"].get(name))) is not None}
    pick = max if found["settings"]["larger_is_better"] else min
    return pick(means, key=lambda name: means[name], default=None)


def against(found: Found, base: str) -> dict[str, Paired]:
    """All methods of a problem, but for the sums, against one of the tuned sums."""
    other = scores(found["methods"][base])
    names = (name for name in found["methods"] if name not in (PLAIN, *TUNED_SUMS))
    return paired({name: (scores(found["methods"][name]), other) for name in names})


def by_family(results: Results) -> dict[str, Results]:
    """The results of each family of methods, beside the sums."""
    families = [entry.get("family", "") for known in results.values() for entry in known["methods"].values()]
    return {
        family: {name: _alone(known, family) for name, known in results.items()} for family in dict.fromkeys(families)
    }


def _alone(found: Found, family: str) -> Found:
    methods = {
        name: entry
        for name, entry in found["methods"].items()
        if name in (PLAIN, *TUNED_SUMS) or entry.get("family", "") == family
    }
    return {**found, "methods": methods}


def gains(results: Results) -> list[Gain]:
    """Every method that is better than the plain sum, family by family and problem by problem."""
    return [gain for alone in by_family(results).values() for gain in _gains(alone)]


def _gains(results: Results) -> list[Gain]:
    overall = better_overall(results)
    found = []
    for problem, known in results.items():
        base = best_sum(known)
        tests = {} if base is None else against(known, base)
        for method, verdict in methods_tested(known):
            if verdict == BETTER:
                test = tests.get(method)
                beats = test is not None and test.verdict(known["settings"]["larger_is_better"]) == BETTER
                found.append(Gain((problem, method), base, test, beats, (problem, method) in overall))
    return found


def better_overall(results: Results) -> set[Pair]:
    """Pairs that are better than the plain sum if corrected for the tests of all problems at once."""
    pairs = {
        (problem, method): (scores(entry), scores(known["methods"][PLAIN]))
        for problem, known in results.items()
        for method, entry in known["methods"].items()
        if method != PLAIN
    }
    better = {problem: known["settings"]["larger_is_better"] for problem, known in results.items()}
    return {pair for pair, test in paired(pairs).items() if test.verdict(better[pair[0]]) == BETTER}


def with_graddrop(results: Results) -> dict[Pair, Paired]:
    """The methods with GradDrop behind them against the same alone; corrected for all problems at once."""
    pairs = {
        (problem, method): (
            scores(known["methods"].get(f"{method}, then GradDrop")),
            scores(known["methods"].get(method)),
        )
        for problem, known in results.items()
        for method in BEFORE_GRADDROP
    }
    return paired(pairs)


def with_partners(results: Results, family: str) -> dict[Pair, Paired]:
    """The methods of a family against their partners; corrected for all problems at once."""
    pairs = {
        (problem, method): (scores(entry), scores(known["methods"].get(entry["partner"])))
        for problem, known in results.items()
        for method, entry in known["methods"].items()
        if entry.get("family") == family and "partner" in entry
    }
    return paired(pairs)
