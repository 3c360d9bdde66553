"""How much the step that is taken changes each loss, to first order. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .._dtypes import solid_dtype


class Harm:
    r"""The gradients of each loss, kept until the step is done: $g_i \cdot \Delta\theta$ is how much it raises loss i.

    Args:
        labels: What each loss is called, by position.
        targets: The parameters.

    Attributes:
        factors: What each loss was multiplied by, by a GradScaler and by weightings.
    """

    def __init__(self, labels: Sequence[str], targets: Sequence[Tensor]) -> None:
        self.labels = labels
        self.factors: Sequence[float] = [1.0] * len(labels)
        self.targets = targets
        self.rows: list[list[tuple[int, Tensor]]] = [[] for _ in targets]
        self.before: list[Tensor] = []

    def followed(self, stream: Iterable[tuple[int, list[Tensor | None]]]) -> Iterator[tuple[int, list[Tensor | None]]]:
        """The rows, which are looked at as they go by."""
        for position, row in stream:
            for i, part in enumerate(row):
                if part is not None:
                    self.rows[i].append((position, part))
            yield position, row

    def begin(self) -> None:
        """A step begins."""
        pairs = zip(self.targets, self.rows, strict=True)
        self.before = [target.detach().clone() if rows else target for target, rows in pairs]

    def changes(self) -> dict[str, float]:
        """By how much the step raised each loss; below 0 it lowered it."""
        total = torch.zeros(len(self.labels), dtype=torch.float64)
        for target, before, rows in zip(self.targets, self.before, self.rows, strict=True):
            if rows:
                solid = solid_dtype(target.device)
                moved = target.detach().to(solid) - before.to(solid)
                for position, row in rows:
                    total[position] += float((row.to_dense().to(solid) * moved).sum())
        return {
            label: change / factor
            for label, change, factor in zip(self.labels, total.tolist(), self.factors, strict=True)
            if factor
        }
