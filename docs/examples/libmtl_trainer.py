"""A trainer in the style of LibMTL, where a method mixed into the model does the backward pass. Here the optimizer does
it, and the trainer stays as it is. Run it with

    python docs/examples/libmtl_trainer.py
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtopt


class Model(nn.Module):
    """An encoder and a decoder for each task."""

    def __init__(self, tasks: Mapping[str, int]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.decoders = nn.ModuleDict({task: nn.Linear(32, n) for task, n in tasks.items()})

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        return {task: decoder(features) for task, decoder in self.decoders.items()}

    def backward(self, losses: Tensor) -> None:
        """What a weighting of LibMTL overrides. This one is `EW`, equal weights."""
        torch.autograd.backward(losses.sum())


class Trainer:
    """LibMTL's loop: losses in one tensor, `zero_grad`, the model's `backward`, `step`."""

    def __init__(self, model: Model, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def train_step(self, inputs: Tensor, kinds: Tensor, depths: Tensor) -> Tensor:
        outputs = self.model(inputs)
        losses = torch.stack([F.cross_entropy(outputs["kind"], kinds), F.mse_loss(outputs["depth"], depths)])
        self.optimizer.zero_grad(set_to_none=False)
        self.model.backward(losses)
        self.optimizer.step()
        return losses.detach()


def use(trainer: Trainer, optimizer: mtopt.MultiLossOptimizer) -> None:
    """Make an existing trainer train with this optimizer."""
    trainer.optimizer = optimizer
    trainer.model.backward = optimizer.backward  # type: ignore[method-assign]


def main() -> None:
    torch.manual_seed(0)
    model = Model({"kind": 3, "depth": 1})
    trainer = Trainer(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    use(trainer, mtopt.MultiLossOptimizer(trainer.optimizer, mtopt.AlignedMTL(), at="parameters"))
    history = []
    for _ in range(400):
        inputs = torch.randn(64, 8)
        kinds, depths = inputs[:, :3].argmax(1), inputs[:, 1:2] - inputs[:, 2:3] * inputs[:, 3:4]
        history.append(trainer.train_step(inputs, kinds, depths))
    for name, first, last in zip(("kind", "depth"), history[0], torch.stack(history[-20:]).mean(0), strict=True):
        print(f"{name}: {first:.4f} -> {last:.4f}")


if __name__ == "__main__":
    main()
