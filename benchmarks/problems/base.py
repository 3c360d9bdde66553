"""What every problem says of itself, and what most are made of: a trunk with heads, and splits. No training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]

SPLIT_SEED = 2020  # the same training, validation and test data in every run


class Problem(ABC):
    """A network, its losses, and how good it is on data that it was not trained on.

    Attributes:
        about: What it is, in one sentence.
        tasks: Names of the losses.
        metric: What the numbers of `metrics` are.
        larger_is_better: Of the metric.
        steps: Of the plain sum.
        lrs: The learning rates that are tried.
        seeds: How many runs of the tuned methods are tested.
        at: Where the losses' gradients meet.
        marginal: Whether GradDrop may be marginalized at `model.trunk`.
        protected: The loss that a leak of 1 protects, if there is one that counts more.
        peers: Whether TorchJD's methods are run, too.
    """

    about: str
    tasks: tuple[str, ...]
    metric: str
    larger_is_better = True
    steps: int
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    seeds = 5
    at = "activations"
    marginal = True
    protected: str | None = None
    peers = False

    @abstractmethod
    def make_model(self) -> nn.Module:
        """A new one, by torch's global random numbers alone."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches for ever, the same for the same seed."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The losses by task."""

    @abstractmethod
    def metrics(self, model: nn.Module, split: str) -> dict[str, float]:
        """One number per task on the "validation" or the "test" data."""

    def score(self, metrics: Mapping[str, float]) -> float:
        """The one number that is tuned and tested: the mean over the tasks."""
        return fmean(metrics.values())


class TrunkAndHeads(nn.Module):
    """A trunk, and a head per task."""

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return self.outputs(self.trunk(inputs))

    def outputs(self, features: Tensor) -> dict[str, Tensor]:
        """What the heads make of the trunk's features."""
        return {task: head(features) for task, head in self.heads.items()}


@dataclass(frozen=True)
class Examples:
    """Inputs, and one target per example and task, shape `(N, T)`."""

    inputs: Tensor
    targets: Tensor

    def __getitem__(self, index: Tensor) -> Batch:
        return self.inputs[index], self.targets[index]


class SharedTrunk(Problem):
    """All losses are of the same examples: a trunk, a head and a column of targets per task.

    Attributes:
        splits: "training", "validation" and "test" examples.
        batch_size: Of training.
    """

    splits: Mapping[str, Examples]
    batch_size: int

    def batches(self, seed: int) -> Iterator[Batch]:
        examples = self.splits["training"]
        for index in shuffled(len(examples.inputs), self.batch_size, seed):
            yield examples[index]

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.features_and_losses(model, batch)[1]

    def features_and_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses, and the trunk's features that they come from."""
        assert isinstance(model, TrunkAndHeads)
        inputs, targets = batch
        features = model.trunk(inputs)
        outputs = model.outputs(features)
        pairs = zip(outputs.items(), targets.unbind(1), strict=True)
        return features, {task: self.criterion(output, target) for (task, output), target in pairs}

    @abstractmethod
    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        """From a head's output to a loss."""

    def metrics(self, model: nn.Module, split: str) -> dict[str, float]:
        examples = self.splits[split]
        outputs = model(examples.inputs)
        pairs = zip(outputs.items(), examples.targets.unbind(1), strict=True)
        return {task: self.quality(output, target) for (task, output), target in pairs}

    @abstractmethod
    def quality(self, output: Tensor, target: Tensor) -> float:
        """How good a head's output is."""


def shuffled(n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Indices of batches, epoch after epoch; what does not fill a batch is left out of its epoch."""
    random = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.split(torch.randperm(n, generator=random)[: n - n % batch_size], batch_size)


def parts(n: int, sizes: Sequence[int]) -> list[Tensor]:
    """Disjoint random parts of `range(n)`; always the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    assert sum(sizes) <= n
    return list(torch.split(order[: sum(sizes)], list(sizes)))


def accuracy(output: Tensor, target: Tensor) -> float:
    """Share of right classes."""
    return (output.argmax(1) == target).float().mean().item()


def area_under_curve(output: Tensor, target: Tensor) -> float:
    """Of the ROC: how often a positive example has more than a negative one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(target.numpy(), output.squeeze(1).numpy())) if output.isfinite().all() else math.nan
