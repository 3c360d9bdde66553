"""Many trainings of one physics problem at once: one pass through the network for all, an optimizer for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from peers_of_physics import Peer
from problems.base import Batch
from problems.physics import Physics
from torch import Tensor, nn
from torch.func import functional_call, vmap

import mtopt

Losses = dict[str, Tensor]


class Inner(Protocol):
    """An optimizer of many networks."""

    def changes(self, gradient: Tensor) -> Tensor: ...


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


def n_parameters(problem: Physics) -> int:
    """Of a problem's network."""
    return sum(p.numel() for p in problem.make_model().parameters())


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


class Adams:
    """Adam for many networks. Its step does not depend on the parameters: one on zeros, of rate 1, finds those of all.

    Args:
        betas: β₁ and β₂ for each network.
        n: How many parameters each has.
    """

    def __init__(self, betas: Sequence[tuple[float, float]], n: int) -> None:
        self.groups = []
        for both in sorted(set(betas)):
            which = torch.tensor([i for i, of_run in enumerate(betas) if of_run == both])
            zeros = torch.zeros(len(which), n, requires_grad=True)
            self.groups.append((which, zeros, torch.optim.Adam([zeros], lr=1.0, betas=both)))

    def changes(self, gradient: Tensor) -> Tensor:
        """What a step of rate 1 adds to the parameters, `(R, P)`, as the gradient."""
        found = torch.empty_like(gradient)
        for which, zeros, adam in self.groups:
            zeros.detach().zero_()
            zeros.grad = gradient[which]
            adam.step()
            found[which] = zeros.detach()
        return found


class Stepped(Networks):
    """Networks whose inner optimizer takes a step for all at once, with cosine decay.

    Args:
        problem, seeds: As for `Networks`.
        rates: Of each training, `(R,)`.
        inner: From what to change in the parameters at a rate of 1.
        steps: After these the rates are 0.
        look: How often the step is held against the gradient of each loss, in steps.
        decays: Weight decay of each training, as AdamW has it, `(R,)`.
    """

    def __init__(
        self,
        problem: Physics,
        seeds: Sequence[int],
        rates: Tensor,
        inner: Inner,
        steps: int,
        look: int = 50,
        decays: Tensor | None = None,
    ) -> None:
        super().__init__(problem, seeds)
        self.decays = torch.zeros(len(seeds)) if decays is None else decays
        self.rates, self.inner, self.steps, self.look = rates, inner, steps, look
        self.count = 0
        self.raised: dict[str, Tensor] = {name: torch.zeros(len(seeds)) for name in problem.tasks}
        self.looks = 0

    @property
    def looking(self) -> bool:
        return self.count % self.look == 0

    def move(self, gradient: Tensor, single: Losses) -> None:
        """Take the step, and hold it against the gradients of single losses, `(R, P)` each, if it is looked at."""
        change = self.inner.changes(gradient) - self.decays[:, None] * self.rows
        change *= (self.rates * (1 + math.cos(math.pi * self.count / self.steps)) / 2)[:, None]
        if self.looking:
            self.looks += 1
            for name, of_loss in single.items():
                self.raised[name] += (of_loss * change).sum(1) > 0
        self.rows.add_(change)
        self.count += 1


class WeightedSums(Stepped):
    """Networks that are trained on weighted sums: to rounding what an optimizer for each would do.

    Args:
        weights: Of each training's losses, `(R, T)`.
        others: As for `Stepped`.
    """

    def __init__(self, problem: Physics, seeds: Sequence[int], weights: Tensor, *others: Any, **more: Any) -> None:
        super().__init__(problem, seeds, *others, **more)
        self.weights = dict(zip(problem.tasks, weights.T, strict=True))

    def step(self) -> None:
        """One step of each, on its next batch."""
        losses = self.losses()
        names = losses if self.looking else ()
        single = {name: self.gradients(losses[name], retain_graph=True) for name in names}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum(0)
        self.move(self.gradients(total, retain_graph=False), single)


class Decided(Stepped):
    """Networks whose gradients transforms combine: to rounding what a `MultiLossOptimizer` for each would do.

    Args:
        decisions: One for each training.
        others: As for `Stepped`.
    """

    def __init__(
        self, problem: Physics, seeds: Sequence[int], decisions: Sequence[Decision], *others: Any, **more: Any
    ) -> None:
        super().__init__(problem, seeds, *others, **more)
        self.decisions = decisions

    def step(self) -> None:
        """One step of each, on its next batch."""
        losses = self.losses()
        last = next(reversed(losses))
        single = {name: self.gradients(loss, retain_graph=name != last) for name, loss in losses.items()}
        rows = torch.stack(list(single.values()), dim=1)
        combined = [decision(own, self.count) for decision, own in zip(self.decisions, rows, strict=True)]
        self.move(torch.stack(combined), single)


class Decision:
    """What a list of transforms makes of the gradients of one network, seen as one parameter.

    Args:
        transforms: Momentum first, if at all, then what weights or mixes rows, then whitening, if at all.
        in_turn: Whether a step has one loss alone, in turn; momentum's averages stand for the others.
    """

    def __init__(self, transforms: Sequence[mtopt.Transform], *, in_turn: bool = False) -> None:
        self.transforms, self.in_turn = transforms, in_turn
        self.averages: dict[Any, Any] = {}
        self.moments: dict[Any, Any] = {}

    def __call__(self, rows: Tensor, count: int) -> Tensor:
        """From rows `(T, P)` to the combined gradient `(P,)`, in the step of that number."""
        raw, shares = rows, torch.ones(len(rows), 1, dtype=torch.float64)
        for transform in self.transforms:
            if isinstance(transform, mtopt.Momentum):
                raw = rows = self._averaged(transform, rows, count)
                shares = shares[: len(rows)]
            elif isinstance(transform, mtopt.Whitening):
                own = {i: share if len(share) > 1 else float(share) for i, share in enumerate(shares)}
                self.moments |= transform.seen(self.moments, dict(enumerate(raw)))
                return transform.whitened(rows.sum(0), own, self.moments)
            else:
                rows, shares = _combined(transform, rows, shares)
        return rows.sum(0)

    def _averaged(self, momentum: mtopt.Momentum, rows: Tensor, count: int) -> Tensor:
        """In turn, those of the losses that had their turn."""
        now = [count % len(rows)] if self.in_turn else range(len(rows))
        for i in now:
            self.averages |= momentum.moved(self.averages, i, rows[i])
        return torch.stack([momentum.row(self.averages, i) for i in range(len(rows)) if (i,) in self.averages])


def _combined(transform: mtopt.Transform, rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The rows behind a transform, and how much of each loss's gradient is in their sum, `(T, 1)` or `(T, P)`."""
    losses = mtopt.Losses(tuple(range(len(rows))), len(rows))
    if isinstance(transform, mtopt.GramianTransform):
        if len(rows) == 1:
            return rows, shares
        wide = rows.double()
        weights = transform.weights(wide @ wide.T, losses)
        mixed = weights.to(rows) @ rows if weights.ndim == 2 else weights.to(rows)[:, None] * rows
        return mixed, shares * (weights.sum(0) if weights.ndim == 2 else weights)[:, None]
    assert isinstance(transform, mtopt.RowTransform)
    kept = transform.transform(rows, mtopt.Site(losses))
    return kept, shares * torch.where(rows == 0, 1, kept / rows)


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
