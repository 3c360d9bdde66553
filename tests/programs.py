"""Random differentiable programs with several losses, each drawn from a seed. Their gradients are zero only where
nothing is read, so that an oracle can see from numbers which loss reaches what: nothing grows until a tanh is flat."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

WIDTH, EXAMPLES = 6, 5


class Doubled(torch.autograd.Function):
    """A custom function of two tensors, which gives two; each number of each depends on all of both."""

    @staticmethod
    def forward(one, other):
        return one + (one.sin() + other.sin()).mean(), other + (one.cos() + other.cos()).mean()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, first, second):
        one, other = ctx.saved_tensors
        to_first, to_second = first.sum() / first.numel(), second.sum() / second.numel()
        to_one = first + one.cos() * to_first - one.sin() * to_second
        return to_one, second + other.cos() * to_first - other.sin() * to_second


class Program(nn.Module):
    """Tied, frozen, unused weights; skips, checkpoints, in-place, dtypes, bundles of losses and heads; 1 to 6 losses.

    Attributes:
        tap: A module that may be called once, or more often, or never.
        parted: Whether losses may read parts of a tensor, or be bundled in one.
        low: Whether a part of it computes in float32.
        by_example: Whether losses may part at an operation that keeps some numbers apart, though its kind does not tell
            (examples in a linear layer, columns in an embedding). Structure and numbers then say different things.
        tapped: What the tap made in the last forward.
    """

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6)).double()
        self.tap = nn.Linear(WIDTH, WIDTH).double()
        self.head = nn.Linear(WIDTH, 4).double()
        self.scale = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(8, WIDTH, dtype=torch.float64))
        self.x = torch.randn(EXAMPLES, WIDTH, dtype=torch.float64)
        self.words = torch.randint(8, (EXAMPLES,))
        for layer in self.layers:
            layer.requires_grad_(draw.random() > 0.1)
        if draw.random() < 0.15:
            self.x.requires_grad_()
        self.seed = draw.randrange(10**9)
        self.low = self.by_example = False
        self.parted = draw.random() < 0.6

    def forward(self):
        draw = random.Random(self.seed)
        torch.manual_seed(self.seed)
        self.tapped = []
        tensors = [self.x]
        for _ in range(draw.randint(1, 6)):
            tensors.append(self.step(draw, tensors))
        losses = []
        for _ in range(draw.randint(1, 6)):
            losses += self.losses(draw, tensors) if self.parted and draw.random() < 0.2 else [self.loss(draw, tensors)]
        losses = [loss for loss in losses if loss.requires_grad][:6]
        return self.bundle(draw, losses) if self.parted else losses

    def step(self, draw, tensors):
        z, other = draw.choice(tensors[-2:]), draw.choice(tensors)
        layer = draw.choice(list(self.layers))  # tied, now and then
        k = draw.randrange(1, WIDTH)
        kind = draw.randrange(22)
        if kind <= 2:
            return layer(z).tanh()
        if kind <= 4:
            made = self.tap(z)
            if made.grad_fn is not None:
                self.tapped.append(made)
            return F.softplus(made)
        if kind == 5:
            return checkpoint(lambda t: layer(t).sin(), z, use_reentrant=False)
        if kind == 6:
            return z + layer(other).sigmoid()  # a skip
        if kind == 7:
            return z * self.scale
        if kind == 8:
            return torch.cat([layer(z)[:, :k], other[:, k:]], 1)
        if kind == 9:
            made = layer(z).clone()
            made[:, k] = other[:, 0]
            return made.tanh()
        if kind == 10:
            return torch.stack([z, layer(other)]).unbind()[draw.randrange(2)].sin().exp()
        if kind == 11:
            self.low = True
            return layer(z).float().sin().double()
        if kind == 12:
            return F.layer_norm(layer(z), (WIDTH,), self.scale)
        if kind == 13:
            return z + self.table[self.words]
        if kind == 14:
            self.by_example = True
            return F.embedding(self.words, self.table) * z.sigmoid()
        if kind == 15:
            return draw.choice(Doubled.apply(z, layer(other)))
        if kind == 16:
            return (z.unsqueeze(1) @ z.unsqueeze(2)).flatten(1).cos() + other
        if kind == 17:
            return z.t().reshape(WIDTH, EXAMPLES).t().flip(0).roll(k, 1).contiguous()
        if kind == 18:
            return torch.where(torch.arange(WIDTH) < k, layer(z), other)
        if kind == 19:
            return draw.choice([c if c.shape[1] == WIDTH else c.repeat(1, WIDTH // 3) for c in layer(z).chunk(2, 1)])
        if kind == 20:
            made = layer(z)
            made += other
            return made
        return F.dropout(layer(z), 0.3) + other.detach() + z  # what is dropped is read by the skip

    def losses(self, draw, tensors):
        """Of one head with several columns, or of one tensor's parts."""
        z = draw.choice(tensors[1:])
        kind = draw.randrange(4)
        if kind == 0:
            return list((self.head(z) - draw.random()).square().mean(0))
        if kind == 1:
            return [column.sin().sum() for column in self.head(z).unbind(1)[: draw.randint(2, 4)]]
        if kind == 2:
            return [part.square().mean() for part in z.split([2, WIDTH - 2], 1)]
        self.by_example = True
        return list(z.square().mean(1)[:3])

    def loss(self, draw, tensors):
        z = draw.choice(tensors[1:])
        kind = draw.choice(range(10) if self.parted else (2, 2, 3, 4, 6, 7, 9))
        if kind == 0:
            start = draw.randrange(WIDTH - 1)
            z = z[:, start : start + draw.randint(1, 3)]
        elif kind == 1:
            self.by_example = True
            z = z[draw.randrange(EXAMPLES) :]
        elif kind in (2, 3):
            z = draw.choice(list(self.layers))(z)
        elif kind == 4 and draw.random() < 0.5:
            return draw.choice(list(self.layers)).weight.square().sum()  # a penalty
        elif kind == 5:
            z = z.index_select(1, torch.tensor([draw.randrange(WIDTH), draw.randrange(WIDTH)]))
        elif kind == 6:
            z = self.head(z)[:, draw.randrange(4)]
        elif kind == 7:
            return F.cross_entropy(self.head(z), self.words % 4)
        elif kind == 8:
            z = z.gather(1, self.words.view(-1, 1) % WIDTH)
        loss = (z - draw.random()).square().mean() if draw.random() < 0.7 else z.sinh().sum() * draw.random()
        return loss.float() if self.low and draw.random() < 0.3 else loss

    def bundle(self, draw, losses):
        kind = draw.randrange(9)
        if len(losses) < 2 or kind > 5 or len({loss.dtype for loss in losses}) > 1:
            return losses
        weights = 0.5 + torch.rand(len(losses), dtype=losses[0].dtype)
        if kind == 0:
            return torch.stack(losses) * weights
        if kind == 1:
            return list(torch.cat([loss.view(1) for loss in losses]).split(1))
        if kind == 2:
            return list((torch.stack(losses) / weights).unbind())
        if kind == 3:
            both = torch.hstack(losses)
            return [both[i] for i in range(len(losses))]
        if kind == 4:
            return torch.stack(losses).view(1, -1).expand(2, -1)[1]
        vector = torch.zeros(len(losses), dtype=losses[0].dtype)
        for i, loss in enumerate(losses):
            vector[i] = loss
        return vector
