"""The demo's digits: `mtopt.compare` on them, its table in short, and the words that its tests allow. No options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from .._comparison.arguments import PLAIN
from .._comparison.compare import Comparison, compare
from .._comparison.statistics import BETTER, LEAST_SEEDS, NO_DIFFERENCE, TOO_FEW, WORSE, Quantity, Summary, summarize
from .._comparison.study import Study, checked_study
from .._comparison.trial import first_losses
from .._demo.data import Data
from .._demo.digits import problem
from .._demo.digits_picture import Scores, draw
from .._survey.report import conflict_report
from .screen import count, show

EXTRAS = ("scipy.special", "sklearn.datasets", "matplotlib.figure", "rich.progress")


def run(seeds: Sequence[int], epochs: int, path: Path) -> bool:
    """Train, print and draw; returns whether all runs are finished."""
    arguments = {**problem(seeds[0], epochs), "seeds": seeds}
    conflict = conflict_at_start(checked_study(**arguments))
    result = compare(**arguments)
    if not result.complete:
        return False
    summary = summarize(result.runs, result.study["methods"], result.study["threads"])
    accuracies = [quantity for quantity in summary.quantities if quantity.kind == "metric"]
    length = f"{count(len(seeds), 'seed')}, {count(epochs, 'epoch')}"
    told = (
        f"Two handwritten digits lie over each other; one task names the left one, one the right. {length}. {conflict}"
    )
    header = ("", *(quantity.name for quantity in accuracies), "CPU time of a step, ms")
    show("Digits: two in one picture", [told], header, _rows(summary, accuracies), verdict(summary))
    about = f"Two digits in one picture: {length}; grey: single seeds, bars: 95 % of the mean"
    scores = {quantity.name: _scores(result, quantity) for quantity in accuracies}
    draw(Data(seeds[0]).test, scores, _milliseconds(summary), about, path)
    print(f"Picture: {path}")
    return True


def conflict_at_start(study: Study) -> str:
    """How the gradients of the first batch stand to each other."""
    report = conflict_report(*first_losses(study))
    meeting = report.meetings[0].conflict
    return (
        f"On the first batch, before training, the tasks' gradients have opposite signs at {100 * meeting.share:.0f} % "
        f"of the numbers of the shared activation (50 % if unrelated); their cosine is {meeting.cosines[0, 1]:+.2f}."
    )


def verdict(summary: Summary) -> str:
    """What differs from the plain sum, of all losses and accuracies, by paired t tests."""
    methods = [method for method in summary.costs if method != PLAIN]
    words = [quantity.results[method].verdict for quantity in summary.quantities for method in methods]
    told = [f"{name} diverged in {c.diverged} of {c.runs} runs" for name, c in summary.costs.items() if c.diverged]
    for word in (BETTER, WORSE):
        for method in methods:
            quantities = [q for q in summary.quantities if q.results[method].verdict == word]
            names = [q.name if q.kind == "metric" else f"loss {q.name}" for q in quantities]
            if names:
                told.append(f"{method} is {word} than the {PLAIN} in {', '.join(names)}")
    if TOO_FEW in words:
        told.append(f"too few seeds for a test, which needs {LEAST_SEEDS}")
    if NO_DIFFERENCE in words:
        rest = "the rest" if told else f"all {count(len(words), 'comparison')}"
        told.append(f"no difference to the {PLAIN} found in {rest} ({count(words.count(NO_DIFFERENCE), 'test')})")
    return f"{'; '.join(told)}."


def _rows(summary: Summary, accuracies: Sequence[Quantity]) -> Iterator[tuple[str, ...]]:
    for method, milliseconds in _milliseconds(summary).items():
        estimates = [quantity.results[method].estimate for quantity in accuracies]
        told = [
            "" if e is None else f"{e.mean:.1f}" + ("" if e.half is None else f" ± {e.half:.1f}") for e in estimates
        ]
        yield (method, *told, "" if milliseconds is None else f"{milliseconds:.2g}")


def _milliseconds(summary: Summary) -> dict[str, float | None]:
    seconds = {method: cost.seconds_per_step for method, cost in summary.costs.items()}
    return {method: None if each is None else 1000 * each for method, each in seconds.items()}


def _scores(result: Comparison, quantity: Quantity) -> dict[str, Scores]:
    """Of each method that has one."""
    known = {method: found.estimate for method, found in quantity.results.items() if found.estimate is not None}
    values = {m: [run["metrics"][quantity.name] for run in result.runs if run["method"] == m] for m in known}
    return {m: Scores([v for v in values[m] if v is not None], e.mean, e.half) for m, e in known.items()}
