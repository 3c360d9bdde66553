"""What may be said of the runs of a problem: means, intervals, corrected tests against the plain sum. No training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mtopt._comparison.statistics import LEAST_SEEDS, SIGNIFICANCE, Estimate, estimate, holm, paired_p

from .methods import PLAIN

BETTER, WORSE, NO_DIFFERENCE, DIVERGED = "better", "worse", "no difference found", "diverged"

Runs = Sequence[Mapping[str, Any]]
Row = dict[str, Any]


def summarize(runs: Mapping[str, Runs], larger_is_better: bool) -> dict[str, Row]:
    """For each method its mean score and, but for the plain sum, the paired difference, the p-value and a word.

    Args:
        runs: Of each method, the plain sum among them; each has a `seed`, and a `score` or why it has `diverged`.
        larger_is_better: Of the score.

    Returns:
        By method; a method of which a run has diverged is not tested.
    """
    plain = _scores(runs[PLAIN])
    rows: dict[str, Row] = {}
    ps: dict[str, float] = {}
    for name, own in runs.items():
        scores = _scores(own)
        rows[name] = {"score": _written(estimate(list(scores.values()))), "diverged": len(own) - len(scores)}
        if name == PLAIN:
            continue
        differences = [score - plain[seed] for seed, score in scores.items() if seed in plain]
        rows[name] |= {"difference": _written(estimate(differences)), "p": None, "verdict": DIVERGED}
        if len(differences) == len(own) >= LEAST_SEEDS:
            ps[name] = paired_p(differences)
    for name, p in zip(ps, holm(list(ps.values())), strict=True):
        gain = rows[name]["difference"]["mean"] * (1 if larger_is_better else -1)
        verdict = NO_DIFFERENCE if p >= SIGNIFICANCE else BETTER if gain > 0 else WORSE
        rows[name] |= {"p": float(f"{p:.3g}"), "verdict": verdict}
    return rows


def summarize_by_family(
    runs: Mapping[str, Runs], families: Mapping[str, str], larger_is_better: bool
) -> dict[str, Row]:
    """The same, with the p-values of each family of methods corrected for that family alone."""
    rows: dict[str, Row] = {}
    for family in dict.fromkeys(families[name] for name in runs):
        own = {name: known for name, known in runs.items() if name == PLAIN or families[name] == family}
        rows |= summarize(own, larger_is_better)
    return {name: rows[name] for name in runs}


def by_task(runs: Runs) -> dict[str, float]:
    """The mean metric of each task over the runs that have it."""
    finished = [run["metrics"] for run in runs if "metrics" in run]
    return {task: round(fmean(metrics[task] for metrics in finished), 5) for task in (finished[0] if finished else ())}


def _scores(runs: Runs) -> dict[int, float]:
    return {run["seed"]: run["score"] for run in runs if "score" in run}


def _written(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    half = None if found.half is None else round(found.half, 6)
    return {"mean": round(found.mean, 6), "half": half, "n": found.n}
