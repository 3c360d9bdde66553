"""Every method in real steps: at each site, in lists with GradDrop, checkpointed, copied, with absent losses."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from methods import GRAMIAN, METHODS, ROWS, SIZES, WEIGHTINGS, after_step
from torch import nn

import mtopt
from mtopt._transform import Losses, Site

STEPS = 4


class Net(nn.Module):
    def __init__(self, layer=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        self.layer = layer
        self.double()

    def losses(self, step):
        return self.features(step)[1]

    def features(self, step):
        """What the heads share, and the losses."""
        random = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=random, dtype=torch.float64)
        y = torch.randn(8, 3, generator=random, dtype=torch.float64)
        z = self.trunk(x)
        aliases = [z] * 3 if self.layer is None else self.layer(z)
        pairs = enumerate(zip(self.heads, aliases, strict=True))
        return z, [(i + 1) * (head(alias) - y[:, i : i + 1]).square().mean() for i, (head, alias) in pairs]


def wrapped(net, transforms, at):
    place = net.trunk if at == "module" else at
    return mtopt.MultiLossOptimizer(torch.optim.SGD(net.parameters(), lr=0.1), transforms, at=place)


def losses_of(values):
    return Losses(tuple(range(len(values))), len(values), None, tuple(values))


def by_hand(net, transforms, at, step):
    """The gradients of a step, from autograd's own rows and the bare methods."""
    z, values = net.features(step)
    of = losses_of(values)
    weights = torch.ones(3, dtype=torch.float64)
    rest = list(transforms)
    while rest and isinstance(rest[0], mtopt.LossWeighting):
        weights = weights * rest.pop(0).weights(of)
    shared = list(net.trunk.parameters()) if at == "parameters" else [z]
    rows = [
        [w * row for row in torch.autograd.grad(value, shared, retain_graph=True)]
        for w, value in zip(weights, values, strict=True)
    ]
    sites = [torch.stack(site) for site in zip(*rows, strict=True)]
    for transform in rest:
        if isinstance(transform, mtopt.GramianTransform):
            flat = torch.cat([site.flatten(1) for site in sites], 1)
            mixing = transform.weights(flat @ flat.T, of)
            mixing = mixing.diag() if mixing.ndim == 1 else mixing
            sites = [torch.tensordot(mixing, site, 1) for site in sites]
        else:
            sites = [transform.transform(site, Site(of)) for site in sites]
    combined = [site.sum(0) for site in sites]
    trunk = list(net.trunk.parameters())
    gradients = combined if at == "parameters" else torch.autograd.grad(z, trunk, combined, retain_graph=True)
    own = [
        w * gradient
        for w, value, head in zip(weights, values, net.heads, strict=True)
        for gradient in torch.autograd.grad(value, list(head.parameters()), retain_graph=True)
    ]
    return [*gradients, *own]


def lists(name):
    """A method alone, and with GradDrop in every order that is allowed."""
    make = METHODS[name]
    ways = {"alone": lambda: [make()], "then GradDrop": lambda: [make(), mtopt.GradDrop(seed=7, leak=[0, 0.5, 0])]}
    if name not in WEIGHTINGS:
        ways["after GradDrop"] = lambda: [mtopt.GradDrop(seed=7), make()]
    return ways


LISTS = {f"{name}, {way}": make for name in METHODS if name not in SIZES for way, make in lists(name).items()}


@pytest.mark.parametrize("at", ["activations", "parameters", "module"])
@pytest.mark.parametrize("name", LISTS)
def test_a_step_is_what_the_bare_method_makes_of_autograd_s_rows(name, at):
    ours, bare = LISTS[name](), LISTS[name]()
    net = Net()
    optimizer = wrapped(net, ours, at)
    for step in range(STEPS):
        expected = by_hand(net, bare, at, step)
        optimizer.zero_grad()
        optimizer.backward(net.losses(step))
        for parameter, gradient in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)
        optimizer.step()
        after = net.losses(step)
        after_step(ours, after)
        after_step(bare, after)


