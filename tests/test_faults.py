"""What goes wrong on one rank ends on all of them, in an error that says what it was; nobody waits for ever."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from ranks import run_ranks
from test_ranks import METHODS, N_LOSSES, Net, assert_equal, attempt, batch, losses_of
from torch.nn.parallel import DistributedDataParallel

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer

pytestmark = pytest.mark.timeout(120)

SITES = [
    "layer, marginalized",
    "module, marginalized",
    "activations, weights of the Gramian",
    "parameters",
    "each alone",
]
METHODS = {**METHODS, "each alone": ("activations", lambda: GradDrop(seed=1), "shared")}


def make(method, size=2, **wrapper):
    at, transforms, _ = METHODS[method]
    torch.manual_seed(0)
    net = Net(MultiLossLayer(N_LOSSES, transforms()) if at == "layer" else None)
    model = DistributedDataParallel(net, **wrapper) if size > 1 else net
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    place = {"module": net.trunk, "layer": "activations"}.get(at, at)
    return net, model, MultiLossOptimizer(inner, [] if at == "layer" else transforms(), at=place)


def losses(rank, model, size=2):
    x, y = batch(0, rank, size)
    return losses_of(model(x, y), y)


def stop(rank, method, how):
    """One good step; then rank 1 stops in the middle of its backward."""
    net, model, optimizer = make(method)
    optimizer.step(losses(rank, model))
    optimizer.zero_grad()

    def fail(gradient):
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("a fault in the user's own hook")

    if rank == 1:
        net.heads[0].weight.register_hook(fail)
        net.trunk[0].weight.register_hook(fail)
    optimizer.backward(losses(rank, model))


@pytest.mark.parametrize("method", SITES)
@pytest.mark.parametrize("how", ["is killed", "raises"])
def test_a_rank_that_stops_in_its_backward_ends_the_others(method, how):
    survivor, stopped = run_ranks(stop, 2, method, how, timeout=60, lost=[1])
    assert stopped.startswith("ArithmeticError" if how == "raises" else "EOFError")
    assert survivor.startswith("RuntimeError: The ranks could not combine their gradients: another rank has stopped")


# Each gives losses on one rank that are not those of the other. The error is found on both.
DIFFERENT = {
    "one is NaN on rank 1": (
        lambda rank, ls: [ls[0], ls[1] * (float("nan") if rank else 1.0), ls[2]],
        "ValueError: `losses[1]` is NaN on rank 1",
    ),
    "another order": (
        lambda rank, ls: ls[::-1] if rank else ls,
        "ValueError: `losses` seem to be in another order on rank 1",
    ),
    "another order of names": (
        lambda rank, ls: dict(zip("abc"[:: -1 if rank else 1], ls[:: -1 if rank else 1], strict=True)),
        "ValueError: `losses` differ between ranks: ['a', 'b', 'c'] on rank 0, ['c', 'b', 'a'] on rank 1",
    ),
    "another number": (
        lambda rank, ls: ls[: 2 + rank],
        "ValueError: `losses` differ between ranks: 2 of them on rank 0, 3 of them on rank 1",
    ),
    "none at all on rank 1": (
        lambda rank, ls: [None] * 3 if rank else ls,
        "`losses` is empty: every loss is None",
    ),
    "no scalar on rank 1": (
        lambda rank, ls: [ls[0], ls[1].expand(2), ls[2]] if rank else ls,
        "`losses[1]` must be a scalar",
    ),
    "absent on rank 1": (
        lambda rank, ls: [None, *ls[1:]] if rank else ls,
        "RuntimeError: The `losses` reach other parameters on rank 1 than on rank 0",
    ),
}


def step_with(rank, methods, change):
    """The error of a step with changed losses; whether `.grad` stayed None; whether a good step works afterwards."""
    found = {}
    for method in methods:
        net, model, optimizer = make(method)
        error = attempt(optimizer.backward, DIFFERENT[change][0](rank, losses(rank, net)))
        untouched = all(p.grad is None for p in net.parameters())
        found[method] = error, untouched, attempt(optimizer.step, losses(rank, model))
    return found


@pytest.mark.parametrize("change", DIFFERENT)
def test_losses_that_differ_are_refused_on_every_rank_with_nothing_changed(change):
    methods = [site for site in SITES if site != "layer, marginalized"]
    if change == "absent on rank 1":
        methods.remove("parameters")
    for rank, found in enumerate(run_ranks(step_with, 2, methods, change, timeout=60)):
        for method in methods:
            error, untouched, afterwards = found[method]
            assert DIFFERENT[change][1] in error, (method, error)
            assert ("Rank 1 refused this step" in error) == (rank == 0 and not DIFFERENT[change][1][0].isalpha())
            assert untouched
            assert afterwards is None


# -- a loss that is absent on one rank --


def first_loss_of_half(method, rank=0, size=1, **wrapper):
    """Loss 0 is taken on the first half of the examples, which rank 0 has."""
    net, model, optimizer = make(method, size, **wrapper)
    for step in range(3):
        optimizer.zero_grad()
        x, y = batch(step, rank, size)
        outputs = model(x, y, "without head 0" if rank else "shared")
        present = losses_of(outputs, y)
        if size == 1:
            half = len(x) // 2
            present[0] = (outputs[0][:half] - y[:half, :1]).square().mean() / 2
        optimizer.step(present)
    return [p.tolist() for p in net.parameters()]


def absences(rank):
    finding = {"find_unused_parameters": True}
    return {
        "parameters": attempt(first_loss_of_half, "parameters", rank, 2),
        "parameters, Gramian": attempt(first_loss_of_half, "parameters, Gramian", rank, 2, **finding),
        "module, marginalized": attempt(first_loss_of_half, "module, marginalized", rank, 2, **finding),
        "layer, marginalized": attempt(first_loss_of_half, "layer, marginalized", rank, 2, **finding),
        "layer, weights of the Gramian": attempt(
            first_loss_of_half, "layer, weights of the Gramian", rank, 2, **finding
        ),
        "activations, weights of the Gramian": attempt(
            first_loss_of_half, "activations, weights of the Gramian", rank, 2, **finding
        ),
    }


def test_a_loss_may_be_absent_on_one_rank():
    """Where the ranks can follow: with what is unused found by DistributedDataParallel, or rows at parameters."""
    for method in (results := run_ranks(absences, 2))[0]:
        assert_equal([result[method] for result in results], first_loss_of_half(method))


# -- what is checked once --


def settings(rank):
    _, model, optimizer = make("parameters")
    unlike = MultiLossOptimizer(optimizer.inner, GradDrop(leak=0.5 * rank), at="parameters")
    layer = MultiLossLayer(2 + rank, GradDrop())
    z = torch.ones(2, 2, requires_grad=True)
    found = [attempt(unlike.backward, losses(rank, model)), attempt(sum(layer(z)).sum().backward)]
    optimizer.step(losses(rank, model))
    if rank == 1:
        optimizer.load_state_dict(optimizer.state_dict())
    found.append(attempt(optimizer.step, losses(rank, model)))
    return found


def test_settings_that_differ_between_ranks_are_refused_on_all():
    for transforms, n_losses, loaded in run_ranks(settings, 2):
        assert transforms.startswith(
            "ValueError: Ranks differ: rank 0 has GradDrop() of 3 losses, rank 1 has GradDrop("
        )
        assert n_losses.startswith("ValueError: Ranks differ: rank 0 has GradDrop() of 2 losses, rank 1 has GradDrop()")
        assert loaded.startswith("RuntimeError: `load_state_dict` was called on rank 1, but not on rank 0")


class Unlike(mtopt.RowTransform):
    """Draws from the global generator, which each rank has seeded for itself."""

    def transform(self, rows, site):
        return rows * torch.rand(rows.shape[1:])


def own_draws(rank):
    net, model, optimizer = make("parameters")
    torch.manual_seed(rank)
    unlike = MultiLossOptimizer(optimizer.inner, Unlike(), at="parameters")
    error = attempt(unlike.backward, losses(rank, model))
    return error, all(p.grad is None for p in net.parameters())


def test_a_transform_that_does_not_do_the_same_on_all_ranks_is_found_out():
    for error, untouched in run_ranks(own_draws, 2):
        assert error.startswith("RuntimeError: The ranks combined the same rows to different gradients")
        assert untouched


def draws(rank):
    """The seeds differ, but rank 0's counts; each rank then draws for its own examples."""
    torch.manual_seed(rank)
    layer = MultiLossLayer(2)
    z = torch.zeros(64, 64, requires_grad=True)
    a, b = layer(z)
    (a.sum() - b.sum()).backward()
    return z.grad.sign().flatten().tolist(), layer.transforms[0].state_dict()


