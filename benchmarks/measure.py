"""Time: cells by turns, round after round, and what may be said of them. Knows no method, prints nothing."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import torch
from cells import Sample
from torch import Tensor
from torchjd.aggregation import GradDrop

from mtopt import sign_dropout
from mtopt._signs import SignSums

WARM_UPS = 2
SLOW = 0.5  # seconds; a cell as slow as this needs no second warm-up
AT_LEAST = 2  # rounds in which even the slowest cell takes part

Run = Callable[[], Sample]
Advance = Callable[[str], None]


@dataclass
class Series:
    """The samples of one cell, by round."""

    samples: dict[int, Sample] = field(default_factory=dict)

    def steps(self) -> list[float]:
        return [sample.step for sample in self.samples.values()]

    def backwards(self) -> list[float]:
        return [sample.backward for sample in self.samples.values()]

    def ratios(self, other: Series) -> list[float]:
        """Whole step over the other's in the same round."""
        return [self.samples[i].step / other.samples[i].step for i in self._rounds(other)]

    def backward_ratios(self, other: Series) -> list[float]:
        """Backward over the other's in the same round."""
        return [self.samples[i].backward / other.samples[i].backward for i in self._rounds(other)]

    def _rounds(self, other: Series) -> list[int]:
        return [i for i in self.samples if i in other.samples]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def interleave(
    cells: Mapping[str, Run],
    into: dict[str, Series],
    *,
    repeats: int,
    budget: float,
    always: str | None,
    order: random.Random,
    advance: Advance,
) -> None:
    """Run all cells once in every round, in an order drawn anew for each round.

    Args:
        cells: What to run; the first sample of each is a warm-up, and so is the second, unless it is slow.
        into: Filled while running, so that an interrupted run keeps what it has.
        repeats: Number of rounds.
        budget: Seconds after which a cell sits out the rounds that are left.
        always: The cell that all others are compared with: it sits out no round that another takes part in.
        order: Source of the order.
        advance: Called with a cell's name before each of its samples, or in the place of it.
    """
    for name, run in cells.items():
        advance(name)
        if run().step < SLOW:
            for _ in range(WARM_UPS - 1):
                run()
    spent = dict.fromkeys(cells, 0.0)
    into.update({name: Series() for name in cells})
    gc.collect()
    gc.freeze()  # what lives through all rounds need not be looked at by each collection
    for i in range(repeats):
        names = [name for name in cells if spent[name] < budget or i < AT_LEAST]
        if always is not None and names and always not in names:
            names.append(always)
        order.shuffle(names)
        for name in names:
            advance(name)
            gc.collect()
            start = perf_counter()
            into[name].samples[i] = cells[name]()
            spent[name] += perf_counter() - start
        for name in cells.keys() - set(names):
            advance(name)
    gc.unfreeze()


def several(run: Run, times: int) -> Run:
    """The mean of many steps as one sample, for steps of microseconds."""

    def runs() -> Sample:
        samples = [run() for _ in range(times)]
        return Sample(sum(s.step for s in samples) / times, sum(s.backward for s in samples) / times)

    return runs


SIGN_DROPOUT, STREAMED, TORCHJD, READ = "sign_dropout(rows)", "SignSums, row by row", "TorchJD GradDrop", "rows.sum(0)"


def combination_cells(n_rows: int, size: int) -> dict[str, Run]:
    """The bare combination of rows that are there already; reading them once is the least that any way must do."""
    rows = torch.randn(n_rows, size, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    aggregator = GradDrop()

    def streamed() -> Tensor:
        sums = SignSums(leaky=False)
        for row in rows:
            sums.add(row, 0.0)
        return sums.result(sums.draw(generator), 1.0, renormalize=False)

    return {
        SIGN_DROPOUT: timed(lambda: sign_dropout(rows, generator=generator)),
        STREAMED: timed(streamed),
        TORCHJD: timed(lambda: aggregator(rows)),
        READ: timed(lambda: rows.sum(0)),
    }


def timed(combine: Callable[[], object]) -> Run:
    """A sample of something that is all backward."""

    def run() -> Sample:
        start = perf_counter()
        combine()
        seconds = perf_counter() - start
        return Sample(seconds, seconds)

    return run
