"""Two loaders in turn, with one loss each: mtopt gathers the gradients and makes one decision for both.

Run it with

    python docs/examples/loaders_in_turn.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mtopt


def make_loader(seed: int, *, of_kinds: bool) -> DataLoader[tuple[torch.Tensor, ...]]:
    """One data set has images with kinds, the other has images with depths."""
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(seed))
    y = x[:, :3].argmax(1) if of_kinds else x[:, 1:2] - x[:, 2:3]
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


def main() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
    kind, depth = nn.Linear(32, 3), nn.Linear(32, 1)
    adam = torch.optim.Adam([*trunk.parameters(), *kind.parameters(), *depth.parameters()], lr=5e-3)
    optimizer = mtopt.MultiLossOptimizer(adam, mtopt.PCGrad(seed=0), at="parameters")
    loaders = make_loader(0, of_kinds=True), make_loader(1, of_kinds=False)
    means = []
    for _ in range(8):
        totals = torch.zeros(2)
        for (x, kinds), (z, depths) in zip(*loaders, strict=True):
            optimizer.zero_grad()
            kind_loss = F.cross_entropy(kind(trunk(x)), kinds)
            optimizer.gather({"kind": kind_loss})  # its graph is gone before the other one is made
            depth_loss = F.mse_loss(depth(trunk(z)), depths)
            optimizer.gather({"depth": depth_loss})
            optimizer.step()
            totals += torch.stack([kind_loss, depth_loss]).detach()
        means.append(totals / len(loaders[0]))
    for name, first, last in zip(("kind", "depth"), means[0], means[-1], strict=True):
        print(f"{name}: {first:.4f} -> {last:.4f}")


if __name__ == "__main__":
    main()