def test_ranks_draw_apart_for_their_own_examples_from_one_state():
    (first, state), (second, other) = run_ranks(draws, 2)
    assert state == other
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    assert 0.45 < agree < 0.55  # 4,096 fair coins: six standard deviations


def unequally_often(rank):
    net, _, optimizer = make("module, marginalized")
    for _ in range(2 - rank):
        optimizer.step(losses(rank, net))


def test_a_rank_that_comes_less_often_ends_the_others():
    first, _ = run_ranks(unequally_often, 2, timeout=60)
    assert first.startswith("RuntimeError: The ranks could not combine their gradients")


def group_of_one(rank):
    """Each rank trains a model of its own."""
    groups = [torch.distributed.new_group([r]) for r in range(2)]
    torch.manual_seed(rank)
    net = Net()
    inner = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer = MultiLossOptimizer(inner, GradDrop(seed=1), at="parameters", process_group=groups[rank])
    for _ in range(2 + rank):
        optimizer.zero_grad()
        optimizer.step(losses(rank, net))
    return "ranks" in optimizer.explain()


def test_a_process_group_of_one_trains_by_itself():
    assert run_ranks(group_of_one, 2) == [False, False]


def explained(rank):
    _, model, optimizer = make("parameters")
    optimizer.step(losses(rank, model))
    return optimizer.explain()


