"""Two inner optimizers on one model: Muon for matrices, AdamW for the rest, one decision for both.

Run it with

    python docs/examples/muon_with_adamw.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mtopt


class Net(nn.Module):
    """A trunk with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {
            "kind": F.cross_entropy(self.kind(features), x[:, :3].argmax(1)),
            "depth": F.mse_loss(self.depth(features), x[:, 1:2] - x[:, 2:3] * x[:, 3:4]),
        }


def main() -> None:
    torch.manual_seed(0)
    net = Net()
    matrices = [p for name, p in net.named_parameters() if p.ndim == 2 and name.startswith("trunk")]
    rest = [p for p in net.parameters() if all(p is not matrix for matrix in matrices)]
    inner = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=5e-3)]
    optimizer = mtopt.MultiLossOptimizer(inner, mtopt.UPGrad())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    first = net(torch.randn(64, 8))
    for _ in range(300):
        losses = net(torch.randn(64, 8))
        optimizer.zero_grad()
        optimizer.step(losses)
        scheduler.step()
    for name in losses:
        print(f"{name}: {first[name]:.4f} -> {losses[name]:.4f}")


if __name__ == "__main__":
    main()
