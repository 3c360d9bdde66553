"""FSDP2, used as always: the losses meet at a MultiLossLayer in the model, and the training loop stays the usual one.

Every rank holds a part of each parameter. The layer combines the gradients of the rank's own examples. The optimizer
and the loop need not know about it: `sum(losses).backward()` is enough. Run it with

    torchrun --nproc-per-node 2 docs/examples/fsdp2.py
"""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

import mtopt


class Net(nn.Module):
    """A trunk with two heads; it returns their losses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.share = mtopt.MultiLossLayer(["kind", "depth"])  # one alias of the features for each loss
        self.kind, self.depth = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor, kind: Tensor, depth: Tensor) -> list[Tensor]:
        for_kind, for_depth = self.share(self.trunk(x))
        return [
            F.cross_entropy(self.kind(for_kind), kind),
            F.mse_loss(self.depth(for_depth).squeeze(1), depth),
        ]


def make_data(rank: int) -> list[Tensor]:
    """This rank's own data."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(rank))
    return [x, x[:, :3].argmax(1), x[:, 1] - x[:, 2] * x[:, 3]]


def main() -> None:
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    rank, n_ranks = dist.get_rank(), dist.get_world_size()
    data = [column.to(device) for column in make_data(rank)]

    torch.manual_seed(0)
    model = Net().to(device)
    mesh = init_device_mesh(device.type, (n_ranks,))
    for part in (model.trunk, model.kind, model.depth, model):
        fully_shard(part, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)  # any optimizer
    history = []
    for _ in range(10):
        for batch in zip(*(torch.split(column, 32) for column in data), strict=True):
            losses = model(*batch)
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
        history.append(torch.stack(model(*data)).detach())
    dist.all_reduce(change := torch.stack([history[0], history[-1]]) / n_ranks)

    here = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    if rank == 0:
        for name, first, last in zip(("kind", "depth"), *change.tolist(), strict=True):
            print(f"{name}: {first:.4f} -> {last:.4f}")
        print(f"{n_ranks} ranks, this one holds {here} of {sum(p.numel() for p in model.parameters())} numbers")
    time.sleep(0.1)  # or gloo threads may abort at exit: https://github.com/pytorch/pytorch/issues/190489
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
