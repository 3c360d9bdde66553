"""Many trainings of one physics problem at once: one pass through the network for all, an optimizer for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from problems.base import Batch
from problems.physics import Physics
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtopt

Losses = dict[str, Tensor]


class Trainings:
    """Networks of one shape, their parameters in the rows of one tensor, and a `MultiLossOptimizer` for each row.

    An optimizer's losses are linear in its row, with the value and the gradient that autograd found for the network:
    from there on all is as in a training of its own, but that the network is one parameter (GradDrop draws other
    numbers).

    Args:
        problem: What is trained.
        seeds: Of each training: its network's first parameters and its batches.
        make: From a training's number and its parameters, as one, to its optimizer.
    """

    def __init__(
        self, problem: Physics, seeds: Sequence[int], make: Callable[[int, Tensor], mtopt.MultiLossOptimizer]
    ) -> None:
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
        self.parameters = [row.requires_grad_() for row in self.rows.unbind()]
        self.optimizers = [make(i, parameter) for i, parameter in enumerate(self.parameters)]
        self.streams = {seed: problem.batches(seed) for seed in seeds}
        self.seeds = seeds
        self._losses = vmap(self._losses_of_one)

    def step(self) -> None:
        """One step of each, on its next batch."""
        new = {seed: next(stream) for seed, stream in self.streams.items()}
        batches = tuple(torch.stack(tensors) for tensors in zip(*(new[seed] for seed in self.seeds), strict=True))
        losses: Losses = self._losses(self.stacked, batches)
        last = next(reversed(losses))
        gradients = {name: self._gradients(loss, retain_graph=name != last) for name, loss in losses.items()}
        for i, (parameter, optimizer) in enumerate(zip(self.parameters, self.optimizers, strict=True)):
            optimizer.zero_grad()
            optimizer.step({name: _linear(parameter, gradients[name][i], losses[name][i]) for name in losses})

    def model(self, i: int) -> nn.Module:
        """The network of a training, as it is now."""
        nn.utils.vector_to_parameters(self.rows[i].detach().clone(), self.models[i].parameters())
        return self.models[i]

    def _losses_of_one(self, parameters: Sequence[Tensor], batch: Batch) -> Losses:
        named = {f"model.{name}": p for name, p in zip(self.names, parameters, strict=True)}
        losses: Losses = functional_call(_Losses(self.problem, self.models[0]), named, (batch,))
        return losses

    def _gradients(self, losses: Tensor, *, retain_graph: bool) -> Tensor:
        found = torch.autograd.grad(losses.sum(), self.stacked, retain_graph=retain_graph, allow_unused=True)
        pairs = zip(found, self.stacked, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten(1) for g, p in pairs], dim=1)


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
