"""Threads: two trainings in two threads give what each gives alone, whatever the other one does."""

from __future__ import annotations

import _thread
import threading
import warnings

import pytest
import torch
from models import MODELS
from torch import nn

from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer
from mtopt._backward import fan_out

STEPS = 40


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.share = nn.Linear(4, 5), MultiLossLayer(2, GradDrop(seed=1))
        self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2))

    def losses(self):
        features = self.share(self.trunk(torch.ones(3, 4)).tanh())
        return [(head(alias) - 1).square().mean() for head, alias in zip(self.heads, features, strict=True)]


def weights(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def with_a_layer():
    torch.manual_seed(0)
    model = Layered()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        sum(model.losses()).backward()
        optimizer.step()

    return model, step


def at_a_site(name, at):
    case = MODELS[name]()
    optimizer = MultiLossOptimizer(torch.optim.SGD(case.parameters, lr=0.1), GradDrop(seed=2), at=at)

    def step():
        optimizer.zero_grad()
        optimizer.step(case.forward().losses)

    return case.model, step


TRAININGS = {
    "a layer": with_a_layer,
    "at parameters": lambda: at_a_site("mlp", "parameters"),
    "at parameters, by vmap": lambda: at_a_site("many_losses", "parameters"),
    "at activations": lambda: at_a_site("tuple_outputs", "activations"),
}


def train(make, results, key, start):
    start.wait()
    model, step = make
    for _ in range(STEPS):
        step()
    results[key] = weights(model)


@pytest.mark.parametrize("one", TRAININGS)
@pytest.mark.parametrize("other", ["a layer", "at parameters, by vmap"])
def test_two_trainings_in_two_threads_give_what_each_gives_alone(one, other, monkeypatch):
    fixed = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
    monkeypatch.setattr("models.inputs", lambda *shape: fixed)  # torch's own generator is one for all threads
    alone, together = {}, {}
    ready = threading.Event()
    ready.set()
    for key in (one, other):
        train(TRAININGS[key](), alone, key, ready)
    start = threading.Barrier(2)
    makes = [(key, i, TRAININGS[key]()) for i, key in enumerate((one, other))]
    threads = [threading.Thread(target=train, args=(make, together, (key, i), start)) for key, i, make in makes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, i, _ in makes:
        assert torch.equal(together[key, i], alone[key])


def test_a_backward_of_one_thread_refuses_the_layers_of_that_thread_alone():
    refused = []

    def other():
        fan_out.check_not_refused(fan_out.maker())
        refused.append(False)

    with fan_out.hidden_layers_refused():
        with pytest.raises(RuntimeError, match="MultiLossLayer"):
            fan_out.check_not_refused(fan_out.maker())
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    fan_out.check_not_refused(fan_out.maker())
    assert refused == [False]


def test_a_thread_of_autograd_refuses_what_was_made_by_the_thread_that_waits():
    found = {}

    def of_autograd(mine):  # as for a device: one thread for all, which Python did not start
        for name, made_by in (("mine", mine), ("others", -1), ("unknown", None)):
            try:
                fan_out.check_not_refused(made_by)
                found[name] = "taken"
            except RuntimeError:
                found[name] = "refused"

    with fan_out.hidden_layers_refused():
        done = _thread.allocate_lock()
        done.acquire()
        mine = fan_out.maker()
        _thread.start_new_thread(lambda: (of_autograd(mine), done.release()), ())
        done.acquire()
    assert found == {"mine": "refused", "others": "taken", "unknown": "refused"}


def test_filters_of_warnings_are_never_touched(monkeypatch):
    case = MODELS["many_losses"]()
    optimizer = MultiLossOptimizer(torch.optim.SGD(case.parameters, lr=0.1), at="parameters")
    monkeypatch.setattr(warnings, "catch_warnings", None)
    optimizer.backward(case.run().losses)
    assert "vmap" in optimizer.explain()
