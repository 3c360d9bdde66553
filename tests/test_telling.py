"""What a user is told once: gradients that come from no losses, a total beside its parts. And what is told nothing."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from mtopt import RLW, GradDrop, MultiLossOptimizer, UncertaintyWeighting


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 1) for _ in range(2))

    def forward(self):
        features = self.trunk(torch.ones(3, 4)).tanh()
        return [head(features).square().mean() for head in self.heads]


def make(transforms=None, inner=torch.optim.SGD):
    torch.manual_seed(0)
    net = Net()
    return net, MultiLossOptimizer(inner(net.parameters(), lr=0.1), copy.deepcopy(transforms))


def plain(net, optimizer, **settings):
    optimizer.zero_grad(**settings)
    total = sum(net())
    total.backward()
    return total


def by_step(net, optimizer):
    plain(net, optimizer)
    optimizer.step()


def by_closure(net, optimizer):
    optimizer.step(lambda: plain(net, optimizer))


def by_closure_of_a_number(net, optimizer):
    optimizer.step(lambda: plain(net, optimizer).item())


def before_the_losses(net, optimizer):
    plain(net, optimizer)
    optimizer.step(net())


def in_zeros_before_the_losses(net, optimizer):
    plain(net, optimizer, set_to_none=False)
    optimizer.step(net())


def by_a_total(net, optimizer):
    a, b = net()
    optimizer.zero_grad()
    optimizer.step({"a": a, "b": b, "loss": a + b})


WRONG = {
    by_step: "come from no losses",
    by_closure: "did its own backward pass",
    by_closure_of_a_number: "did its own backward pass",
    before_the_losses: "was added to it",
    in_zeros_before_the_losses: "was added to it",
    by_a_total: r"`losses\[loss\]` is a sum that contains `losses\[a\]`, `losses\[b\]`",
}


@pytest.mark.parametrize("transforms", [None, RLW(seed=0), [UncertaintyWeighting(), GradDrop()]], ids=repr)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_what_was_not_handed_over_is_told_once_and_for_each_optimizer(wrong, transforms):
    for _ in range(2):  # optimizers in one process
        net, optimizer = make(transforms)
        with pytest.warns(RuntimeWarning, match=WRONG[wrong]) as seen:
            wrong(net, optimizer)
        assert len(seen) == 1
        assert seen[0].filename == __file__
        wrong(net, optimizer)


def test_python_does_not_hold_back_what_a_second_optimizer_tells():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")  # once for each line of code
        for _ in range(2):
            by_step(*make())
    assert len(seen) == 2


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_the_plain_sum_is_told_nothing(wrong):
    wrong(*make([]))


def test_a_copy_tells_no_more_than_the_optimizer_had_left():
    net, optimizer = make()
    with pytest.warns(RuntimeWarning):
        by_step(net, optimizer)
    by_step(*pickle.loads(pickle.dumps((net, optimizer))))
    by_step(*copy.deepcopy((net, optimizer)))


def test_a_plain_step_between_others_is_told_too():
    net, optimizer = make()
    optimizer.step(net())
    with pytest.warns(RuntimeWarning, match="come from no losses"):
        by_step(net, optimizer)


# -- rightful uses, which the filter of all tests would turn into errors -----------------------------------------------


def accumulated(net, optimizer):
    for _ in range(2):
        optimizer.backward(net())
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


def in_the_closure(net, optimizer):
    def closure():
        optimizer.zero_grad()
        losses = net()
        optimizer.backward(losses)
        return sum(losses).detach()

    optimizer.step(closure)


def with_a_penalty_after(net, optimizer):
    optimizer.backward(net())
    sum(p.square().sum() for p in net.parameters()).backward()
    optimizer.step()


def with_a_penalty_before(net, optimizer):
    sum(p.square().sum() for p in net.parameters()).backward()
    optimizer.backward(net())
    optimizer.step()


RIGHTFUL = {
    "backward, then step": accumulated,
    "the closure returns losses": lambda net, optimizer: optimizer.step(net),
    "the closure has a backward of ours": in_the_closure,
    "the closure has nothing to do": lambda net, optimizer: (optimizer.backward(net()), optimizer.step(lambda: None)),
    "more is added after": with_a_penalty_after,
    "more is added before, to be added to": with_a_penalty_before,
    "no gradient": lambda net, optimizer: optimizer.step(),
    "gradients cleared to zeros": lambda net, optimizer: (optimizer.step(net()), optimizer.zero_grad(False)),
    "zeros, and a step": lambda net, optimizer: (net.zero_grad(False), optimizer.zero_grad(False), optimizer.step()),
    "gradients never cleared": lambda net, optimizer: [optimizer.step(net()) for _ in range(2)],
}


@pytest.mark.parametrize("use", RIGHTFUL)
def test_a_rightful_use_is_told_nothing(use):
    net, optimizer = make()
    for _ in range(6):
        RIGHTFUL[use](net, optimizer)
        optimizer.zero_grad()


def test_a_distributed_checkpoint_may_take_its_step_of_zeros():
    net, optimizer = make(inner=torch.optim.AdamW)
    get_optimizer_state_dict(net, optimizer)
    assert optimizer.state


def test_zeros_are_looked_at_only_a_few_times():
    net, optimizer = make()
    for _ in range(5):
        optimizer.zero_grad(set_to_none=False)
        optimizer.step(net())
    in_zeros_before_the_losses(net, optimizer)


# -- totals ------------------------------------------------------------------------------------------------------------

TOTALS = {
    "sum": lambda a, b: sum([a, b]),
    "weighted": lambda a, b: 0.3 * a + b / 2,
    "with a term more": lambda a, b: a + b + a.detach() + a.square(),
    "stacked": lambda a, b: torch.stack([a, b]).mean(),
    "shaped": lambda a, b: (a.reshape(1) + b.reshape(1)).double(),
    "scaled": lambda a, b: (a + b) * torch.tensor(1024.0),
}


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("scale", [1, torch.tensor(1024.0)], ids=["plain", "scaled"])
def test_a_total_is_known_however_it_was_made(total, scale):
    net, optimizer = make()
    a, b = net()
    with pytest.warns(RuntimeWarning, match=r"`losses\[2\]` is a sum that contains `losses\[0\]`, `losses\[1\]`"):
        optimizer.backward([a * scale, b * scale, TOTALS[total](a, b) * scale])


def test_losses_of_several_terms_are_no_totals():
    net, optimizer = make()
    a, b = net()
    penalty = net.trunk.weight.square().sum()
    optimizer.backward([a + 0.1 * penalty, b + 0.1 * penalty, (a * b).sqrt()])


# -- names under a method that keeps numbers of each loss --------------------------------------------------------------


def test_names_in_another_order_are_refused_where_numbers_of_each_are_kept():
    net, optimizer = make(UncertaintyWeighting())
    optimizer.step(dict(zip("ab", net(), strict=True)))
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    for names in ("ba", "ac"):
        with pytest.raises(ValueError, match=r"Give the same names in the same order"):
            optimizer.step(dict(zip(names, net(), strict=True)))
    assert str(before) == str((net.state_dict(), optimizer.state_dict()))


def test_names_may_change_where_nothing_is_kept_of_them():
    net, optimizer = make([RLW(seed=0), GradDrop()])
    for names in ("ab", "ba", "cd"):
        optimizer.step(dict(zip(names, net(), strict=True)))


def test_a_loaded_checkpoint_takes_other_names():
    net, optimizer = make(UncertaintyWeighting())
    optimizer.step(dict(zip("ab", net(), strict=True)))
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(dict(zip("cd", net(), strict=True)))


# -- what else the inner optimizer has ---------------------------------------------------------------------------------


class Free(torch.optim.SGD):
    _step_supports_amp_scaling = True
    mode = ""

    def train(self):
        self.mode = "train"


def test_public_methods_of_the_inner_optimizer_are_there_and_private_ones_are_not():
    _, optimizer = make(inner=Free)
    optimizer.train()
    assert optimizer.inner.mode == optimizer.mode == "train"
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    assert not hasattr(optimizer, "eval")
    assert "mode" not in vars(optimizer)


def test_nothing_is_forwarded_before_there_is_an_inner_optimizer():
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        MultiLossOptimizer.__new__(MultiLossOptimizer).train()
    copied = copy.copy(make(inner=Free)[1])
    copied.train()
