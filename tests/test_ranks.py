"""Several processes: what works, and what is refused rather than left to diverge."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer

pytestmark = pytest.mark.timeout(120)


class Equal(mtopt.GramianTransform):
    def weights(self, gramian, losses):
        return torch.ones(len(gramian))


class Ones(mtopt.LossWeighting):
    def weights(self, losses):
        return torch.ones(len(losses))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 1) for _ in range(3))

    def forward(self, x):
        z = self.trunk(x).tanh()
        return [head(z).sub(i).square().mean() for i, head in enumerate(self.heads)]


def training(rank: int, port: int, queue) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, timeout=timedelta(seconds=60), rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        net = DistributedDataParallel(Net())
        optimizer = MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), GradDrop(seed=rank))
        for step in range(5):
            optimizer.zero_grad()
            optimizer.step(net(torch.randn(4, 4, generator=torch.Generator().manual_seed(10 * step + rank))))
        refused = []
        for name, transforms, at in [
            ("parameters", GradDrop(), "parameters"),
            ("Gramian", Equal(), "activations"),
            ("weighting", [Ones()], "activations"),
            ("marginalize", GradDrop(marginalize=0), net.module.trunk),
        ]:
            other = MultiLossOptimizer(optimizer.inner, transforms, at=at)
            try:
                other.backward(net(torch.ones(4, 4)))
            except RuntimeError as error:
                refused.append((name, "Several ranks are running" in str(error)))
        try:
            MultiLossLayer(2, GradDrop(marginalize=0))(torch.ones(2, 2, requires_grad=True))
        except RuntimeError as error:
            refused.append(("layer", "Several ranks are running" in str(error)))
        queue.put((rank, [p.tolist() for p in net.parameters()], refused))
    finally:
        dist.destroy_process_group()


def test_two_ranks_stay_together_and_what_would_diverge_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=training, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = sorted(queue.get() for _ in processes)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert results[0][1] == results[1][1]
    names = ["parameters", "Gramian", "weighting", "marginalize", "layer"]
    for _, _, refused in results:
        assert refused == [(name, True) for name in names]
