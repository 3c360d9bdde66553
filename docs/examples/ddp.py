"""DistributedDataParallel, used as always: only the optimizer changes.

Each rank combines the gradients of its own examples where the losses meet. The rest of the backward pass averages over
the ranks, as always with DDP, so all of them keep the same parameters. Run it with

    torchrun --nproc-per-node 2 docs/examples/ddp.py
"""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import mtopt


class Net(nn.Module):
    """A trunk with two heads; it returns their losses."""

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


def make_data() -> TensorDataset:
    x = torch.randn(512, 8)
    return TensorDataset(x, x[:, :3].argmax(1), x[:, 1] - x[:, 2] * x[:, 3])


def main() -> None:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    torch.manual_seed(0)
    data = make_data()
    everything = [column.to(device) for column in data.tensors]
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)

    model = DistributedDataParallel(Net().to(device))
    optimizer = mtopt.MultiLossOptimizer(torch.optim.AdamW(model.parameters(), lr=5e-3))  # wraps any optimizer
    first = model.module(*everything)
    for epoch in range(10):
        sampler.set_epoch(epoch)
        for batch in loader:
            losses = model(*(column.to(device) for column in batch))
            optimizer.zero_grad()
            optimizer.step(losses)  # instead of sum(losses.values()).backward() and optimizer.step()
    last = model.module(*everything)

    mine = nn.utils.parameters_to_vector(model.parameters()).detach()
    of_all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(of_all_ranks, mine)
    if dist.get_rank() == 0:
        for name in first:
            print(f"{name}: {first[name]:.4f} -> {last[name]:.4f}")
        print(f"{len(of_all_ranks)} ranks, same parameters: {all(torch.equal(mine, other) for other in of_all_ranks)}")
    time.sleep(0.1)  # or gloo threads may abort at exit: https://github.com/pytorch/pytorch/issues/190489
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
