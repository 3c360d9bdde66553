"""The rows at parameters on their way past the transforms that keep numbers of each parameter. Takes no rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .._combine.combination import Shares
from .._dtypes import widen
from .._graph.passes import Row
from .._history import Average, Key
from .backward import Backward
from .refusals import check_dense
from .taken_rows import RowsOfLosses


class Remembered:
    """What Momentum and Whitening see of the rows of one backward pass, and what they make of it.

    Nothing that they keep is changed before `finish`.

    Attributes:
        present: The losses of this step.
        losses: Those, and the absent ones that have a row all the same.
    """

    def __init__(self, backward: Backward, rows: RowsOfLosses) -> None:
        self.backward = backward
        self.momentum, self.whitening = backward.pipeline.order.momentum, backward.pipeline.order.whitening
        for transform in (self.momentum, self.whitening):
            if transform is not None and transform.history.loaded:
                transform.fit(backward.parameters)
        self.present = self.losses = backward.agreed
        self.numbers = [
            backward.number.get(id(target)) if rows.counts(i) else None for i, target in enumerate(rows.targets)
        ]
        self.targets = rows.targets
        self.seen: list[dict[int, Tensor]] = [{} for _ in rows.targets]  # for the second moments, by index of loss
        self.moved: list[dict[Key, Average]] = [{} for _ in rows.targets]
        self.ranks = rows.sites[0].ranks  # that hold other parts of these rows
        self.spoiled = torch.zeros(())  # how often numbers are not finite, in a step that a GradScaler will skip
        if self.momentum is not None:
            self._add_remembered(backward, rows)
        self.owners = rows.owners

    def _add_remembered(self, backward: Backward, rows: RowsOfLosses) -> None:
        """Let losses have a row wherever they have an average, and absent ones be there, if that is asked for."""
        assert self.momentum is not None
        history, present = self.momentum.history, set(self.present.indices)
        if self.momentum.absent:
            known = {index for averages in history.averages.values() for (index, *_) in averages}
            self.losses = replace(self.present, indices=tuple(sorted(present | known)), scalars=None)
            self._add_targets(rows, known - present)
        position = {index: p for p, index in enumerate(self.losses.indices)}
        owners = []
        for number, of in zip(self.numbers, rows.owners, strict=True):
            kept = () if number is None else history.of(number)
            here = {position[self.present.indices[p]] for p in of}
            owners.append(sorted(here | {position[index] for (index, *_) in kept if index in position}))
        rows.owners = owners
        rows.sites = [replace(site, losses=self.losses) for site in rows.sites]

    def _add_targets(self, rows: RowsOfLosses, absent: set[int]) -> None:
        """Parameters that only absent losses reach."""
        assert self.momentum is not None
        here = {number for number in self.numbers if number is not None}
        for number, averages in self.momentum.history.averages.items():
            if number not in here and any((index,) in averages for index in absent):
                rows.targets = [*rows.targets, self.backward.parameters[number]]
                rows.owners = [*rows.owners, ()]
                rows.sites = [*rows.sites, rows.sites[0]]
                rows.alone = [*rows.alone, rows.alone[0]] if rows.alone else ()
                self.numbers.append(number)
                self.seen.append({})
                self.moved.append({})
        self.targets = rows.targets

    def rows(self, stream: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        """The rows that go on, by position among all losses that have some."""
        positions = {index: position for position, index in enumerate(self.losses.indices)}
        for position, row in stream:  # the first one has started the losses
            index, factor = self.present.indices[position], self.backward.factors[position]
            row += [None] * (len(self.targets) - len(row))
            self._look_for_spoiled(row)
            for i, number in enumerate(self.numbers):
                if number is not None:
                    row[i] = self._gone_by(i, number, index, row[i], factor)
            yield positions[index], row
        for index in self.losses.indices:
            if index not in self.present.indices:
                yield positions[index], [self._average(number, index) for number in self.numbers]

    def _gone_by(self, i: int, number: int, index: int, row: Tensor | None, factor: float) -> Tensor | None:
        """A part of a row as it goes on, after it was seen. `factor` is what the loss was multiplied by."""
        if row is not None and not _is_real(row):  # a table of one loss's own stays sparse
            check_dense(len(self.owners[i]) < 2)
            return row
        if row is not None and self.whitening is not None:
            self.seen[i][index] = row
        if self.momentum is None or factor == 0:
            return row
        before = self.momentum.history.of(number)
        if row is None:
            if (index,) not in before:
                return None
            row = torch.zeros_like(before[index,].mean)  # the loss is there, and does not reach the parameter
        self.moved[i] |= self.momentum.moved(before, index, _over(row, factor))
        return _times(self.momentum.row(self.moved[i], index), factor).to(row.dtype)

    def _average(self, number: int | None, index: int) -> Tensor | None:
        """In place of an absent loss's row."""
        assert self.momentum is not None
        averages = {} if number is None else self.momentum.history.of(number)
        if number is None or (index,) not in averages:
            return None
        mean = self.momentum.row(averages, index)
        return _times(mean, self.present.scale or 1.0).to(self.backward.parameters[number].dtype)

    def _look_for_spoiled(self, row: Row) -> None:
        if self.present.scale is not None:
            parts = [part for part in row if part is not None and _is_real(part)]
            bad = [(~part.isfinite()).any().to(parts[0].device) for part in parts]
            self.spoiled = self.spoiled.to(parts[0].device) + torch.stack(bad).sum() if bad else self.spoiled

    def finish(self, gradients: list[Tensor | None], shares: Sequence[Shares]) -> None:
        """Keep what was seen, and whiten the combined gradients."""
        if self.present.scale is not None and float(self.ranks.sum(self.spoiled.float().view(1))) > 0:
            return
        factors = dict(zip(self.present.indices, self.backward.factors, strict=True))
        for i, number in enumerate(self.numbers):
            if number is None:
                continue
            if self.momentum is not None:
                self.momentum.history.keep(number, self.targets[i], self.moved[i])
            gradient = gradients[i]
            if self.whitening is not None and gradient is not None and _is_real(gradient):
                gradients[i] = self._whitened(i, number, gradient, shares[i], factors)

    def _whitened(self, i: int, number: int, gradient: Tensor, shares: Shares, factors: Mapping[int, float]) -> Tensor:
        assert self.whitening is not None
        history = self.whitening.history
        rows = {index: _over(row, factors[index]) for index, row in self.seen[i].items() if factors[index] != 0}
        self.seen[i] = {}
        history.keep(number, self.targets[i], self.whitening.seen(history.of(number), rows))
        scale = self.present.scale or 1.0
        own: Mapping[int, float | Tensor] = {
            index: share * (factors.get(index, scale) / scale) for index, share in shares.items()
        }
        whitened = self.whitening.whitened(_over(gradient, scale), own, history.of(number))
        return _times(whitened, scale).to(gradient.dtype)


def _is_real(row: Tensor) -> bool:
    return row.layout is torch.strided and row.is_floating_point()


def _over(row: Tensor, factor: float) -> Tensor:
    return row if factor == 1 else widen(row) / factor


def _times(row: Tensor, factor: float) -> Tensor:
    return row if factor == 1 else row * factor
