"""Numbers kept for each loss, and trained: the same as a torch parameter per loss, whoever is absent."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtopt import Losses
from mtopt._methods.state import PerLoss, Trained

N = 3
gradients = st.one_of(st.none(), st.floats(-1e6, 1e6))  # None: the loss is absent
steps = st.lists(st.lists(gradients, min_size=N, max_size=N), min_size=1, max_size=12)


def present(*indices: int, n: int = N) -> Losses:
    return Losses(indices, n, scalars=tuple(torch.ones(len(indices), dtype=torch.float64)))


def train(trained: Trained, step: list[float | None]) -> None:
    indices = [i for i, gradient in enumerate(step) if gradient is not None]
    if indices:
        trained.descend(present(*indices), torch.tensor([step[i] for i in indices], dtype=torch.float64))


# -- one number per loss -----------------------------------------------------------------------------------------------


def test_all_numbers_begin_with_the_start():
    assert PerLoss(0.5).of(present(0, 2)).tolist() == [0.5, 0.5]
    assert PerLoss().of(present(1)).isnan().all()


def test_numbers_are_double_whatever_the_losses_are():
    losses = Losses((0,), 1, scalars=(torch.ones((), dtype=torch.float16),))
    numbers = PerLoss(0.0)
    numbers.keep(losses, torch.tensor([1 / 3]))
    assert numbers.of(losses).dtype == torch.float64


def test_the_number_of_an_absent_loss_stays():
    numbers = PerLoss(0.0)
    numbers.keep(present(0, 1, 2), torch.tensor([1.0, 2.0, 3.0]))
    numbers.keep(present(2, 0), torch.tensor([30.0, 10.0]))
    assert numbers.of(present(0, 1, 2)).tolist() == [10, 2, 30]


def test_what_was_read_does_not_change_later():
    numbers = PerLoss(1.0)
    before = numbers.of(present(0, 1, 2))
    numbers.keep(present(0, 1, 2), before + 1)
    assert before.tolist() == [1, 1, 1]


def test_another_number_of_losses_is_refused():
    numbers = PerLoss(0.0)
    numbers.of(present(0))
    with pytest.raises(ValueError, match=r"`losses` has 4 entries, but 3 in the steps before. Give None"):
        numbers.of(present(0, n=4))


def test_state_of_numbers_is_plain_python():
    numbers = PerLoss(math.pi)
    assert numbers.state_dict() == {"numbers": []}
    numbers.of(present(0))
    assert numbers.state_dict() == {"numbers": [math.pi] * 3}


# -- trained -----------------------------------------------------------------------------------------------------------


@given(steps=steps, start=st.floats(-5, 5), lr=st.floats(1e-4, 1), decay=st.sampled_from([0.0, 1e-3, 0.3]))
def test_training_is_torch_adam_with_a_parameter_per_loss(steps, start, lr, decay):
    trained = Trained(start, lr, decay)
    parameters = [nn.Parameter(torch.tensor(start, dtype=torch.float64)) for _ in range(N)]
    adam = torch.optim.Adam(parameters, lr=lr, weight_decay=decay)
    for step in steps:
        train(trained, step)
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
        adam.step()
        ours = trained.of(present(0, 1, 2))
        torch.testing.assert_close(ours, torch.stack(parameters).detach(), rtol=1e-12, atol=1e-12)


@given(steps=steps)
def test_training_goes_on_in_a_fresh_object_bit_for_bit(steps):
    trained, fresh = Trained(0.5, 0.1, 1e-3), Trained(0.5, 0.1, 1e-3)
    train(trained, [1.0, None, -2.0])
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for step in steps:
        train(trained, step)
        train(fresh, step)
        assert fresh.state_dict() == trained.state_dict()


def test_an_absent_loss_is_not_trained():
    trained = Trained(0.0, 0.1, 0.5)
    train(trained, [1.0, 1.0, 1.0])
    before = {name: part["numbers"][1] for name, part in trained.state_dict().items()}
    train(trained, [1.0, None, 1.0])
    assert {name: part["numbers"][1] for name, part in trained.state_dict().items()} == before
    assert before["steps"] == 1


def test_state_has_the_same_keys_from_the_start_on():
    trained = Trained(0.0, 0.1)
    keys = trained.state_dict().keys()
    train(trained, [1.0, 1.0, 1.0])
    assert trained.state_dict().keys() == keys == {"numbers", "steps", "mean", "square"}


def test_copies_are_trained_apart():
    trained = Trained(0.0, 0.1)
    train(trained, [1.0, 1.0, 1.0])
    other = copy.deepcopy(trained)
    train(other, [1.0, 1.0, 1.0])
    assert trained.state_dict()["steps"] == {"numbers": [1, 1, 1]}
    assert other.state_dict()["steps"] == {"numbers": [2, 2, 2]}


def test_a_gradient_of_nothing_moves_nothing():
    trained = Trained(0.25, 0.1)
    train(trained, [0.0, 0.0, 0.0])
    assert trained.of(present(0, 1, 2)).tolist() == [0.25] * 3
