"""GradDrop as a transform: its settings, and its private random state."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from mtopt import RLW, GradDrop, GradNorm, GradVac, Losses, MultiLossOptimizer, PCGrad, ReLoBRaLo, Site
from mtopt._draws import Draws, _mix


def step(method: GradDrop) -> list[float]:
    """One decision on a row pair in full conflict: shows the draws."""
    w = nn.Parameter(torch.ones(16))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method)
    z = w * 1
    optimizer.backward([z.sum(), (-z).sum()])
    return w.grad.tolist()


def test_seeds_are_mixed_by_splitmix64():
    """The numbers that others print for the seed 1234567: https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64."""
    numbers = [_mix(1234567 + i * 0x9E3779B97F4A7C15) for i in range(5)]
    assert numbers[:2] == [6457827717110365317, 3203168211198807973]
    assert numbers[2:] == [9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_no_two_draws_of_near_seeds_steps_and_ranks_are_the_same():
    draws, cpu = [Draws(seed) for seed in range(8)], torch.device("cpu")
    numbers = {
        torch.rand((), dtype=torch.float64, generator=one.next(cpu, rank)).item()
        for one in draws
        for rank in range(8)
        for _ in range(8)
    }
    assert len(numbers) == 8 * 8 * 8


def test_manual_seed_makes_a_run_repeatable():
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        method = GradDrop()
        results.append([step(method), step(method)])
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]
    torch.manual_seed(5)
    assert step(GradDrop()) != results[0][0]


def default_seeds(n=3):
    return [GradDrop().draws.seed for _ in range(n)]


def test_no_two_methods_draw_the_same_by_default():
    torch.manual_seed(4)
    seeds = default_seeds()
    torch.rand(3)
    seeds += default_seeds()
    seeds += [make().draws.seed for make in (PCGrad, GradVac, RLW, ReLoBRaLo)]
    assert len(set(seeds)) == len(seeds)


def test_manual_seed_repeats_the_default_seeds_whatever_was_made_since():
    torch.manual_seed(4)
    seeds = default_seeds()
    default_seeds()
    torch.manual_seed(4)
    assert default_seeds() == seeds
    torch.manual_seed(5)
    assert not set(default_seeds()) & set(seeds)


def test_making_methods_leaves_the_global_random_state_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    default_seeds()
    assert torch.equal(torch.get_rng_state(), before)


def test_methods_can_be_made_while_a_model_has_no_memory_yet():
    with torch.device("meta"):
        method, trained = GradDrop(), GradNorm()
    assert step(method) == step(GradDrop(seed=method.draws.seed))
    assert trained.state_dict() == GradNorm().state_dict()


def test_global_random_state_is_left_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    step(GradDrop())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_is_independent_of_the_global_one():
    torch.manual_seed(1)
    one = step(GradDrop(seed=7))
    torch.manual_seed(2)
    assert step(GradDrop(seed=7)) == one
    assert step(GradDrop(seed=8)) != one


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_go_on_with_the_same_draws(duplicate):
    method = GradDrop(leak=0.25, seed=1)
    step(method)
    other = duplicate(method)
    assert step(method) == step(other)
    assert step(method) == step(other)
    assert repr(other) == repr(method)


def test_state_goes_into_a_fresh_object_bit_for_bit():
    method, fresh = GradDrop(seed=1), GradDrop(seed=2)
    step(method)
    fresh.load_state_dict(copy.deepcopy(method.state_dict()))
    assert [step(method), step(method)] == [step(fresh), step(fresh)]


def test_state_before_the_first_draw_restores_too():
    method, fresh = GradDrop(seed=1), GradDrop(seed=2)
    fresh.load_state_dict(method.state_dict())
    assert step(method) == step(fresh)


def test_random_graddrop_picks_each_sign_half_of_the_time_whatever_the_purity():
    w = nn.Parameter(torch.ones(20_000))
    z = w * 1
    MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), GradDrop(keep=0, seed=0)).backward([(9 * z).sum(), (-z).sum()])
    share = (w.grad == 9).float().mean().item()
    assert abs(share - 0.5) < 5 * math.sqrt(0.25 / 20_000)  # five standard errors
    assert set(w.grad.tolist()) == {9.0, -1.0}


def test_draws_follow_the_purity():
    w = nn.Parameter(torch.ones(20_000))
    z = w * 1
    MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), GradDrop(seed=0)).backward([(9 * z).sum(), (-z).sum()])
    share = (w.grad == 9).float().mean().item()
    assert abs(share - 0.9) < 5 * math.sqrt(0.09 / 20_000)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "GradDrop()"),
        ({"leak": 0.5}, "GradDrop(leak=0.5)"),
        ({"leak": [0, 1], "keep": 0}, "GradDrop(leak=(0.0, 1.0), keep=0.0)"),
        (
            {"leak": {"a": 1}, "marginalize": (0, 2), "renormalize": True},
            "GradDrop(leak={'a': 1.0}, marginalize=(0, 2), renormalize=True)",
        ),
    ],
)
def test_repr_shows_what_was_chosen(settings, text):
    assert repr(GradDrop(**settings)) == text


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"leak": 1.5}, ValueError, "`leak` must be between 0"),
        ({"leak": [0.1, -1]}, ValueError, r"`leak\[1\]` must be between 0"),
        ({"leak": {"a": 2}}, ValueError, r"`leak\['a'\]` must be between 0"),
        ({"keep": -0.5}, ValueError, "`keep` must be 0 or"),
        ({"keep": None}, TypeError, "`keep` must be a number or a function"),
        ({"marginalize": "batch"}, ValueError, "`marginalize` must be a dim"),
        ({"marginalize": []}, ValueError, "`marginalize` must be a dim"),
        ({"seed": 1.5}, TypeError, "`seed` must be a whole number"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_once(settings, error, match):
    with pytest.raises(error, match=match):
        GradDrop(**settings)


def test_what_a_keep_function_returns_stays_the_users():
    """Its result is not taken for scratch memory, however large it is."""
    half = torch.full((200, 200), 0.5)
    method = GradDrop(keep=lambda purity: half, seed=0)
    for _ in range(3):
        w = nn.Parameter(torch.ones(200, 200))
        z = w * 1
        MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method).backward([z.sum(), (-z).sum(), (2 * z).sum()])
    assert (half == 0.5).all()


def test_results_of_earlier_steps_are_not_overwritten():
    """Scratch memory is used again, results are not."""
    method = GradDrop(seed=0)
    kept = []
    for scale in (1.0, 2.0, 3.0):
        w = nn.Parameter(torch.ones(200, 200))
        z = w * 1
        MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), method).backward([(scale * z).sum(), (scale * z).sum()])
        kept.append(w.grad)
    assert [k.unique().tolist() for k in kept] == [[2.0], [4.0], [6.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["marginalized", "in a list"])
def test_half_rows_are_decided_in_float32_in_every_form(dtype, form):
    """In float16 the mass of each sign would overflow, the purity be NaN and unanimous gradients be dropped."""
    rows = torch.full((4, 64, 2), 30_000.0 / 4).to(dtype)
    method = GradDrop(marginalize=0 if form == "marginalized" else None, seed=0)
    activation = torch.ones(64, 2, dtype=dtype)
    kept = method.transform(rows * 4, Site(Losses(tuple(range(4)), 4), activation))
    assert kept.dtype == dtype
    assert torch.equal(kept, rows * 4)
