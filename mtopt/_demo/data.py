"""Pictures of two overlaid handwritten digits, made from the UCI set in scikit-learn. No network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

TASKS = ("left", "right")

N_TRAIN_DIGITS = 1200
TEST_ROUNDS = 2  # partners of each test digit: more of them, less noise
DIGIT, SHIFT = 8, 3  # pixels: a smaller shift hides more of the left digit behind the right one
CANVAS = DIGIT + SHIFT


@dataclass(frozen=True)
class Pictures:
    """Overlaid digits.

    Attributes:
        images: Shape `(N, 1, CANVAS, CANVAS)`, from 0 to 1.
        labels: For each task the digit on its side, shape `(N,)`.
    """

    images: Tensor
    labels: dict[str, Tensor]

    def batches(self, size: int) -> Iterator[Pictures]:
        """Whole batches only, in order."""
        for start in range(0, len(self.images) - size + 1, size):
            part = slice(start, start + size)
            yield Pictures(self.images[part], {task: labels[part] for task, labels in self.labels.items()})


class Data:
    """The digits, split into those to train on and those to test on.

    Args:
        seed: Decides on the split, and on the pictures of the test.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = _shuffled(torch.arange(len(_digits()[1])), generator)
        self._train, test = order[:N_TRAIN_DIGITS], order[N_TRAIN_DIGITS:]
        partners = torch.cat([_shuffled(test, generator) for _ in range(TEST_ROUNDS)])
        self.test = _overlaid(test.repeat(TEST_ROUNDS), partners)

    def epoch(self) -> Pictures:
        """The training digits with new partners, in a new order, by torch's global random numbers."""
        return _overlaid(_shuffled(self._train), _shuffled(self._train))


def _overlaid(left: Tensor, right: Tensor) -> Pictures:
    """One digit top left, the other bottom right, whichever is brighter on top."""
    images, labels = _digits()
    first = images.new_zeros(len(left), 1, CANVAS, CANVAS)
    second = torch.zeros_like(first)
    first[:, 0, :DIGIT, :DIGIT] = images[left]
    second[:, 0, SHIFT:, SHIFT:] = images[right]
    return Pictures(torch.maximum(first, second), dict(zip(TASKS, (labels[left], labels[right]), strict=True)))


def _shuffled(items: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return items[torch.randperm(len(items), generator=generator)]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All digits, `(1797, 8, 8)` from 0 to 1, and what they show."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
