"""Transfer: many Fashion-MNIST pictures help to learn digits from few labels; each loss has examples of its own."""

from __future__ import annotations

from collections.abc import Iterator

from data import load
from torch import Tensor, nn
from torch.nn import functional

from .base import Batch, Problem, TrunkAndHeads, accuracy, parts, shuffled
from .pictures import fashion_parts, lenet


class Transfer(Problem):
    about = "200 labelled digits (the target) and 20,000 Fashion-MNIST pictures (the source) share a trunk."
    tasks = ("source", "target")
    metric = "accuracy on the target"
    steps = 300
    batch_size = 64
    at = "parameters"  # no coordinate of the trunk's output is reached by both losses
    protected = "target"

    def __init__(self) -> None:
        fashion, digits = load("fashion"), load("digits")
        names = ("training", "validation", "test")
        self.digits = dict(zip(names, parts(len(digits["labels"]), (200, 1000, 4000)), strict=True))
        self.target = {split: _pictures(digits, part) for split, part in self.digits.items()}
        self.source = _pictures(fashion, fashion_parts()["training"])

    def make_model(self) -> nn.Module:
        return TrunkAndHeads(lenet(), {task: nn.Linear(64, 10) for task in self.tasks})

    def batches(self, seed: int) -> Iterator[Batch]:
        (source, source_labels), (target, target_labels) = self.source, self.target["training"]
        sources = shuffled(len(source), self.batch_size, seed)
        for i, j in zip(sources, shuffled(len(target), self.batch_size, seed), strict=False):
            yield source[i], source_labels[i], target[j], target_labels[j]

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, TrunkAndHeads)
        pairs = zip(self.tasks, (batch[:2], batch[2:]), strict=True)
        return {
            task: functional.cross_entropy(model.heads[task](model.trunk(inputs)), labels)
            for task, (inputs, labels) in pairs
        }

    def metrics(self, model: nn.Module, split: str) -> dict[str, float]:
        inputs, labels = self.target[split]
        return {"target": accuracy(model(inputs)["target"], labels)}


def _pictures(data: dict[str, Tensor], part: Tensor) -> tuple[Tensor, Tensor]:
    return (data["images"][part][:, None] / 255 - 0.3) / 0.35, data["labels"][part]