@pytest.mark.parametrize("name", [name for name in LISTS if name.split(",")[0] not in WEIGHTINGS])
def test_a_layer_does_what_the_optimizer_does(name):
    ours = LISTS[name]()
    if any(transform.uses_values for transform in ours):
        with pytest.raises(RuntimeError, match="MultiLossLayer sees no loss values"):
            mtopt.MultiLossLayer(3, ours)
        return
    net, other = Net(mtopt.MultiLossLayer(3, ours)), Net()
    inner, optimizer = torch.optim.SGD(net.parameters(), lr=0.1), wrapped(other, LISTS[name](), "activations")
    for step in range(STEPS):
        inner.zero_grad()
        sum(net.losses(step)).backward()
        inner.step()
        optimizer.zero_grad()
        optimizer.step(other.losses(step))
    for parameter, same in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, same)


@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("name", LISTS)
def test_a_checkpoint_goes_on_bit_by_bit_in_fresh_objects(name, at):
    net, transforms = Net(), LISTS[name]()
    optimizer = wrapped(net, transforms, at)
    train(net, optimizer, range(5))
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = Net()
    fresh = wrapped(resumed, LISTS[name](), at)
    resumed.load_state_dict(weights)
    fresh.load_state_dict(state)
    train(net, optimizer, range(5, 15))
    train(resumed, fresh, range(5, 15))
    assert all(map(torch.equal, net.parameters(), resumed.parameters()))
    assert repr(optimizer.state_dict()["mtopt"]) == repr(fresh.state_dict()["mtopt"])


def train(net, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        optimizer.step(net.losses(step))
        if step % 2:
            after_step(optimizer.transforms, net.losses(step))


@pytest.mark.parametrize("name", METHODS)
def test_the_keys_of_a_state_are_there_from_the_start(name):
    """A distributed checkpoint is loaded by the keys of a fresh object."""
    net, method = Net(), METHODS[name]()
    keys = structure(method.state_dict())
    train(net, wrapped(net, method, "activations"), range(5))
    assert structure(method.state_dict()) == keys


def structure(state):
    return {key: structure(value) for key, value in state.items()} if isinstance(state, dict) else None


@pytest.mark.parametrize("name", METHODS)
def test_copies_and_pickles_go_on_alike(name):
    net, method = Net(), METHODS[name]()
    train(net, wrapped(net, method, "activations"), range(4))
    results = []
    for twin in (method, copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        one = copy.deepcopy(net)
        train(one, wrapped(one, twin, "activations"), range(4, 8))
        results.append(list(one.parameters()))
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("at", ["activations", "parameters"])
@pytest.mark.parametrize("name", LISTS)
def test_an_absent_loss_and_a_lone_one_are_no_problem(name, at):
    net = Net()
    optimizer = wrapped(net, LISTS[name](), at)
    for step, present in enumerate([(0, 1, 2), (0, 2), (1,), (0, 1, 2), (1, 2)]):
        optimizer.zero_grad()
        values = net.losses(step)
        optimizer.step([value if i in present else None for i, value in enumerate(values)])
        absent = [head for i, head in enumerate(net.heads) if i not in present]
        assert all(parameter.grad is None for head in absent for parameter in head.parameters())
    assert all(parameter.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_described(name):
    method = METHODS[name]()
    text = inspect.getdoc(type(method))
    assert "Source:" in text or name == "ConstantWeights"
    assert "Example:" in text
    assert repr(eval(repr(method), vars(mtopt))) == repr(method)


def test_every_public_method_is_tested_here():
    kinds = (mtopt.LossWeighting, mtopt.GramianTransform, mtopt.RowTransform)
    public = [getattr(mtopt, name) for name in mtopt.__all__]
    around = mtopt.Every  # another method
    methods = {c for c in public if isinstance(c, type) and issubclass(c, kinds) and c not in (*kinds, around)}
    assert {type(make()) for make in METHODS.values()} == methods
    assert len(GRAMIAN) + len(WEIGHTINGS) + len(SIZES) + len(ROWS) == len(METHODS)
