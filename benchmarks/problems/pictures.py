"""Two overlapping pictures on one canvas, one task for each: Multi-Fashion, Multi-Fashion-MNIST and a small one."""

from __future__ import annotations

import torch
from data import load
from torch import Tensor, nn
from torch.nn import functional

from .base import Examples, SharedTrunk, TrunkAndHeads, accuracy, parts


class TwoPictures(SharedTrunk):
    """Partners are drawn within their split.

    Attributes:
        items: For each split, which pictures are at the upper left and at the lower right of its canvases.
    """

    tasks = ("upper left", "lower right")
    metric = "accuracy"
    batch_size = 64
    items: dict[str, tuple[Tensor, Tensor]]

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target)

    def quality(self, output: Tensor, target: Tensor) -> float:
        return accuracy(output, target)

    def make_model(self) -> nn.Module:
        trunk, width = self.make_trunk()
        return TrunkAndHeads(trunk, {task: nn.Linear(width, 10) for task in self.tasks})

    def make_trunk(self) -> tuple[nn.Module, int]:
        """LeNet with strides in the place of pooling."""
        return lenet(), 64

    def make_splits(self, first: dict[str, Tensor], second: dict[str, Tensor], offset: int, canvas: int) -> None:
        """From pictures and labels, and from the `items`, to examples."""
        self.splits = {}
        for split, (i, j) in self.items.items():
            inputs = overlay(first["images"][i], second["images"][j], offset, canvas)
            self.splits[split] = Examples(inputs, torch.stack([first["labels"][i], second["labels"][j]], 1))


class MultiFashion(TwoPictures):
    about = "Two Fashion-MNIST pictures on one canvas; each task names one of them."
    steps = 900
    peers = True

    def __init__(self) -> None:
        fashion = load("fashion")
        self.items = {split: (part, partners(part, len(part))) for split, part in fashion_parts().items()}
        self.make_splits(fashion, fashion, 6, 36)


class MultiFashionMNIST(TwoPictures):
    about = "A Fashion-MNIST picture and a handwritten digit on one canvas; each task names one of them."
    steps = 600

    def __init__(self) -> None:
        fashion, digits = load("fashion"), load("digits")
        digit_parts = parts(len(digits["labels"]), (6000, 1000, 3000))
        pairs = zip(fashion_parts().items(), digit_parts, strict=True)
        self.items = {split: (part, partners(others, len(part))) for (split, part), others in pairs}
        self.make_splits(fashion, digits, 6, 36)


class MultiDigits(TwoPictures):
    """What is installed with scikit-learn, for a quick trial."""

    about = "Two 8×8 digits on one canvas; each task names one of them. A trial of the procedure, no evidence."
    steps = 60
    seeds = 3
    peers = True

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images).mul(255 / 16).to(torch.uint8)
        pictures = {"images": images, "labels": torch.from_numpy(digits.target).long()}
        found = dict(zip(("training", "validation", "test"), parts(len(images), (1000, 300, 400)), strict=True))
        self.items = {split: (part, partners(part, len(part))) for split, part in found.items()}
        self.make_splits(pictures, pictures, 2, 10)

    def make_trunk(self) -> tuple[nn.Module, int]:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), 32


def lenet() -> nn.Module:
    """From 28×28 pictures to 64 features."""
    convolutions = (nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(400, 64), nn.ReLU())


def fashion_parts() -> dict[str, Tensor]:
    """Indices of Fashion-MNIST's pictures; the last 10,000 are its own test set."""
    training, validation = parts(60_000, (20_000, 2000))
    return {"training": training, "validation": validation, "test": 60_000 + parts(10_000, (4000,))[0]}


def partners(items: Tensor, n: int) -> Tensor:
    """`n` of these items, in a random order: all equally often, if `n` is a multiple of their number."""
    random = torch.Generator().manual_seed(len(items))
    orders = [torch.randperm(len(items), generator=random) for _ in range(-(-n // len(items)))]
    return items[torch.cat(orders)[:n]]


def overlay(first: Tensor, second: Tensor, offset: int, canvas: int) -> Tensor:
    """The second picture further down and right by `offset`, the larger value where they overlap; in the first's size.

    Args:
        first: Pictures, uint8, shape `(N, S, S)`.
        second: As many, of the same shape.
        offset: In pixels.
        canvas: Size of the canvas, `S + offset` or more.

    Returns:
        Shape `(N, 1, S, S)`, with mean 0 and standard deviation 1 or thereabouts.
    """
    n, size = first.shape[:2]
    drawn = torch.zeros(n, 1, canvas, canvas, dtype=torch.uint8)
    drawn[:, 0, :size, :size] = first
    corner = drawn[:, 0, offset : offset + size, offset : offset + size]
    corner.copy_(torch.maximum(corner, second))
    small = [functional.interpolate(part / 255, (size, size), mode="bilinear") for part in torch.split(drawn, 1000)]
    return (torch.cat(small) - 0.3) / 0.35
