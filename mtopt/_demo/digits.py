"""The problem of the demo, as `compare` takes it: network, losses, batches, methods. No output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR

from .._methods import GradDrop, GradientNorms, PCGrad, Whitening
from .._transform import Transform
from .data import CANVAS, N_TRAIN_DIGITS, TASKS, Data, Pictures

BATCH = 128
LEARNING_RATE = 1e-2  # the plain sum's; no method has one of its own

# Made anew in each run: their random numbers come from its seed. The recipe has the memory of squares of AdamW here.
METHODS: dict[str, Callable[[], Transform | list[Transform]]] = {
    "GradDrop": GradDrop,
    "PCGrad": PCGrad,
    "recipe": lambda: [GradientNorms(average=0.99, of="norms"), Whitening(beta=0.999)],
}
AT = {"PCGrad": "parameters", "recipe": "parameters"}


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


def losses_of(net: nn.Module, batch: Pictures) -> dict[str, Tensor]:
    outputs = net(batch.images)
    return {task: functional.cross_entropy(outputs[task], batch.labels[task]) for task in TASKS}


def problem(seed: int, epochs: int) -> dict[str, Any]:
    """The arguments of `compare`, but for the seeds; `seed` decides on the digits to test on."""
    data = Data(seed)

    def batches(seed: int) -> list[Pictures]:
        return list(data.epoch().batches(BATCH))

    def optimizer(parameters: list[nn.Parameter]) -> Optimizer:
        inner = AdamW(parameters, lr=LEARNING_RATE, fused=True)
        schedule = LinearLR(inner, 1.0, 0.0, total_iters=epochs * (N_TRAIN_DIGITS // BATCH))
        inner.register_step_post_hook(lambda *_: schedule.step())
        return inner

    def accuracies(net: nn.Module) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs = net(data.test.images)
        right = {task: outputs[task].argmax(1) == labels for task, labels in data.test.labels.items()}
        return {f"accuracy {task} (%)": 100 * right[task].float().mean() for task in TASKS}

    return {
        "make_model": Net,
        "make_losses": losses_of,
        "batches": batches,
        "methods": METHODS,
        "make_optimizer": optimizer,
        "make_metrics": accuracies,
        "at": AT,
        "epochs": epochs,
    }