def test_explain_tells_that_the_ranks_agree():
    first, second = run_ranks(explained, 2)
    assert first == second
    assert "ranks: 2, in agreement" in first


def scaled_nan(rank):
    """With a GradScaler a NaN is its affair: the step is skipped on every rank."""
    net, model, optimizer = make("module, marginalized")
    scaler = torch.amp.GradScaler("cpu")
    ls = losses(rank, model)
    before = [p.tolist() for p in net.parameters()]
    optimizer.backward(scaler.scale([ls[0] * (float("nan") if rank else 1.0), *ls[1:]]))
    scaler.step(optimizer)
    scaler.update()
    return [p.tolist() for p in net.parameters()] == before, scaler.get_scale()


def test_a_nan_on_one_rank_is_left_to_the_grad_scaler():
    assert run_ranks(scaled_nan, 2) == [(True, 2.0**15)] * 2


def own_inputs(rank):
    """The losses meet at the inputs, too, which require grad, as in a physics-informed network."""
    found = {}
    for method in ("parameters", "parameters, renormalized"):
        net, model, optimizer = make(method)
        x, y = batch(0, rank, 2)
        x.requires_grad_()
        optimizer.backward(losses_of(model(x, y, METHODS[method][2]), y))
        found[method] = [p.grad.tolist() for p in net.parameters()], x.grad.tolist()
    return found


def test_inputs_that_require_grad_keep_their_ranks_own_gradient():
    first, second = run_ranks(own_inputs, 2)
    for method in first:
        assert first[method][0] == second[method][0]
        assert first[method][1] != second[method][1]
    net, _, optimizer = make("parameters", 1)
    x, y = batch(0)
    x.requires_grad_()
    optimizer.backward(losses_of(net(x, y), y))
    assert_equal([first["parameters"][0]], [p.grad.tolist() for p in net.parameters()])
    both = (
        torch.tensor(first["parameters"][1] + second["parameters"][1]) / 2
    )  # each rank's losses are means of its half
    torch.testing.assert_close(both, x.grad.float())
