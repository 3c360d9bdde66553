"""Yeast: which of 14 functional classes a gene belongs to, one yes-or-no loss for each."""

from __future__ import annotations

import torch
from data import load
from torch import Tensor, nn
from torch.nn import functional

from .base import Examples, SharedTrunk, TrunkAndHeads, area_under_curve, parts


class Yeast(SharedTrunk):
    about = "Yeast genes from 103 numbers: 14 yes-or-no labels."
    tasks = tuple(f"class {i}" for i in range(1, 15))
    metric = "area under the ROC curve"
    steps = 400
    seeds = 10
    batch_size = 128
    peers = True

    def __init__(self) -> None:
        table = load("yeast")
        inputs = table["inputs"] / table["inputs"].std(0)
        found = zip(("training", "validation", "test"), parts(len(inputs), (1400, 417, 600)), strict=True)
        self.splits = {split: Examples(inputs[part], table["labels"][part]) for split, part in found}

    def make_model(self) -> nn.Module:
        trunk = nn.Sequential(nn.Linear(103, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        return TrunkAndHeads(trunk, {task: nn.Linear(128, 1) for task in self.tasks})

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(output.squeeze(1), target)

    def quality(self, output: Tensor, target: Tensor) -> float:
        assert 0 < torch.count_nonzero(target) < len(target)
        return area_under_curve(output, target)
