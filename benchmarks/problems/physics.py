"""Physics-informed networks: a network with its first and second derivatives, Helmholtz' and Burgers' equations."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .base import Batch, Problem

LEAST = 1e-12  # below this an error is as good as none


class Field(nn.Module):
    """A tanh network from points `(N, D)` to values `(N,)`, or `(N, M)` where it has several outputs."""

    def __init__(self, n_dims: int, width: int, depth: int, n_outputs: int = 1) -> None:
        super().__init__()
        sizes = [n_dims, *[width] * depth, n_outputs]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            points = layer(points).tanh()
        value: Tensor = last(points)
        return value.squeeze(1)

    def jet(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, and first and second derivatives along each dim, `(D, N)` and on, carried through layer by layer."""
        n, n_dims = points.shape
        first = torch.eye(n_dims)[:, None].expand(n_dims, n, n_dims)
        value, second = points, torch.zeros_like(first)
        *hidden, last = self.layers
        for layer in hidden:
            assert isinstance(layer, nn.Linear)
            value = layer(value).tanh()
            slope = 1 - value.square()
            first, second = first @ layer.weight.T, second @ layer.weight.T
            second = slope * (second - 2 * value * first.square())
            first = slope * first
        assert isinstance(last, nn.Linear)
        return last(value).squeeze(1), (first @ last.weight.T).squeeze(2), (second @ last.weight.T).squeeze(2)


