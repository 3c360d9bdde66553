"""Pictures of two overlaid handwritten digits, made from the UCI set in scikit-learn. No network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

TASKS = ("left", "right")

N_TRAIN_DIGITS = 1200
N_PROBE = 128
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


@dataclass(frozen=True)
class Data:
    """What one seed trains and tests on: the same for every method.

    Attributes:
        epochs: The training pictures of each epoch, in their order; partners change from epoch to epoch.
        probe: Training digits in pictures of their own, to look at gradients.
        test: Pictures of digits that no training picture shows.
    """

    epochs: list[Pictures]
    probe: Pictures
    test: Pictures


def make_data(seed: int, n_epochs: int) -> Data:
    """Split the digits, then overlay those of one split with each other."""
    generator = torch.Generator().manual_seed(seed)
    order = _shuffled(torch.arange(len(_digits()[1])), generator)
    train, test = order[:N_TRAIN_DIGITS], order[N_TRAIN_DIGITS:]
    epochs = [_overlaid(_shuffled(train, generator), _shuffled(train, generator)) for _ in range(n_epochs)]
    probe = _overlaid(_shuffled(train, generator)[:N_PROBE], _shuffled(train, generator)[:N_PROBE])
    partners = torch.cat([_shuffled(test, generator) for _ in range(TEST_ROUNDS)])
    return Data(epochs, probe, _overlaid(test.repeat(TEST_ROUNDS), partners))


def _overlaid(left: Tensor, right: Tensor) -> Pictures:
    """One digit top left, the other bottom right, whichever is brighter on top."""
    images, labels = _digits()
    first = images.new_zeros(len(left), 1, CANVAS, CANVAS)
    second = torch.zeros_like(first)
    first[:, 0, :DIGIT, :DIGIT] = images[left]
    second[:, 0, SHIFT:, SHIFT:] = images[right]
    return Pictures(torch.maximum(first, second), dict(zip(TASKS, (labels[left], labels[right]), strict=True)))


def _shuffled(items: Tensor, generator: torch.Generator) -> Tensor:
    return items[torch.randperm(len(items), generator=generator)]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """All digits, `(1797, 8, 8)` from 0 to 1, and what they show."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)
