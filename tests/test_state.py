"""The state of transforms in a checkpoint: another's or a spoiled one is refused, and what torch drops is told."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from methods import METHODS, after_step
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

import mtopt
from mtopt import MultiLossOptimizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Linear(4, 3), nn.ModuleList([nn.Linear(3, 1) for _ in range(3)])

    def forward(self, step=0, n=3):
        features = self.trunk(torch.full((2, 4), 1.0 + step)).tanh()
        return [(head(features) - i).square().mean() + 0.1 for i, head in enumerate(self.heads[:n])]


def start(transforms, n_steps=0, inner=torch.optim.AdamW):
    net = Net()
    return train(net, MultiLossOptimizer(inner(net.parameters(), lr=0.01), transforms), n_steps)


def train(net, optimizer, n_steps):
    for step in range(n_steps):
        optimizer.zero_grad()
        losses = net(step)
        optimizer.step(losses)
        after_step(optimizer.transforms, losses)
    return net, optimizer


def refused(optimizer, state, match):
    """A state that is refused, and leaves everything as it was."""
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state)
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize(
    "own",
    [{}, {"transforms": 3}, {"transforms": {}}, 3, [], {"transforms": [3]}, {"transforms": [{}], "classes": 3}],
    ids=str,
)
def test_what_is_no_state_of_transforms_is_refused(own):
    _, optimizer = start(mtopt.GradDrop(), 2)
    refused(
        optimizer, optimizer.state_dict() | {"mtopt": own}, r"`state_dict`.*leave out the checkpoint's key \"mtopt\""
    )


def test_what_is_no_state_at_all_is_refused():
    _, optimizer = start(mtopt.GradDrop())
    with pytest.raises(TypeError, match=r"`state_dict` must be what `state_dict\(\)` gave, a dict, but it is list"):
        optimizer.load_state_dict([])


def places(state, path=()):
    """The paths to all numbers in a state, and to all lists of them."""
    for key, value in state.items() if isinstance(state, dict) else ():
        yield from places(value, (*path, key))
        if not isinstance(value, dict):
            yield (*path, key)


STATES = {name: start(make(), 3)[1].transforms[0].state_dict() for name, make in METHODS.items()}
SPOILED = [
    pytest.param(name, path, value, id=f"{name} {'.'.join(path)} {value}")
    for name, state in STATES.items()
    for path in places(state)
    for value in ("much", None, [[1.0, 2.0, 3.0]], [1.0], {}, -1.5)
]


@pytest.mark.parametrize(("name", "path", "value"), SPOILED)
def test_a_spoiled_number_is_refused_by_the_optimizer_and_by_the_transform(name, path, value):
    _, optimizer = start(METHODS[name](), 3)
    (transform,) = optimizer.transforms
    state = optimizer.state_dict()
    part = state["mtopt"]["transforms"][0]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    refused(optimizer, state, rf"`state_dict` does not fit `transforms\[0\]`, {type(transform).__name__}: .*{path[0]}")
    before = str(transform.state_dict())
    with pytest.raises(ValueError, match=rf"`state_dict\['{path[0]}'\]` does not fit {type(transform).__name__}"):
        transform.load_state_dict(state["mtopt"]["transforms"][0])
    assert str(transform.state_dict()) == before


@pytest.mark.parametrize("name", [name for name, state in STATES.items() if state])
def test_a_state_that_lacks_a_part_is_refused(name):
    _, optimizer = start(METHODS[name](), 3)
    state = optimizer.state_dict()
    state["mtopt"]["transforms"][0].popitem()
    refused(optimizer, state, "`state_dict` of .* must be a dict with")


NAMES = [name for name in METHODS if "," not in name]  # of two settings of a class the other one


@pytest.mark.parametrize("name", NAMES)
def test_the_state_of_another_method_is_refused(name):
    _, optimizer = start(METHODS[name](), 1)
    for other in NAMES:
        if other != name:
            refused(optimizer, start(METHODS[other](), 1)[1].state_dict(), f"{name}.*it is of {other}")


def test_averaged_norms_are_no_averaged_weights():
    state = start(mtopt.GradientNorms(), 2)[1].state_dict()
    refused(start(mtopt.GradientNorms(of="norms"))[1], state, r"must be a dict with \['calls', 'squares'\]")


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_without_names_of_classes_loads_as_before(name):
    state = start(METHODS[name](), 3)[1].state_dict()
    del state["mtopt"]["classes"]
    _, fresh = start(METHODS[name]())
    fresh.load_state_dict(state)
    assert str(fresh.transforms[0].state_dict()) == str(state["mtopt"]["transforms"][0])


def test_the_state_of_a_method_fits_a_class_made_from_it():
    class Mine(mtopt.GradDrop):
        pass

    state = start(mtopt.GradDrop(seed=3), 2)[1].state_dict()
    _, mine = start(Mine())
    mine.load_state_dict(state)
    assert mine.transforms[0].state_dict() == {"draws": {"seed": 3, "count": 2}}
    refused(start(mtopt.GradDrop())[1], mine.state_dict(), "it is of Mine")


OF_LOSSES = ("GradNorm", "GradientNorms", "GradVac", "FAMO", "DWA", "SoftAdapt", "IMTLL")


@pytest.mark.parametrize("name", OF_LOSSES)
def test_a_state_of_other_losses_is_refused_where_it_is_seen_first(name):
    _, of_three = start(METHODS[name](), 3)
    net, of_two = start(METHODS[name]())
    of_two.load_state_dict(of_three.state_dict())
    with pytest.raises(
        ValueError, match=r"`losses` has 2 entries, but 3 in the steps before.*no checkpoint of other losses"
    ):
        of_two.backward(net(n=2))
    assert all(p.grad is None for p in net.parameters())
    net, of_two = start(METHODS[name]())
    of_two.step(net(n=2))
    refused(of_two, of_three.state_dict(), "it is of 3 losses, but there are 2")


# -- torch's distributed checkpoint, which keeps only what it knows ----------------------------------------------------


def told(net, optimizer):
    """What two more steps tell of a state that was left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(net, optimizer, 2)
    return [str(each.message) for each in caught if "without that of the transforms" in str(each.message)]


