"""Awkward models: for each, its losses, and the tensors at which all of them have met."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

N, D = 6, 4  # examples, features


@dataclass
class Run:
    """One forward: the losses, and the tensors at which all have met (`None`: not stated here, or nowhere).

    `told` names the loss that no decision has, so that it is told.
    """

    losses: list[Tensor]
    sites: list[Tensor] | None = field(default=None)
    told: str = ""


@dataclass
class Case:
    """A model, ready to run; each `run()` gives the same numbers."""

    model: nn.Module
    forward: Callable[[], Run]
    vmap: bool = True  # whether vmap can take its shared part

    def run(self) -> Run:
        torch.manual_seed(1)
        return self.forward()

    @property
    def parameters(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]


MODELS: dict[str, Callable[[], Case]] = {}


def model(build: Callable[[], Case]) -> Callable[[], Case]:
    def seeded() -> Case:
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return build()
        finally:
            torch.set_default_dtype(before)

    MODELS[build.__name__] = seeded
    return seeded


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (N, D)), dtype=torch.float64)


def mse(prediction: Tensor, shift: float = 0.0) -> Tensor:
    return (
        (prediction - torch.linspace(-1, 1, prediction.numel(), dtype=prediction.dtype).view_as(prediction) - shift)
        .square()
        .mean()
    )


def heads(n: int = 3, width: int = D) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, 2) for _ in range(n))


def shared_trunk(trunk: nn.Module, x: Tensor, *, vmap: bool = True, width: int = D, n: int = 3) -> Case:
    """A trunk, and linear heads on its output."""
    net = nn.ModuleDict({"trunk": trunk, "heads": heads(n, width)})

    def forward() -> Run:
        z = net["trunk"](x)
        return Run([mse(head(z), i) for i, head in enumerate(net["heads"])], [z])

    return Case(net, forward, vmap)


@model
def mlp() -> Case:
    return shared_trunk(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.ReLU()), inputs())


@model
def batch_norm() -> Case:
    return shared_trunk(nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D)), inputs())


@model
def layer_norm() -> Case:
    return shared_trunk(nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D), nn.GELU()), inputs())


@model
def group_norm_convolutions() -> Case:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return shared_trunk(trunk, inputs(3, 1, 6, 6), width=16)


@model
def dropout() -> Case:
    return shared_trunk(nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5), nn.Linear(D, D)), inputs())


@model
def in_place_relu() -> Case:
    return shared_trunk(nn.Sequential(nn.Linear(D, D), nn.ReLU(inplace=True)), inputs())


@model
def in_place_on_the_shared_activation() -> Case:
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "heads": heads()})

    def forward() -> Run:
        z = net["trunk"](inputs())
        z.mul_(2).sigmoid_()
        return Run([mse(head(z), i) for i, head in enumerate(net["heads"])], [z])

    return Case(net, forward)


@model
def self_attention() -> Case:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(D, 3 * D)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1), is_causal=True)

    return shared_trunk(Attention(), inputs(2, 3, D), vmap=False)  # torch 2.14 takes a kernel without a batching rule


@model
def attention_heads() -> Case:
    """Each loss's own head reads the site three times: queries, keys and values."""
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "heads": nn.ModuleList(nn.Linear(D, 3 * D) for _ in range(2))})

    def forward() -> Run:
        z = net["trunk"](inputs(2, 3, D))
        a, b = net["heads"]
        one = F.scaled_dot_product_attention(a(z), b.weight.new_ones(()) * a(z), a(z) * z.tanh().repeat(1, 1, 3))
        two = F.scaled_dot_product_attention(b(z), z.repeat(1, 1, 3), b(z))
        return Run([mse(one), mse(two)], [z])

    return Case(net, forward)


@model
def lstm() -> Case:
    net = nn.ModuleDict({"trunk": nn.LSTM(D, D, batch_first=True), "heads": heads(2)})

    def forward() -> Run:
        z, (h, _) = net["trunk"](inputs(2, 3, D))
        a, b = net["heads"]
        return Run([mse(a(z)) + mse(b(h)).detach(), mse(a(z).detach()) + mse(b(z), 1)], [z])

    return Case(net, forward)


@model
def embedding() -> Case:
    return shared_trunk(nn.Sequential(nn.Embedding(7, D), nn.Linear(D, D)), torch.tensor([[0, 3, 3], [6, 1, 0]]))


@model
def tied_trunk_and_head() -> Case:
    net = nn.ModuleDict({"embed": nn.Linear(D, D, bias=False), "head": nn.Linear(D, 2)})

    def forward() -> Run:
        z = net["embed"](inputs()).tanh()
        return Run([mse(z @ net["embed"].weight), mse(net["head"](z), 1)])

    return Case(net, forward)


@model
def parameter_used_twice() -> Case:
    linear = nn.Linear(D, D)
    return shared_trunk(nn.Sequential(linear, nn.Tanh(), linear), inputs())


