"""Results as a table and as sentences that claim no more than the intervals allow. No picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

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
    spread = "mean ± 95 % interval over the seeds" if n_seeds > 1 else "one seed, so no interval"
    lines_before = [f"Two overlaid digits, two tasks; {n_seeds} {'seed' if n_seeds == 1 else 'seeds'}"]
    lines_after = [
        f"accuracy: on test pictures after the last epoch, {spread}",
        "time:     median of interleaved steps ± its 95 % interval",
        "memory:   most bytes alive of what a step allocates (no weights, no optimizer state)",
        "conflict: share of coordinates where the tasks' gradients have opposite signs",
        "          (0 < purity < 1) of those with any gradient; mean over the training",
        "",
        *comparison_lines(results),
    ]
    for part in (*lines_before, make_table(results, costs), *lines_after):
        console.print(part, soft_wrap=isinstance(part, str))


def make_table(results: Results, costs: Mapping[str, Cost]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", min_width=24, no_wrap=True)
    for method in METHODS:
        table.add_column(method, justify="right", min_width=12, max_width=12, overflow="fold")
    for name, cell in _rows(results, costs):
        table.add_row(name, *map(cell, METHODS))
    return table


def _rows(results: Results, costs: Mapping[str, Cost]) -> list[tuple[str, Callable[[str], str]]]:
    """Each row's name, and its cell for a method."""
    rows: list[tuple[str, Callable[[str], str]]] = []
    for i, task in enumerate(TASKS):
        rows.append((f"accuracy, {task} digit, %", lambda method, i=i: _percent(_accuracy(results[method], i))))  # type: ignore[misc]
    rows.append(("time per step, × plain", lambda method: _time(method, costs[method])))
    rows.append(("peak memory, × plain", lambda method: f"{costs[method].memory:.2f}"))
    for i, site in enumerate(SITES):
        rows.append((f"conflict, {site}, %", lambda method, i=i: _percent(_conflict(results[method], i))))  # type: ignore[misc]
    return rows


def comparison_lines(results: Results) -> list[str]:
    """Each method against the plain sum: paired by seed, at once for all of them."""
    n_seeds = len(results[PLAIN])
    if n_seeds < 2:
        return ["One seed: a difference between methods cannot be told from chance. Use more --seeds."]
    differences = paired_differences(results)
    lines = [
        f"Mean accuracy of both tasks against the plain sum, in points, paired over {n_seeds} seeds",
        f"(95 % intervals for all {len(differences)} comparisons together, by Bonferroni):",
    ]
    lines += [f"  {m:22} {_signed(difference):>15}   {verdict(difference)}" for m, difference in differences.items()]
    if any(difference.includes_zero for difference in differences.values()):
        lines.append("No difference found is a tie: a difference within ± would not be seen by this run.")
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


def _accuracy(runs: Sequence[Run], task: int) -> Interval:
    return mean_interval(torch.stack([run.accuracy[-1, task] for run in runs]))


def _conflict(runs: Sequence[Run], site: int) -> Interval:
    return mean_interval(torch.stack([run.conflict[:, site].mean() for run in runs]))


def _percent(interval: Interval) -> str:
    shown = interval * 100
    return f"{shown.center:.1f} ± {shown.half:.1f}" if shown.known else f"{shown.center:.1f}"


def _time(method: str, cost: Cost) -> str:
    return f"{cost.time.center:.2f}" + ("" if method == PLAIN else f" ± {cost.time.half:.2f}")


def _signed(interval: Interval) -> str:
    return f"{interval.center:+.2f} ± {interval.half:.2f}"
