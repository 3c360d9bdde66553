"""DeepXDE (PyTorch backend): a compiled model whose training step takes the losses instead of their sum.

Run it with

    python docs/examples/deepxde_poisson.py
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import numpy as np
import torch
from torch import Tensor

import mtopt


def use(model: dde.Model, optimizer: mtopt.MultiLossOptimizer) -> None:
    """Make a compiled model train with this optimizer."""

    def train_step(inputs: Any, targets: Any, auxiliary: Any) -> None:
        optimizer.zero_grad()
        _, losses = model.outputs_losses_train(inputs, targets, auxiliary)
        optimizer.step(losses)
        if model.lr_scheduler is not None:
            model.lr_scheduler.step()

    model.opt, model.train_step = optimizer, train_step


def make_model() -> dde.Model:
    """-u'' = π² sin(πx) on [-1, 1], 0 at both ends."""
    dde.config.set_random_seed(0)

    def residual(x: Tensor, u: Tensor) -> Tensor:
        curved: Tensor = dde.grad.hessian(u, x)
        return -curved - torch.pi**2 * torch.sin(torch.pi * x)

    line = dde.geometry.Interval(-1, 1)
    ends = dde.icbc.DirichletBC(line, lambda _: 0, lambda _, on_boundary: on_boundary)
    data = dde.data.PDE(line, residual, ends, num_domain=32, num_boundary=2)
    return dde.Model(data, dde.nn.FNN([1, 24, 24, 1], "tanh", "Glorot uniform"))


def main() -> None:
    model = make_model()
    model.compile("adam", lr=5e-3)
    use(model, mtopt.MultiLossOptimizer(model.opt, mtopt.ConFIG(), at="parameters"))
    history, _ = model.train(iterations=1000, display_every=1000, verbose=0)
    for name, first, last in zip(("residual", "ends"), history.loss_train[0], history.loss_train[-1], strict=True):
        print(f"{name}: {first:.2e} -> {last:.2e}")
    x = np.linspace(-1, 1, 101)[:, None]
    error = np.abs(model.predict(x) - np.sin(np.pi * x)).max()
    print(f"largest error: 1 -> {error:.4f}")


if __name__ == "__main__":
    main()