@model
def parameter_of_all_heads() -> Case:
    """One scale multiplies each head's output: the losses meet at the activation, and add up at that leaf."""
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "heads": heads(2)})
    net.register_parameter("scale", nn.Parameter(torch.tensor([2.0, -1.0])))

    def forward() -> Run:
        z = net["trunk"](inputs()).tanh()
        return Run([mse(head(z) * net.scale, i) for i, head in enumerate(net["heads"])], [z])

    return Case(net, forward)


@model
def scalar_parameter() -> Case:
    net = nn.ModuleDict({"heads": heads(2)})
    net.register_parameter("temperature", nn.Parameter(torch.tensor(0.7)))

    def forward() -> Run:
        z = (inputs() * net.temperature).exp()
        return Run([mse(head(z), i) for i, head in enumerate(net["heads"])], [z])

    return Case(net, forward)


@model
def unused_and_frozen_parameters() -> Case:
    trunk = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))
    trunk[0].weight.requires_grad_(False)
    case = shared_trunk(trunk, inputs())
    case.model["unused"] = nn.Linear(D, D)
    return case


@model
def frozen_below() -> Case:
    """Nothing below the first layer needs gradients."""
    trunk = nn.Sequential(nn.Linear(D, D).requires_grad_(False), nn.Tanh(), nn.Linear(D, D))
    return shared_trunk(trunk, inputs())


@model
def non_leaf_inputs() -> Case:
    net = nn.ModuleDict({"before": nn.Linear(D, D), "trunk": nn.Linear(D, D), "heads": heads(2)})

    def forward() -> Run:
        x = net["before"](inputs()).softmax(-1)
        z = net["trunk"](x * 2)
        return Run([mse(head(z), i) for i, head in enumerate(net["heads"])], [z])

    return Case(net, forward)


@model
def tuple_outputs() -> Case:
    net = nn.ModuleDict({"a": nn.Linear(D, D), "b": nn.Linear(D, 3), "ha": heads(2), "hb": heads(2, 3)})

    def forward() -> Run:
        x = inputs()
        u, v = net["a"](x).tanh(), net["b"](x).sin()
        losses = [mse(net["ha"][i](u), i) + mse(net["hb"][i](v), -i) for i in range(2)]
        return Run(losses, [u, v])

    return Case(net, forward)


@model
def one_node_with_two_outputs() -> Case:
    """`aminmax` and `split` return several tensors from one node: each is a place of its own."""
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "heads": heads(2, 2)})

    def forward() -> Run:
        u, v = net["trunk"](inputs()).split(2, 1)
        losses = [mse(head(u), i) + mse(head(v.square())) for i, head in enumerate(net["heads"])]
        return Run(losses, [u, v])

    return Case(net, forward)


@model
def siamese() -> Case:
    net = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(D, D), nn.Tanh()), "heads": heads(2)})

    def forward() -> Run:
        u, v = net["trunk"](inputs()), net["trunk"](inputs())
        near, cross = (u - v).square().mean(), mse(net["heads"][0](u) + net["heads"][1](v))
        return Run([near, cross], [u, v])

    return Case(net, forward)


@model
def one_forward_per_task() -> Case:
    """Each loss has its own batch: they meet at the parameters alone."""
    net = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(D, D), nn.Tanh()), "heads": heads(3)})

    def forward() -> Run:
        losses = [mse(head(net["trunk"](inputs())), i) for i, head in enumerate(net["heads"])]
        return Run(losses)

    return Case(net, forward)


@model
def shared_decoder() -> Case:
    """The losses share a decoder too: they meet at its output."""
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "decoder": nn.Linear(D, D)})

    def forward() -> Run:
        y = net["decoder"](net["trunk"](inputs()).tanh())
        return Run([mse(y), y.abs().mean(), (y[:-1] - y[1:]).square().sum()], [y])

    return Case(net, forward)


@model
def skip_around_the_site() -> Case:
    """Head 0 reads the deep and the early activation; head 1 the deep one alone."""
    net = nn.ModuleDict({"stem": nn.Linear(D, D), "trunk": nn.Linear(D, D), "heads": heads(2)})

    def forward() -> Run:
        early = net["stem"](inputs()).tanh()
        deep = net["trunk"](early).tanh()
        return Run([mse(net["heads"][0](deep + early)), mse(net["heads"][1](deep), 1)], [deep])

    return Case(net, forward)


class _Opaque(torch.autograd.Function):
    """A backward that looks at its numbers, which vmap cannot."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient if float(gradient.abs().sum()) >= 0 else None


class Fails(torch.autograd.Function):
    """The identity, with a backward that fails."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ArithmeticError("on purpose")