WITH_STATE = {
    "GradDrop": lambda: mtopt.GradDrop(),
    "several": lambda: [mtopt.FAMO(), mtopt.GradNorm()],
}


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("name", WITH_STATE)
def test_a_state_that_torch_has_dropped_is_told_once_at_the_first_step(name, inner):
    net, optimizer = start(WITH_STATE[name](), 2, inner)
    model, state = get_state_dict(net, optimizer)
    fresh_net, fresh = start(WITH_STATE[name](), 0, inner)
    set_state_dict(fresh_net, fresh, model_state_dict=model, optim_state_dict=state)
    (text,) = told(fresh_net, fresh)
    assert "`transform.state_dict()`" in text
    assert "docs/recipes.md" in text
    assert told(fresh_net, fresh) == []


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", WITH_STATE)
def test_a_state_that_is_loaded_beside_is_not_missed(name, order):
    net, optimizer = start(WITH_STATE[name](), 2)
    states = [transform.state_dict() for transform in optimizer.transforms]
    fresh_net, fresh = start(WITH_STATE[name]())
    if order == "after":
        set_optimizer_state_dict(fresh_net, fresh, get_optimizer_state_dict(net, optimizer))
    for transform, state in zip(fresh.transforms, states, strict=True):
        transform.load_state_dict(state)
    if order == "before":
        set_optimizer_state_dict(fresh_net, fresh, get_optimizer_state_dict(net, optimizer))
    assert told(fresh_net, fresh) == []


@pytest.mark.parametrize("transforms", [[], mtopt.MGDA()], ids=["plain sum", "no state"])
def test_where_there_is_no_state_nothing_is_told(transforms):
    net, optimizer = start(transforms, 2)
    fresh_net, fresh = start(copy.deepcopy(transforms))
    set_optimizer_state_dict(fresh_net, fresh, get_optimizer_state_dict(net, optimizer))
    assert told(fresh_net, fresh) == []


def test_a_plain_checkpoint_is_a_usual_way_to_begin():
    _, optimizer = start([], 2)
    fresh_net, fresh = start(mtopt.GradDrop())
    fresh.load_state_dict(optimizer.inner.state_dict())
    assert told(fresh_net, fresh) == []


def test_a_transform_that_has_no_state_before_its_first_step_can_be_wrapped():
    class Late(mtopt.LossWeighting):
        def weights(self, losses):
            self.last = losses.values
            return torch.ones_like(losses.values)

        def state_dict(self):
            return {"last": self.last}

        def load_state_dict(self, state_dict):
            self.last = state_dict["last"]

    net, optimizer = start(Late(), 2)
    set_optimizer_state_dict(net, optimizer, get_optimizer_state_dict(net, optimizer))
    assert told(net, optimizer) == []
