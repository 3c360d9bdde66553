"""SAM and Schedule-Free of pytorch_optimizer as the inner optimizer. SAM evaluates the losses twice in a step, so it
gets a closure. Schedule-Free must be told when training and evaluation begin. Run it with

    python docs/examples/sam_and_schedule_free.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_optimizer import SAM, ScheduleFreeAdamW
from torch import Tensor, nn
from torch.nn import functional as F

import mtopt


class Net(nn.Module):
    """A trunk with two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {
            "kind": F.cross_entropy(self.kind(features), x[:, :3].argmax(1)),
            "depth": F.mse_loss(self.depth(features), x[:, 1:2] - x[:, 2:3] * x[:, 3:4]),
        }


def train_with_sam(net: Net, batches: Tensor) -> None:
    """The first gradient climbs the slope, the second is that of the step. One decision combines both."""
    inner = SAM(net.parameters(), base_optimizer=torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    optimizer = mtopt.MultiLossOptimizer(inner, mtopt.GradDrop(seed=0))
    for batch in batches:

        def backward(batch: Tensor = batch) -> Tensor:
            loss = mtopt.total(optimizer, net(batch))
            loss.backward()
            return loss

        optimizer.zero_grad()
        backward()
        optimizer.step(backward)


def train_schedule_free(net: Net, batches: Tensor) -> None:
    optimizer = mtopt.MultiLossOptimizer(ScheduleFreeAdamW(net.parameters(), lr=1e-2), mtopt.UPGrad())
    optimizer.train()
    for batch in batches:
        optimizer.zero_grad()
        optimizer.step(net(batch))
    optimizer.eval()


def main() -> None:
    ways: dict[str, Callable[[Net, Tensor], None]] = {"SAM": train_with_sam, "Schedule-Free": train_schedule_free}
    for way, train in ways.items():
        net = Net()
        batches, test = torch.randn(300, 64, 8), torch.randn(512, 8)
        first = net(test)
        train(net, batches)
        last = net(test)
        for name in first:
            print(f"{way}, {name}: {first[name]:.4f} -> {last[name]:.4f}")


if __name__ == "__main__":
    main()
