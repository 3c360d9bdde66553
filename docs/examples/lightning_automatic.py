"""Lightning with automatic optimization: `training_step` returns a scalar that knows its losses. Nothing else changes.

Accumulation, clipping, mixed precision and checkpoints stay Lightning's. Run it with

    python docs/examples/lightning_automatic.py
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mtopt


class Net(L.LightningModule):
    """A trunk with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor, kind: Tensor, depth: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {
            "kind": F.cross_entropy(self.kind(features), kind),
            "depth": F.mse_loss(self.depth(features).squeeze(1), depth),
        }

    def configure_optimizers(self) -> Any:
        return mtopt.MultiLossOptimizer(torch.optim.AdamW(self.parameters(), lr=5e-3), mtopt.UPGrad())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()
        return mtopt.total(optimizer, self(*batch))


def make_data() -> TensorDataset:
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :3].argmax(1), x[:, 1] - x[:, 2] * x[:, 3])


def make_trainer(**settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(**(quiet | {"enable_checkpointing": False} | settings))


def main() -> None:
    L.seed_everything(0, verbose=False)
    data, net = make_data(), Net()
    first = net(*data.tensors)
    trainer = make_trainer(max_epochs=15, accumulate_grad_batches=2, gradient_clip_val=1.0)
    trainer.fit(net, DataLoader(data, batch_size=16, shuffle=True))
    last = net(*data.tensors)
    for name in first:
        print(f"{name}: {first[name]:.4f} -> {last[name]:.4f}")


if __name__ == "__main__":
    main()
