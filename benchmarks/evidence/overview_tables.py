"""The tables of docs/evidence.md on all problems at once. No statistics, and no table on a single problem."""

from __future__ import annotations

from typing import Any

from markdown_tables import table

import mtopt

from .claims import Gain, Pair, Paired, Results, gains, with_graddrop, with_partners
from .methods import BEFORE_GRADDROP, PLAIN
from .summary import BETTER, DIVERGED, NO_DIFFERENCE, WORSE
from .table import interval
from .words import TITLES, p_value

SHORT = {BETTER: "better", WORSE: "worse", NO_DIFFERENCE: "·", DIVERGED: "diverged"}


def gain_table(problems: Results) -> str:
    """Where a method is better than the plain sum, and what the better of the tuned sums makes of it."""
    ours, theirs = ("difference to the plain sum", "p", "all problems"), ("tuned sum", "difference to it", "p", "")
    return table(("problem", "method", *ours, *theirs), (_gain_row(gain, problems) for gain in gains(problems)))


def _gain_row(gain: Gain, problems: Results) -> tuple[str, ...]:
    problem, method = gain.pair
    summary = problems[problem]["methods"][method]["summary"]
    overall = SHORT[BETTER if gain.overall else NO_DIFFERENCE]
    row = (TITLES[problem], method, interval(summary["difference"], sign=True), p_value(summary["p"]), overall)
    if gain.sum is None or gain.against is None:
        return (*row, "", "", "", "not tested")
    test = gain.against
    difference = f"{test.difference.mean:+.4f} ± {test.difference.half:.4f}"
    verdict = test.verdict(problems[problem]["settings"]["larger_is_better"])
    return (*row, gain.sum, difference, p_value(test.p), verdict)


def grid(problems: Results) -> str:
    """Each method on each problem, in a word."""
    methods = list(dict.fromkeys(name for known in problems.values() for name in known["methods"] if name != PLAIN))
    entries = {method: [known["methods"].get(method) for known in problems.values()] for method in methods}
    rows = [(_linked(method), *map(_word, own)) for method, own in entries.items()]
    return table(("", *(TITLES[name] for name in problems)), rows, numbers=False)


def behind_table(problems: Results) -> str:
    """What GradDrop does to the methods that it is put behind."""
    words = {pair: _verdict(pair, test, problems) for pair, test in with_graddrop(problems).items()}
    rows = ((method, *(words.get((name, method), "") for name in problems)) for method in BEFORE_GRADDROP)
    return table(("", *(TITLES[name] for name in problems)), rows, numbers=False)


def partner_table(problems: Results, family: str) -> str:
    """The difference of each method of a family to its partner, and a word; of the problems that have the family."""
    cells = {
        pair: f"{test.difference.mean:+.4f} {_verdict(pair, test, problems)}"
        for pair, test in with_partners(problems, family).items()
    }
    names = list(dict.fromkeys(problem for problem, _ in cells))
    methods = dict.fromkeys(method for _, method in cells)
    rows = (
        (_linked(method.removesuffix(f", {family}")), *(cells.get((name, method), "") for name in names))
        for method in methods
    )
    return table(("", *(TITLES[name] for name in names)), rows)


def _verdict(pair: Pair, test: Paired, problems: Results) -> str:
    return SHORT[test.verdict(problems[pair[0]]["settings"]["larger_is_better"])]


def _word(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return SHORT[entry["summary"]["verdict"]] if "summary" in entry else SHORT[DIVERGED]


def _linked(method: str) -> str:
    return f"[{method}][mtopt.{method}]" if method in mtopt.__all__ else method
