"""PINA: a weighting hands the losses to mtopt instead of adding them up. Lightning trains as before.

Run it with

    python docs/examples/pina_poisson.py
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from pina import Condition, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation, FixedValue
from pina.model import FeedForward
from pina.operator import laplacian
from pina.optim import TorchOptimizer
from pina.problem import SpatialProblem
from pina.solver import PINN
from pina.weighting import BaseWeighting
from torch import Tensor, nn

import mtopt


class Adam(mtopt.MultiLossOptimizer):
    """A class, since PINA makes the optimizer itself."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(torch.optim.Adam(parameters, lr=lr), mtopt.ConFIG(), at="parameters")


class Poisson(SpatialProblem):
    """Δu = -2π² sin(πx) sin(πy) on the unit square, 0 at its edge."""

    output_variables: ClassVar = ["u"]
    spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
    domains: ClassVar = {
        "inside": spatial_domain,
        "left": CartesianDomain({"x": 0, "y": [0, 1]}),
        "right": CartesianDomain({"x": 1, "y": [0, 1]}),
        "low": CartesianDomain({"x": [0, 1], "y": 0}),
        "high": CartesianDomain({"x": [0, 1], "y": 1}),
    }

    @staticmethod
    def residual(points: Any, u: Any) -> Any:
        source = (points.extract("x") * torch.pi).sin() * (points.extract("y") * torch.pi).sin()
        return laplacian(u, points, components=["u"], d=["x", "y"]) + 2 * torch.pi**2 * source

    conditions: ClassVar = {
        "inside": Condition(domain="inside", equation=Equation(residual)),
        **{edge: Condition(domain=edge, equation=FixedValue(0.0)) for edge in ("left", "right", "low", "high")},
    }


class HandOver(BaseWeighting):
    """Gets the losses in one tensor, each with weight 1, and returns their total."""

    def __init__(self) -> None:
        super().__init__(aggregator=self.total)

    def update_weights(self, losses: dict[str, Tensor]) -> dict[str, float]:
        return dict.fromkeys(losses, 1.0)

    def total(self, losses: Tensor) -> Tensor:
        return mtopt.total(self.solver.optimizer.instance, losses.as_subclass(Tensor).flatten())


def make_solver(optimizer: type[torch.optim.Optimizer], weighting: BaseWeighting | None) -> PINN:
    torch.manual_seed(0)
    problem = Poisson()
    problem.discretise_domain(40, "random", domains=list(problem.domains))
    return PINN(
        problem,
        FeedForward(input_dimensions=2, output_dimensions=1, layers=[20, 20], func=nn.Tanh),
        optimizer=TorchOptimizer(optimizer, lr=1e-2),
        weighting=weighting,
    )


def error(solver: PINN) -> float:
    x, y = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)).unbind(1)
    exact = (torch.pi * x).sin() * (torch.pi * y).sin()
    with torch.no_grad():
        found = solver.model(torch.stack([x, y], 1)).as_subclass(Tensor)[:, 0]
    return float((found - exact).norm() / exact.norm())


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    solver = make_solver(Adam, HandOver())
    first = error(solver)
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    Trainer(solver, max_epochs=500, **quiet).train()
    print(f"relative error: {first:.4f} -> {error(solver):.4f}")


if __name__ == "__main__":
    main()
