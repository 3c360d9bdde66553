"""A summary as a table and as sentences that claim no more than the tests allow. No statistics."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from textwrap import wrap
from typing import Any

from .arguments import PLAIN
from .extras import extra
from .statistics import BETTER, LEAST_SEEDS, NO_DIFFERENCE, TOO_FEW, WORSE, Cost, Estimate, Result, Summary

HEADER = ("", "mean ± 95 %", f"against {PLAIN}", "p (Holm)", "verdict")

Row = tuple[str, ...]
"""The cells of a line; one cell alone is a heading."""


def rows(summary: Summary) -> Iterator[Row]:
    """The lines of the table, below its header."""
    for quantity in summary.quantities:
        yield (f"{quantity.kind} {quantity.name} ({'more' if quantity.larger_is_better else 'less'} is better)",)
        for method, result in quantity.results.items():
            yield (method, *_cells(result))
    yield from _cost_rows(
        f"time per step, ms ({summary.clock})", summary.costs, lambda cost: _times(cost.seconds_per_step, 1e3)
    )
    yield from _cost_rows("peak memory of a step, MB", summary.costs, lambda cost: _times(cost.memory, 1e-6))
    if len({cost.steps for cost in summary.costs.values()} - {None}) > 1:
        yield from _cost_rows("steps", summary.costs, lambda cost: cost.steps)
    if any(cost.diverged for cost in summary.costs.values()):
        yield ("diverged runs",)
        for method, cost in summary.costs.items():
            yield (method, f"{cost.diverged} of {cost.runs}", "", "", "")


def sentences(summary: Summary) -> Iterator[str]:
    """What the table says of each method, and how to read it."""
    methods = [method for method in summary.costs if method != PLAIN]
    for method in methods:
        yield f"{method}: {_in_words(summary, method)}"
    verdicts = {quantity.results[method].verdict for quantity in summary.quantities for method in methods}
    if summary.tests:
        yield (
            f"Differences: mean ± 95 % over the seeds that both finished; p of paired t tests, corrected for "
            f"{'one test' if summary.tests == 1 else f'{summary.tests} tests'} (Holm)."
        )
    if NO_DIFFERENCE in verdicts:
        yield "No difference found does not mean equal: a true difference of about the size of ± can be overlooked."
    if TOO_FEW in verdicts:
        yield f"Too few seeds: a test needs {LEAST_SEEDS} that both finished; more seeds find smaller differences."
    if any(cost.diverged for cost in summary.costs.values()):
        yield "Diverged runs are left out of all means."
    if summary.copies:
        yield (
            f"Left out, too: seeds {', '.join(map(str, summary.copies))}. The {PLAIN} gave the same numbers as with an "
            f"earlier seed, so they are no new evidence. Let `make_model` or `batches` depend on the seed."
        )


def as_text(summary: Summary, width: int | None = None) -> str:
    """The table in plain characters; without its last column if it is wider than `width`."""
    lines = [HEADER, *rows(summary)]
    widths = [max(len(line[i]) + (2 if i == 0 else 0) for line in lines if len(line) > 1) for i in range(len(HEADER))]
    if width is not None and sum(widths) + 3 * (len(widths) - 1) > width:
        widths.pop()
    text = []
    for line in lines:
        cells = [f"  {line[0]}", *line[1:]] if len(line) > 1 else list(line)
        text.append("   ".join(cell.ljust(column) for cell, column in zip(cells, widths, strict=False)).rstrip())
    return "\n".join(text)


def wrapped(lines: Iterable[str], width: int | None) -> list[str]:
    """Prose in lines of at most `width`; a line that goes on is indented."""
    if width is None:
        return list(lines)
    return [part for line in lines for part in wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)]


def terminal_width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns


def as_rich(summary: Summary) -> Any:
    """The table as a `rich.table.Table`."""
    cell = extra("rich.text").Text  # not a str, whose brackets would be taken for markup
    table = extra("rich.table").Table(box=extra("rich.box").SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in HEADER:
        table.add_column(title, no_wrap=title == "")
    for line in rows(summary):
        if len(line) == 1:
            table.add_section()
            table.add_row(cell(line[0], style="bold"))
        else:
            table.add_row(cell(f"  {line[0]}"), *map(cell, line[1:]))
    return table


def _cells(result: Result) -> Row:
    p = "" if result.p is None else "< 0.001" if result.p < 0.001 else f"{result.p:.3f}"
    return _plus_minus(result.estimate), _plus_minus(result.difference, "+"), p, result.verdict or ""


def _plus_minus(estimate: Estimate | None, sign: str = "-") -> str:
    """Mean and interval, to two digits of the interval."""
    if estimate is None:
        return ""
    if not estimate.half:
        return f"{estimate.mean:{sign}.4g}{'' if estimate.half is None else ' ± 0'}"
    decimals = 1 - math.floor(math.log10(estimate.half))
    if decimals > 8 or abs(estimate.mean) >= 1e8:
        return f"{estimate.mean:{sign}.3e} ± {estimate.half:.1e}"
    return f"{estimate.mean:{sign}z.{max(0, decimals)}f} ± {estimate.half:.{max(0, decimals)}f}"


def _cost_rows(title: str, costs: Mapping[str, Cost], number: Callable[[Cost], float | None]) -> Iterator[Row]:
    numbers = {method: number(cost) for method, cost in costs.items()}
    if all(value is None for value in numbers.values()):
        return
    yield (title,)
    plain = numbers[PLAIN]
    for method, value in numbers.items():
        ratio = "" if method == PLAIN or value is None or not plain else f"{value / plain:.2f} ×"
        yield (method, "" if value is None else f"{value:.4g}", ratio, "", "")


def _times(number: float | None, factor: float) -> float | None:
    return None if number is None else number * factor


def _in_words(summary: Summary, method: str) -> str:
    """Every verdict, with the quantities that it is for."""
    cost, quantities = summary.costs[method], summary.quantities
    words = [f"diverged in {cost.diverged} of {cost.runs} runs"] if cost.diverged else []
    for verdict in (BETTER, WORSE, NO_DIFFERENCE, TOO_FEW):
        named = [f"{q.kind} {q.name}" for q in quantities if q.results[method].verdict == verdict]
        if named:
            words.append(verdict if len(named) == len(quantities) else f"{verdict} in {', '.join(named)}")
    return f"{'; '.join(words)}."
