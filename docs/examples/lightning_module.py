"""Lightning with manual optimization: two processes, mixed precision and a scheduler, all as Lightning does them.

`manual_backward` prepares DDP and the precision plugin, then calls the module's hook `backward`, where the losses go to
mtopt. Do not bypass it: the ranks would not average their first gradients, and would drift apart. Run it with

    python docs/examples/lightning_module.py
"""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mtopt


class Net(L.LightningModule):
    """A trunk with two heads; it returns their losses."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.epochs = epochs
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor, kind: Tensor, depth: Tensor) -> list[Tensor]:
        features = self.trunk(x)
        return [
            F.cross_entropy(self.kind(features), kind),
            F.mse_loss(self.depth(features).squeeze(1), depth),
        ]

    def configure_optimizers(self) -> Any:
        optimizer = mtopt.MultiLossOptimizer(torch.optim.AdamW(self.parameters(), lr=5e-3))
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        losses = self(*batch)
        optimizer.zero_grad()
        self.manual_backward(sum(losses), losses)  # Lightning takes the sum, `backward` the losses
        optimizer.step()

    def backward(self, loss: Tensor, losses: list[Tensor]) -> None:
        optimizer: Any = self.optimizers()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # with "16-mixed" there is one
        optimizer.backward(losses if scaler is None else scaler.scale(losses))

    def on_train_epoch_end(self) -> None:
        scheduler: Any = self.lr_schedulers()
        scheduler.step()

    def on_train_end(self) -> None:
        mine = nn.utils.parameters_to_vector(self.parameters()).detach()
        same = bool((self.all_gather(mine) == mine).all())
        self.print(f"{self.trainer.world_size} ranks, same parameters: {same}")


def make_data() -> TensorDataset:
    x = torch.randn(512, 8)
    return TensorDataset(x, x[:, :3].argmax(1), x[:, 1] - x[:, 2] * x[:, 3])


def main() -> None:
    L.seed_everything(0)
    data, net = make_data(), Net(epochs=10)
    first = net(*data.tensors)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        precision="bf16-mixed",
        max_epochs=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(net, DataLoader(data, batch_size=32, shuffle=True))
    last = net(*data.tensors)
    if trainer.is_global_zero:
        for name, before, after in zip(("kind", "depth"), first, last, strict=True):
            print(f"{name}: {before:.4f} -> {after:.4f}")
    time.sleep(0.1)  # or gloo threads may abort at exit: https://github.com/pytorch/pytorch/issues/190489


if __name__ == "__main__":
    main()
