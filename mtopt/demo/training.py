"""The network, the methods that are compared, and one training run. No statistics and no output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR

from .. import GradDrop, MultiLossOptimizer, per_loss_gradients, sign_purity
from .data import CANVAS, TASKS, Data, Pictures

BATCH = 128
LEARNING_RATE = 1e-2  # the plain sum's; no method has one of its own
N_BINS = 20
SITES = ("activation", "parameters")


class Net(nn.Module):
    """Two convolutions and a linear layer shared by both tasks, then one linear layer for each."""

    def __init__(self, channels: int = 8, features: int = 64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * ((CANVAS - 1) // 2) ** 2, features),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({task: nn.Linear(features, 10) for task in TASKS})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        activation = self.trunk(images)
        return {task: head(activation) for task, head in self.heads.items()}


PLAIN = "plain sum"

METHODS: dict[str, Callable[[Net, Optimizer], MultiLossOptimizer]] = {
    PLAIN: lambda net, inner: MultiLossOptimizer(inner, []),
    "GradDrop at activation": lambda net, inner: MultiLossOptimizer(inner, GradDrop()),
    "GradDrop marginalized": lambda net, inner: MultiLossOptimizer(inner, GradDrop(marginalize=0), at=net.trunk),
    "GradDrop at parameters": lambda net, inner: MultiLossOptimizer(inner, GradDrop(), at="parameters"),
}


@dataclass(frozen=True)
class Run:
    """What one method did on one seed.

    Attributes:
        accuracy: On the test pictures after each epoch, shape `(epochs, tasks)`, from 0 to 1.
        conflict: Share of the coordinates in conflict before the first epoch and after each,
            shape `(epochs + 1, sites)`.
        purity: Share of the activation's coordinates that are in conflict, by bins of purity, at start and end,
            shape `(2, N_BINS)`.
    """

    accuracy: Tensor
    conflict: Tensor
    purity: Tensor


def start(method: str, seed: int) -> tuple[Net, MultiLossOptimizer]:
    """A new network and its optimizer; the seed alone decides on the weights."""
    torch.manual_seed(seed)
    net = Net()
    return net, METHODS[method](net, AdamW(net.parameters(), lr=LEARNING_RATE, fused=True))


def train_step(net: Net, optimizer: MultiLossOptimizer, batch: Pictures) -> None:
    optimizer.zero_grad()
    optimizer.step(losses_of(net(batch.images), batch))


def losses_of(outputs: dict[str, Tensor], pictures: Pictures) -> dict[str, Tensor]:
    return {task: functional.cross_entropy(outputs[task], pictures.labels[task]) for task in TASKS}


def train(method: str, seed: int, data: Data, epoch_done: Callable[[], None]) -> Run:
    """Train one network by one method."""
    net, optimizer = start(method, seed)
    n_steps = sum(len(pictures.images) // BATCH for pictures in data.epochs)
    schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=n_steps)
    accuracy = []
    probes = [probe(net, data.probe)]
    for pictures in data.epochs:
        for batch in pictures.batches(BATCH):
            train_step(net, optimizer, batch)
            schedule.step()
        accuracy.append(accuracy_of(net, data.test))
        probes.append(probe(net, data.probe))
        epoch_done()
    conflict = torch.stack([shares for shares, _ in probes])
    return Run(torch.stack(accuracy), conflict, torch.stack([probes[0][1], probes[-1][1]]))


def accuracy_of(net: Net, pictures: Pictures) -> Tensor:
    """Share of right answers, shape `(tasks,)`."""
    with torch.no_grad():
        outputs = net(pictures.images)
    return torch.stack([(outputs[task].argmax(1) == pictures.labels[task]).float().mean() for task in TASKS])


def probe(net: Net, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Look at the rows, without a step: share in conflict at each site `(sites,)`; purity at the activation, binned."""
    activation = net.trunk(pictures.images)
    losses = losses_of({task: head(activation) for task, head in net.heads.items()}, pictures)
    at_activation, *at_parameters = per_loss_gradients(losses, [activation, *net.trunk.parameters()])
    assert at_activation is not None
    flat = [rows.flatten(1) for rows in at_parameters if rows is not None]
    purity = purity_where_any(at_activation)
    in_conflict = purity[(purity > 0) & (purity < 1)]
    at_sites = torch.stack([conflict_share(purity), conflict_share(purity_where_any(torch.cat(flat, dim=1)))])
    return at_sites, torch.histc(in_conflict, N_BINS, 0, 1) / len(purity)


def purity_where_any(rows: Tensor) -> Tensor:
    """Purity of the coordinates that at least one loss has a gradient for, in a flat tensor."""
    return sign_purity(rows)[(rows != 0).any(0)]


def conflict_share(purity: Tensor) -> Tensor:
    """Share of coordinates where the losses' gradients have opposite signs."""
    return ((purity > 0) & (purity < 1)).float().mean()
