"""Many trainings of one physics problem at once: one pass through the network for all, an optimizer for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from peers_of_physics import Peer
from problems.base import Batch
from problems.physics import Physics
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtopt

Losses = dict[str, Tensor]


class Networks:
    """Networks of one shape, their parameters in the rows of one tensor.

    Args:
        problem: What is trained.
        seeds: Of each training: its network's first parameters and its batches.
    """

    def __init__(self, problem: Physics, seeds: Sequence[int]) -> None:
        self.problem = problem
        self.models = []
        for seed in seeds:
            torch.manual_seed(seed)
            self.models.append(problem.make_model())
        self.names = [name for name, _ in self.models[0].named_parameters()]
        shapes = [p.shape for p in self.models[0].parameters()]
        self.rows = torch.stack([nn.utils.parameters_to_vector(model.parameters()).detach() for model in self.models])
        parts = torch.split(self.rows, [shape.numel() for shape in shapes], dim=1)
        self.stacked = [
            part.view(len(seeds), *shape).requires_grad_() for part, shape in zip(parts, shapes, strict=True)
        ]
        self.streams = {seed: problem.batches(seed) for seed in seeds}
        self.seeds = seeds
        self._losses = vmap(self._losses_of_one)

    def losses(self) -> Losses:
        """Of each network on its next batch, `(R,)` each."""
        new = {seed: next(stream) for seed, stream in self.streams.items()}
        batches = tuple(torch.stack(tensors) for tensors in zip(*(new[seed] for seed in self.seeds), strict=True))
        losses: Losses = self._losses(self.stacked, batches)
        return losses

    def gradients(self, losses: Tensor, *, retain_graph: bool) -> Tensor:
        """Of one loss of each network `(R,)`, in the rows of a matrix."""
        found = torch.autograd.grad(losses.sum(), self.stacked, retain_graph=retain_graph, allow_unused=True)
        pairs = zip(found, self.stacked, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten(1) for g, p in pairs], dim=1)

    def model(self, i: int) -> nn.Module:
        """The network of a training, as it is now."""
        nn.utils.vector_to_parameters(self.rows[i].detach().clone(), self.models[i].parameters())
        return self.models[i]

    def _losses_of_one(self, parameters: Sequence[Tensor], batch: Batch) -> Losses:
        named = {f"model.{name}": p for name, p in zip(self.names, parameters, strict=True)}
        losses: Losses = functional_call(_Losses(self.problem, self.models[0]), named, (batch,))
        return losses


class Trainings(Networks):
    """Networks with a `MultiLossOptimizer` for each, or what stands in its place.

    An optimizer's losses are linear in its row, with the value and the gradient that autograd found for the network:
    from there on all is as in a training of its own, but that the network is one parameter (GradDrop draws other
    numbers).

    Args:
        problem, seeds: As for `Networks`.
        make: From a training's number and its parameters, as one, to its optimizer.
        in_turn: Of each training: does a step take one loss, in turn? All, if not given.
    """

    def __init__(
        self,
        problem: Physics,
        seeds: Sequence[int],
        make: Callable[[int, Tensor], mtopt.MultiLossOptimizer | Peer],
        in_turn: Sequence[bool] | None = None,
    ) -> None:
        super().__init__(problem, seeds)
        self.parameters = [row.requires_grad_() for row in self.rows.unbind()]
        self.optimizers = [make(i, parameter) for i, parameter in enumerate(self.parameters)]
        self.in_turn = [False] * len(seeds) if in_turn is None else in_turn
        self.count = 0

    def step(self) -> None:
        """One step of each, on its next batch."""
        losses = self.losses()
        last = next(reversed(losses))
        gradients = {name: self.gradients(loss, retain_graph=name != last) for name, loss in losses.items()}
        turn = list(losses)[self.count % len(losses)]
        self.count += 1
        for i, (parameter, optimizer) in enumerate(zip(self.parameters, self.optimizers, strict=True)):
            optimizer.zero_grad()
            taken = [turn] if self.in_turn[i] else losses
            linear = {name: _linear(parameter, gradients[name][i], losses[name][i]) for name in taken}
            optimizer.step({name: linear.get(name) for name in losses})


class WeightedSums(Networks):
    """Networks that Adam trains on weighted sums, with cosine decay: to rounding what an optimizer for each would do.

    Adam's step does not depend on the parameters, so that one Adam with a rate of 1 on zeros finds the steps of all.

    Args:
        problem, seeds: As for `Networks`.
        weights: Of each training's losses, `(R, T)`.
        rates: Of each training, `(R,)`.
        betas: Adam's β₂ for each training.
        steps: After these the rates are 0.
        look: How often the step is held against the gradient of each loss, in steps.
    """

    def __init__(
        self,
        problem: Physics,
        seeds: Sequence[int],
        weights: Tensor,
        rates: Tensor,
        betas: Sequence[float],
        steps: int,
        look: int = 50,
    ) -> None:
        super().__init__(problem, seeds)
        self.weights = dict(zip(problem.tasks, weights.T, strict=True))
        self.rates, self.steps, self.look = rates, steps, look
        self.adams = []
        for beta in sorted(set(betas)):
            which = torch.tensor([i for i, of_run in enumerate(betas) if of_run == beta])
            zeros = torch.zeros(len(which), self.rows.shape[1], requires_grad=True)
            self.adams.append((which, zeros, torch.optim.Adam([zeros], lr=1.0, betas=(0.9, beta))))
        self.count = 0
        self.raised: dict[str, Tensor] = {name: torch.zeros(len(seeds)) for name in problem.tasks}
        self.looks = 0

    def step(self) -> None:
        """One step of each, on its next batch."""
        losses = self.losses()
        looking = self.count % self.look == 0
        single = {name: self.gradients(loss, retain_graph=True) for name, loss in losses.items()} if looking else {}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum(0)
        gradient = self.gradients(total, retain_graph=False)
        change = torch.empty_like(gradient)
        for which, zeros, adam in self.adams:
            zeros.detach().zero_()
            zeros.grad = gradient[which]
            adam.step()
            change[which] = zeros.detach()
        change *= (self.rates * (1 + math.cos(math.pi * self.count / self.steps)) / 2)[:, None]
        self.looks += looking
        for name, of_loss in single.items():
            self.raised[name] += (of_loss * change).sum(1) > 0
        self.rows.add_(change)
        self.count += 1


class _Losses(nn.Module):
    """The losses of a problem as a module, whose parameters can be replaced."""

    def __init__(self, problem: Physics, model: nn.Module) -> None:
        super().__init__()
        self.problem, self.model = problem, model

    def forward(self, batch: Batch) -> Losses:
        return self.problem.losses(self.model, batch)


def _linear(parameter: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
    """A loss with that value and gradient."""
    product = parameter @ gradient
    return product + (value - product).detach()