@model
def function_that_vmap_cannot_take() -> Case:
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _Opaque.apply(x)

    return shared_trunk(nn.Sequential(nn.Linear(D, D), Opaque(), nn.Linear(D, D)), inputs(), vmap=False, n=7)


@model
def function_in_a_head() -> Case:
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "heads": heads(2)})

    def forward() -> Run:
        z = net["trunk"](inputs())
        return Run([mse(net["heads"][0](_Opaque.apply(z))), mse(net["heads"][1](z))], [z])

    return Case(net, forward)


def checkpointed(*, reentrant: bool) -> Case:
    net = nn.ModuleDict({"stem": nn.Linear(D, D), "trunk": nn.Linear(D, D), "heads": heads(2)})

    def forward() -> Run:
        z = checkpoint(lambda x: net["trunk"](x).tanh(), net["stem"](inputs()), use_reentrant=reentrant)
        losses = [mse(checkpoint(head, z, use_reentrant=reentrant), i) for i, head in enumerate(net["heads"])]
        return Run(losses, [z])

    return Case(net.double(), forward, vmap=False)


@model
def checkpoint_non_reentrant() -> Case:
    return checkpointed(reentrant=False)


@model
def physics_informed() -> Case:
    """Residual with a gradient in the graph, boundary and data loss."""
    net = nn.Sequential(nn.Linear(2, D), nn.Tanh(), nn.Linear(D, 1))

    def forward() -> Run:
        x = inputs(N, 2).requires_grad_()
        u = net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)
        residual = (du[:, 1] - ddu[:, 0]).square().mean()
        return Run([residual, net(inputs(3, 2)).square().mean(), mse(net(inputs(3, 2)))])

    return Case(net, forward)


@model
def complex_parameters_in_the_trunk() -> Case:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=D)

    return shared_trunk(Spectral(), inputs())


@model
def weight_norm() -> Case:
    return shared_trunk(nn.Sequential(parametrizations.weight_norm(nn.Linear(D, D)), nn.Tanh()), inputs(), vmap=False)


@model
def penalty_on_the_weights() -> Case:
    """A further loss joins below the site, at the trunk's parameters."""
    case = shared_trunk(nn.Sequential(nn.Linear(D, D), nn.Tanh()), inputs(), n=2)
    trunk_forward = case.forward

    def forward() -> Run:
        run = trunk_forward()
        penalty = sum(p.square().sum() for p in case.model["trunk"].parameters())
        return Run([*run.losses, penalty], run.sites, "2")

    return Case(case.model, forward)


@model
def a_loss_made_of_another() -> Case:
    """The second loss contains the first: they meet at the first loss itself, and at the activation."""
    net = nn.ModuleDict({"trunk": nn.Linear(D, D), "heads": heads(2)})

    def forward() -> Run:
        z = net["trunk"](inputs()).tanh()
        first = mse(net["heads"][0](z))
        return Run([first, first.sqrt() * 3 + mse(net["heads"][1](z))])

    return Case(net, forward)


@model
def two_groups_of_losses() -> Case:
    """Two losses meet at one activation and two at another; all meet below."""
    net = nn.ModuleDict({"stem": nn.Linear(D, D), "left": nn.Linear(D, D), "right": nn.Linear(D, D), "heads": heads(4)})

    def forward() -> Run:
        x = net["stem"](inputs()).tanh()
        u, v = net["left"](x).tanh(), net["right"](x).sin()
        return Run([mse(head(z), i) for i, (head, z) in enumerate(zip(net["heads"], (u, u, v, v), strict=True))], [x])

    return Case(net, forward)


@model
def transposed_weights() -> Case:
    """A parameter that is not contiguous, and a gradient that has other strides."""
    net = nn.ModuleDict({"heads": heads(2)})
    net.register_parameter("weight", nn.Parameter(torch.randn(D, D).t()))

    def forward() -> Run:
        z = (inputs() @ net.weight).tanh()
        return Run([mse(head(z), i) for i, head in enumerate(net["heads"])], [z])

    return Case(net, forward)


@model
def many_losses() -> Case:
    return shared_trunk(nn.Sequential(nn.Linear(D, D), nn.Softplus()), inputs(), n=11)


@model
def loss_vector_by_einsum() -> Case:
    """All heads in one product: the losses are entries of one tensor, and share every node."""
    net = nn.ModuleDict({"trunk": nn.Linear(D, D)})
    net.register_parameter("heads", nn.Parameter(torch.randn(3, D) / math.sqrt(D)))

    def forward() -> Run:
        z = net["trunk"](inputs()).tanh()
        vector = (torch.einsum("nd,td->nt", z, net.heads) - 1).square().mean(0)
        return Run(list(vector.unbind()), [])

    return Case(net, forward)


class Twice(torch.autograd.Function):
    """A function of whose kind nothing is known."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Stops(torch.autograd.Function):
    """A sum that no gradient goes through."""

    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        return None
