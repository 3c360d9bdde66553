"""Census-Income: income and marital status from what else is known of a person; a part of the rows."""

from __future__ import annotations

import torch
from data import load
from torch import Tensor, nn
from torch.nn import functional

from .base import Examples, SharedTrunk, TrunkAndHeads, area_under_curve, parts


class Census(SharedTrunk):
    about = "A person's income (above 50,000 dollars) and marital status (never married) from 39 other columns."
    tasks = ("income", "never married")
    metric = "area under the ROC curve"
    steps = 600
    peers = True
    batch_size = 256

    def __init__(self) -> None:
        table = load("census")
        found = parts(len(table["labels"]), (30_000, 4000, 10_000))
        sizes = (table["codes"].amax(0) + 1).tolist()
        logs = table["numbers"].log1p()
        numbers = (logs - logs.mean(0)) / logs.std(0)
        self.width = numbers.shape[1] + sum(sizes)
        self.splits = {
            split: Examples(one_hot(numbers[part], table["codes"][part], sizes), table["labels"][part])
            for split, part in zip(("training", "validation", "test"), found, strict=True)
        }

    def make_model(self) -> nn.Module:
        trunk = nn.Sequential(nn.Linear(self.width, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        return TrunkAndHeads(trunk, {task: nn.Linear(64, 1) for task in self.tasks})

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output.squeeze(1), target)

    def quality(self, output: Tensor, target: Tensor) -> float:
        return area_under_curve(output, target)


def one_hot(numbers: Tensor, codes: Tensor, sizes: list[int]) -> Tensor:
    """The numbers, and a 1 for the category of each column."""
    columns = [functional.one_hot(code.long(), size) for code, size in zip(codes.unbind(1), sizes, strict=True)]
    return torch.cat([numbers, *(column.float() for column in columns)], 1)