class Physics(Problem):
    """New points in each step; the error is measured at others, and at others again for the test."""

    metric = "log10 of the relative L2 error"
    larger_is_better = False
    lrs = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    seeds = 10
    at = "parameters"  # each loss has a forward of its own
    marginal = False
    width = 32
    n_test = 2000
    n_residuals = 1  # the first losses; those that follow are what a sum gives more weight

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        points = {split: self.points(random, self.n_test) for split in ("validation", "test")}
        self.known = {split: (p, self.solution(p)) for split, p in points.items()}

    @abstractmethod
    def points(self, random: torch.Generator, n: int) -> Tensor:
        """Points of the domain."""

    @abstractmethod
    def solution(self, points: Tensor) -> Tensor:
        """What the network is to find."""

    @abstractmethod
    def batch(self, random: torch.Generator) -> Batch:
        """The points of one step."""

    def batches(self, seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        while True:
            yield self.batch(random)

    def make_model(self) -> nn.Module:
        return Field(2, self.width, 3)

    def metrics(self, model: nn.Module, split: str) -> dict[str, float]:
        points, exact = self.known[split]
        error = (model(points) - exact).norm() / exact.norm()
        return {"solution": error.clamp_min(LEAST).log10().item()}


class ResidualsAsOne(Physics):
    """A problem whose residuals are one loss, their sum."""

    def __init__(self, problem: Physics) -> None:
        self.problem, self.about, self.steps = problem, problem.about, problem.steps
        self.tasks = ("residual", *problem.tasks[problem.n_residuals :])

    def points(self, random: torch.Generator, n: int) -> Tensor:
        return self.problem.points(random, n)

    def solution(self, points: Tensor) -> Tensor:
        return self.problem.solution(points)

    def batch(self, random: torch.Generator) -> Batch:
        return self.problem.batch(random)

    def make_model(self) -> nn.Module:
        return self.problem.make_model()

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = self.problem.losses(model, batch)
        residuals = torch.stack([losses[name] for name in self.problem.tasks[: self.problem.n_residuals]])
        return {"residual": residuals.sum(), **{name: losses[name] for name in self.tasks[1:]}}

    def metrics(self, model: nn.Module, split: str) -> dict[str, float]:
        return self.problem.metrics(model, split)


class OnSquare(Physics):
    """The square of -1 to 1 in both dims: points inside, and on its four edges."""

    def points(self, random: torch.Generator, n: int) -> Tensor:
        return 2 * torch.rand(n, 2, generator=random) - 1

    def batch(self, random: torch.Generator) -> Batch:
        edge = self.points(random, 64)
        edge[torch.arange(64), torch.arange(64) % 2] = (torch.arange(64) // 2 % 2 * 2 - 1).float()
        return self.points(random, 128), edge


class InTime(Physics):
    """One dimension of space, and time from 0 to 1: what is known at the start and at both ends."""

    low: float
    length: float

    def points(self, random: torch.Generator, n: int) -> Tensor:
        """x from `low` on, t in [0, 1]."""
        return torch.rand(n, 2, generator=random) * torch.tensor([self.length, 1.0]) + torch.tensor([self.low, 0.0])

    def batch(self, random: torch.Generator) -> Batch:
        start, edge = self.points(random, 64), self.points(random, 64)
        start[:, 1] = 0
        edge[:, 0] = self.low + (torch.arange(64) % 2) * self.length
        return self.points(random, 128), start, edge


class Helmholtz(OnSquare):
    about = "Helmholtz' equation on a square, with the solution sin(πx) sin(πy): residual and boundary."
    tasks = ("residual", "boundary")
    steps = 1500

    def solution(self, points: Tensor) -> Tensor:
        x, y = (math.pi * points).unbind(1)
        return x.sin() * y.sin()

    def source(self, points: Tensor) -> Tensor:
        """f of Δu + u = f."""
        return (1 - 2 * math.pi**2) * self.solution(points)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, edge = batch
        value, _, second = model.jet(inner)
        residual = second.sum(0) + value - self.source(inner)
        return {"residual": residual.square().mean(), "boundary": model(edge).square().mean()}


class QuickHelmholtz(Helmholtz):
    """For a trial of the procedure."""

    about = "As helmholtz, but much shorter. A trial of the procedure, no evidence."
    steps = 60
    seeds = 3
    width = 8
    n_test = 200


class Burgers(InTime):
    about = "Burgers' equation in one dimension, viscosity 0.1/π: residual, initial state and boundary."
    tasks = ("residual", "initial", "boundary")
    steps = 700
    low, length = -1.0, 2.0
    viscosity = 0.1 / math.pi

    def solution(self, points: Tensor) -> Tensor:
        """Of u_t + u u_x = ν u_xx from u = -sin(πx), by the Cole-Hopf transform and Gauss-Hermite quadrature."""
        x, t = points.double().unbind(1)
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite.hermgauss(120))
        y = math.pi * (x[:, None] - (4 * self.viscosity * t).sqrt()[:, None] * nodes)
        mass = weights * (-y.cos() / (2 * math.pi * self.viscosity)).exp()
        return (-(mass * y.sin()).sum(1) / mass.sum(1)).float()

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, start, edge = batch
        value, first, second = model.jet(inner)
        residual = first[1] + value * first[0] - self.viscosity * second[0]
        initial = model(start) + (math.pi * start[:, 0]).sin()
        return {
            "residual": residual.square().mean(),
            "initial": initial.square().mean(),
            "boundary": model(edge).square().mean(),
        }


class Poisson(OnSquare):
    about = "Poisson's equation on a square, with a sharp source: residual and boundary."
    tasks = ("residual", "boundary")
    steps = 1500
    center = (0.3, -0.2)
    sharpness = 25.0

    def solution(self, points: Tensor) -> Tensor:
        return (-self.sharpness * (points - torch.tensor(self.center).to(points)).square().sum(1)).exp()

    def source(self, points: Tensor) -> Tensor:
        """f of Δu = f."""
        a, square = self.sharpness, (points - torch.tensor(self.center).to(points)).square().sum(1)
        return (4 * a**2 * square - 4 * a) * self.solution(points)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, edge = batch
        _, _, second = model.jet(inner)
        residual, boundary = second.sum(0) - self.source(inner), model(edge) - self.solution(edge)
        return {"residual": residual.square().mean(), "boundary": boundary.square().mean()}


class Heat(InTime):
    about = "The heat equation in one dimension, two modes that fade: residual, initial state and boundary."
    tasks = ("residual", "initial", "boundary")
    steps = 1500
    low, length = 0.0, 1.0
    diffusivity = 0.05

    def solution(self, points: Tensor) -> Tensor:
        x, t = points.unbind(1)
        rate = self.diffusivity * math.pi**2
        return (math.pi * x).sin() * (-rate * t).exp() + (3 * math.pi * x).sin() * (-9 * rate * t).exp() / 2

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, start, edge = batch
        _, first, second = model.jet(inner)
        residual = first[1] - self.diffusivity * second[0]
        return {
            "residual": residual.square().mean(),
            "initial": (model(start) - self.solution(start)).square().mean(),
            "boundary": model(edge).square().mean(),
        }


class Wave(InTime):
    about = "The wave equation in one dimension, two modes: residual, initial state and velocity, boundary."
    tasks = ("residual", "initial", "velocity", "boundary")
    steps = 1500
    low, length = 0.0, 1.0
    speed = 2.0

    def solution(self, points: Tensor) -> Tensor:
        x, t = math.pi * points[:, 0], math.pi * self.speed * points[:, 1]
        return x.sin() * t.cos() + (2 * x).sin() * (2 * t).cos() / 2

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, start, edge = batch
        _, _, second = model.jet(inner)
        residual = second[1] - self.speed**2 * second[0]
        value, slope, _ = model.jet(start)
        return {
            "residual": residual.square().mean(),
            "initial": (value - self.solution(start)).square().mean(),
            "velocity": slope[1].square().mean(),
            "boundary": model(edge).square().mean(),
        }


class Convection(InTime):
    about = "A wave that is carried along, speed 30, on a circle: residual, initial state and the ends alike."
    tasks = ("residual", "initial", "periodic")
    steps = 1500
    low, length = 0.0, 2 * math.pi
    speed = 30.0

    def solution(self, points: Tensor) -> Tensor:
        return (points[:, 0] - self.speed * points[:, 1]).sin()

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, start, edge = batch
        _, first, _ = model.jet(inner)
        residual = first[1] + self.speed * first[0]
        other = torch.stack([self.length - edge[:, 0], edge[:, 1]], 1)
        return {
            "residual": residual.square().mean(),
            "initial": (model(start) - self.solution(start)).square().mean(),
            "periodic": (model(edge) - model(other)).square().mean(),
        }


class SharpBurgers(Burgers):
    about = "Burgers' equation with viscosity 0.01/π, whose solution has a front: residual, initial state and boundary."
    steps = 1500
    viscosity = 0.01 / math.pi


class AllenCahn(InTime):
    about = "The Allen-Cahn equation, whose solution settles at ±1: residual, initial state and the ends alike."
    tasks = ("residual", "initial", "periodic")
    steps = 1500
    low, length = -1.0, 2.0
    diffusivity, reaction = 1e-4, 5.0
    n_modes = 1024

    def start(self, x: Tensor) -> Tensor:
        return x.square() * (math.pi * x).cos()

    def solution(self, points: Tensor) -> Tensor:
        """By a Fourier series in space, and an eighth-order Runge-Kutta method in time."""
        from scipy.integrate import solve_ivp

        n = self.n_modes
        grid = self.low + self.length * torch.arange(64 * n, dtype=torch.float64) / (64 * n)
        # At the ends the first derivative has a jump: on a coarse grid its high modes would be taken for low ones.
        exact = torch.fft.rfft(self.start(grid), norm="forward")[: n // 2 + 1]
        number = torch.fft.rfftfreq(n, self.length / n, dtype=torch.float64) * 2 * math.pi  # of waves, per unit of x

        def slope(_: float, u: np.ndarray) -> np.ndarray:
            series = np.fft.rfft(u) * -self.diffusivity * number.numpy() ** 2
            found: np.ndarray = np.fft.irfft(series, n) + self.reaction * (u - u**3)
            return found

        x, t = points.double().unbind(1)
        times, at = torch.unique(t, return_inverse=True)
        first = torch.fft.irfft(exact, n, norm="forward").numpy()
        settings = {"rtol": 1e-9, "atol": 1e-9, "max_step": 2e-3}  # values between steps are less exact than at them
        found = solve_ivp(slope, (0, 1), first, "DOP853", times.numpy(), **settings)
        series = torch.fft.rfft(torch.from_numpy(found.y.T), norm="forward")[at]
        series[:, 1:] *= 2
        series[:, -1] /= 2
        values: Tensor = (series * torch.exp(1j * number * (x - self.low)[:, None])).real.sum(1).float()
        return values

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, start, edge = batch
        value, first, second = model.jet(inner)
        residual = first[1] - self.diffusivity * second[0] + self.reaction * (value**3 - value)
        other = torch.stack([2 * self.low + self.length - edge[:, 0], edge[:, 1]], 1)
        (here, slope, _), (there, same, _) = model.jet(edge), model.jet(other)
        return {
            "residual": residual.square().mean(),
            "initial": (model(start) - self.start(start[:, 0])).square().mean(),
            "periodic": (here - there).square().mean() + (slope[0] - same[0]).square().mean(),
        }


class Kovasznay(OnSquare):
    about = "Kovasznay's flow behind a grid, Reynolds number 20: momentum in both dims, mass, and the boundary."
    tasks = ("along", "across", "mass", "boundary")
    steps = 1500
    n_residuals = 3
    reynolds = 20.0

    @property
    def decay(self) -> float:
        return self.reynolds / 2 - math.hypot(self.reynolds / 2, 2 * math.pi)

    def make_model(self) -> nn.Module:
        return Field(2, self.width, 3, n_outputs=3)

    def solution(self, points: Tensor) -> Tensor:
        """Both velocities, `(N, 2)`; the pressure is only known up to a constant."""
        x, y = points.unbind(1)
        wave, fades = 2 * math.pi * y, (self.decay * x).exp()
        return torch.stack([1 - fades * wave.cos(), self.decay / (2 * math.pi) * fades * wave.sin()], 1)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(model, Field)
        inner, edge = batch
        value, first, second = model.jet(inner)
        carried = (value.T[:2, None] * first.permute(0, 2, 1)).sum(0)  # (3, N): by the flow, of each output
        spread = second.sum(0).T / self.reynolds
        along, across = (carried[i] + first[i, :, 2] - spread[i] for i in range(2))
        mass = first[0, :, 0] + first[1, :, 1]
        boundary = model(edge)[:, :2] - self.solution(edge)
        return {
            "along": along.square().mean(),
            "across": across.square().mean(),
            "mass": mass.square().mean(),
            "boundary": boundary.square().mean(),
        }

    def metrics(self, model: nn.Module, split: str) -> dict[str, float]:
        points, exact = self.known[split]
        error = (model(points)[:, :2] - exact).norm() / exact.norm()
        return {"solution": error.clamp_min(LEAST).log10().item()}
