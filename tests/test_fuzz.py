"""Random programs against plain autograd: at every site right, or refused with nothing changed.

`MTOPT_PROGRAMS=20000 pytest tests/test_fuzz.py` runs the long form.
"""

from __future__ import annotations

import os
import random
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtopt import MGDA, GradDrop, MultiLossOptimizer, RowTransform

PROGRAMS = int(os.environ.get("MTOPT_PROGRAMS", "150"))
CHUNK = 50
WIDTH, EXAMPLES = 6, 5


class Larger(RowTransform):
    """At each coordinate the largest row alone: not linear, and the same wherever it is taken."""

    uses_values, scale_equivariant = False, True

    def transform(self, rows, site):
        return rows * (rows.abs() == rows.abs().amax(0))


class Program(nn.Module):
    """Drawn from a seed: tied, frozen and unused weights, skips, checkpoints, bundles, slices, 1 to 6 losses."""

    def __init__(self, seed):
        super().__init__()
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6)).double()
        self.scale = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))
        self.x = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64)
        for layer in self.layers:
            layer.requires_grad_(self.draw.random() > 0.1)
        self.seed = self.draw.randrange(10**9)

    def forward(self):
        draw = random.Random(self.seed)
        tensors = [self.x]
        for _ in range(draw.randint(1, 5)):
            tensors.append(self.step(draw, tensors))
        losses = [self.loss(draw, tensors) for _ in range(draw.randint(1, 6))]
        losses = [loss for loss in losses if loss.requires_grad]
        return self.bundle(draw, losses)

    def step(self, draw, tensors):
        z, other = draw.choice(tensors[-2:]), draw.choice(tensors)
        layer = draw.choice(list(self.layers))  # tied, now and then
        kind = draw.randrange(9)
        if kind <= 2:
            return layer(z).tanh()
        if kind == 3:
            return checkpoint(lambda t: layer(t).sin(), z, use_reentrant=False)
        if kind == 4:
            return z + layer(other).sigmoid()  # a skip
        if kind == 5:
            return z * self.scale
        if kind == 6:
            return torch.cat([layer(z)[:, :3], other[:, 3:]], 1)
        if kind == 7:
            made = layer(z).clone()
            made[:, draw.randrange(WIDTH)] = other[:, 0]
            return made.tanh()
        return torch.stack([z, layer(other)]).unbind()[draw.randrange(2)].relu()

    def loss(self, draw, tensors):
        z = draw.choice(tensors[1:])
        kind = draw.randrange(7)
        if kind == 0:
            start = draw.randrange(WIDTH - 1)
            z = z[:, start : start + draw.randint(1, 3)]
        elif kind == 1:
            z = z[draw.randrange(EXAMPLES) :]
        elif kind in (2, 3):
            z = draw.choice(list(self.layers))(z)
        elif kind == 4 and draw.random() < 0.5:
            return draw.choice(list(self.layers)).weight.square().sum()  # a penalty
        return (z - draw.random()).square().mean() if draw.random() < 0.7 else z.abs().sum() * draw.random()

    def bundle(self, draw, losses):
        kind = draw.randrange(6)
        if len(losses) < 2 or kind > 2:
            return losses
        if kind == 0:
            return torch.stack(losses) * torch.ones(len(losses), dtype=torch.float64)
        if kind == 1:
            return list(torch.cat([loss.view(1) for loss in losses]).split(1))
        vector = torch.zeros(len(losses), dtype=torch.float64)
        for i, loss in enumerate(losses):
            vector[i] = loss
        return vector


def rows_of(model):
    """Each loss's gradient for each parameter, by plain autograd."""
    losses = list(model())
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [torch.autograd.grad(loss.sum(), parameters, retain_graph=True, allow_unused=True) for loss in losses]


def run(model, transforms, at):
    """The gradients, or the refusal, after which nothing may have changed."""
    model.zero_grad()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MultiLossOptimizer(inner, transforms, at=at)
    losses = model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optimizer.backward(losses)
        except (RuntimeError, ValueError) as error:
            unchanged = all(p.grad is None for p in model.parameters())
            return f"{'' if unchanged else 'CHANGED, though '}{error}"
    return [p.grad for p in model.parameters() if p.requires_grad]


def near(ours, expected):
    """Where a loss reads no number of a tensor, autograd has zeros and we have nothing."""
    zero = torch.zeros((), dtype=torch.float64)
    pairs = ((zero if a is None else a, zero if b is None else b) for a, b in zip(ours, expected, strict=True))
    return all(torch.allclose(a, b.expand_as(a) if b.ndim == 0 else b, rtol=1e-8, atol=1e-10) for a, b in pairs)


def total(rows):
    there = [row for row in rows if row is not None]
    return torch.stack(there).sum(0) if there else None


def larger(rows):
    there = [row for row in rows if row is not None]
    return Larger().transform(torch.stack(there), None).sum(0) if there else None


JUSTIFIED = (
    "share no",
    "share nothing",
    "never meet",
    "read different parts",
    "same tensor",
    "same loss twice",
)


def fault(seed):
    """What is wrong with one program, or None."""
    model = Program(seed)
    if not len(model()):
        return None
    rows = rows_of(model)
    by_parameter = list(zip(*rows, strict=True))
    plain = [total(of) for of in by_parameter]
    sharing = sum(sum(row is not None and bool(row.any()) for row in of) > 1 for of in by_parameter)
    for at in ("activations", "nested", "parameters", "all parameters"):
        for transforms in ([], [GradDrop(leak=1.0)], [MGDA()]):
            got = run(model, transforms, at)
            if isinstance(got, str):
                if "does not require grad" in got and any(
                    not any(r is not None and r.any() for r in row) for row in rows
                ):
                    continue  # an entry of a vector that reads nothing
                if "CHANGED" in got or not transforms or not any(word in got for word in JUSTIFIED):
                    return f"{at}, {transforms}: refused: {got[:150]}"
                if "share no parameter" in got and sharing:
                    return f"{at}: {sharing} parameters are shared, but refused"
            elif transforms != [] and isinstance(transforms[0], MGDA):
                if not all(g is None or g.isfinite().all() for g in got):
                    return f"{at}, MGDA: not finite"
            elif not near(got, plain):
                return f"{at}, {transforms}: not the plain sum"
    got = run(model, [Larger()], "parameters")
    if not isinstance(got, str) and not near(got, [larger(of) for of in by_parameter]):
        return "parameters: not the rows of autograd"
    return None


@pytest.mark.parametrize("start", range(0, PROGRAMS, CHUNK))
def test_random_programs_are_right_or_refused_at_every_site(start):
    faults = {seed: found for seed in range(start, min(start + CHUNK, PROGRAMS)) if (found := fault(seed))}
    assert faults == {}
