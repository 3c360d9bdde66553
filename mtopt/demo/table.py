"""Results as a table and as sentences that claim no more than the intervals allow. No picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cost import Cost
from .data import TASKS
from .intervals import Interval, mean_interval
from .training import METHODS, PLAIN, SITES, Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Results = Mapping[str, Sequence[Run]]
"""For each method the runs of the same seeds, in the same order."""


def print_results(console: Console, results: Results, costs: Mapping[str, Cost]) -> None:
    """The table, then the comparisons with the plain sum."""
    n_seeds = len(results[PLAIN])
    spread = "± 95 % interval over the seeds" if n_seeds > 1 else "one seed, so no interval"
    title = f"Two overlaid digits, two tasks; {n_seeds} {'seed' if n_seeds == 1 else 'seeds'}"
    notes = [
        "",
        f"accuracy: on test pictures after the last epoch; {spread}",
        "time:     median of interleaved steps ± its 95 % interval",
        "memory:   peak of what a step allocates (not weights, not Adam's state)",
        "conflict: share of coordinates where the tasks' gradients have opposite signs",
        "          (0 < purity < 1) of those with any gradient; mean over the training",
        "",
        *comparison_lines(results),
    ]
    console.print(title)
    console.print(make_table(results, costs))
    for line in notes:
        console.print(line, soft_wrap=True)


def make_table(results: Results, costs: Mapping[str, Cost]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", min_width=24, no_wrap=True)
    for method in METHODS:
        table.add_column(method, justify="right", min_width=12, max_width=12, overflow="fold")
    for name, cells in _rows(results, costs):
        table.add_row(name, *cells)
    return table


def _rows(results: Results, costs: Mapping[str, Cost]) -> Iterator[tuple[str, list[str]]]:
    """Each row's name, and its cell for each method."""
    for i, task in enumerate(TASKS):
        yield f"accuracy, {task} digit, %", [_percent(run.accuracy[-1, i] for run in results[m]) for m in METHODS]
    yield "time per step, × plain", ["1.00" if m == PLAIN else _plus_minus(costs[m].time, 2) for m in METHODS]
    yield "peak memory, × plain", [f"{costs[m].memory:.2f}" for m in METHODS]
    for i, site in enumerate(SITES):
        yield f"conflict, {site}, %", [_percent(run.conflict[:, i].mean() for run in results[m]) for m in METHODS]


def comparison_lines(results: Results) -> list[str]:
    """Each method against the plain sum: paired by seed, at once for all of them."""
    n_seeds = len(results[PLAIN])
    if n_seeds < 2:
        return ["One seed: a difference between methods cannot be told from chance. Use more --seeds."]
    differences = paired_differences(results)
    lines = [
        f"Mean accuracy of both tasks minus the plain sum's, points, paired over {n_seeds} seeds",
        f"(95 % intervals for all {len(differences)} comparisons together, by Bonferroni):",
    ]
    for method, difference in differences.items():
        shown = f"{difference.center:+.2f} ± {difference.half:.2f}"
        lines.append(f"  {method:22} {shown:>15}   {verdict(difference)}")
    if any(difference.includes_zero for difference in differences.values()):
        lines.append("No difference found is a tie: any true difference within ± would look like this.")
    lines.append("One small data set, one network, one learning rate for all: yours may differ.")
    return lines


def paired_differences(results: Results) -> dict[str, Interval]:
    """Difference in mean final accuracy to the plain sum, in points, for the other methods."""
    final = {method: torch.stack([run.accuracy[-1].mean() for run in runs]) for method, runs in results.items()}
    others = [method for method in results if method != PLAIN]
    return {m: mean_interval(final[m] - final[PLAIN], comparisons=len(others)) * 100 for m in others}


def verdict(difference: Interval) -> str:
    """A tie where the interval includes 0."""
    if difference.includes_zero:
        return "no difference found"
    size = abs(difference.center)
    how = "better" if difference.center > 0 else "worse"
    return f"{how} by {size - difference.half:.2f} to {size + difference.half:.2f}"


def _percent(shares: Iterable[Tensor]) -> str:
    """Mean over the seeds."""
    return _plus_minus(mean_interval(torch.stack(list(shares))) * 100, 1)


def _plus_minus(interval: Interval, digits: int) -> str:
    half = f" ± {interval.half:.{digits}f}" if interval.known else ""
    return f"{interval.center:.{digits}f}{half}"
