"""How rows are made: vmap, chunks, the fall back to the loop, memory, and how often each part is differentiated."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import MODELS, Fails
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtopt import GradDrop, GramianTransform, Losses, MultiLossOptimizer, RowTransform, Site, per_loss_gradients
from mtopt._backward.parameters import _count_nonzero


class UnitRows(GramianTransform):
    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt()


class TimesTheirNumber(RowTransform):
    """Each row, as often as there are rows: a row of zeros is seen."""

    def transform(self, rows, site):
        assert len(site.losses) == len(rows)
        return len(rows) * rows


def network(n_losses: int, **settings):
    torch.manual_seed(0)
    trunk, heads = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.ModuleList(nn.Linear(5, 1) for _ in range(n_losses))
    inner = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
    return trunk, heads, MultiLossOptimizer(inner, GradDrop(seed=0), at="parameters", **settings)


def losses_of(trunk, heads):
    z = trunk(torch.ones(3, 4))
    return [head(z).sub(i).square().mean() for i, head in enumerate(heads)]


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 7, 100])
def test_every_chunk_size_gives_the_same_rows(chunk_size):
    trunk, heads, _ = network(7)
    inputs = list(trunk.parameters())
    expected = [
        torch.stack(rows)
        for rows in zip(*[torch.autograd.grad(loss, inputs) for loss in _fresh(trunk, heads, 7)], strict=True)
    ]
    ours = per_loss_gradients(losses_of(trunk, heads), inputs, chunk_size=chunk_size)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def _fresh(trunk, heads, n):
    return [losses_of(trunk, heads)[i] for i in range(n)]


def test_exclusive_parts_are_differentiated_once_and_vmap_halves_the_passes():
    trunk, heads, optimizer = network(5, chunk_size=4)
    losses = losses_of(trunk, heads)
    runs = {"heads": 0, "trunk": 0}

    def count(name):
        def hook(*_):
            runs[name] += 1

        return hook

    for loss in losses:
        loss.grad_fn.next_functions[0][0].next_functions[0][0].next_functions[0][0].register_hook(count("heads"))
    node = losses[0].grad_fn.next_functions[0][0].next_functions[0][0].next_functions[0][0].next_functions[1][0]
    node.register_hook(count("trunk"))
    optimizer.backward(losses)
    assert runs == {"heads": 5, "trunk": 2}  # four losses in one vmap, and the last alone


@pytest.mark.parametrize(
    ("heads_kept", "few", "passes"),
    [(2**22, 0, 5), (0, 2**20, 1 + 5), (0, 0, 5 + 5)],
    ids=["small heads", "small rows", "large rows"],
)
def test_small_heads_go_with_the_pass_of_their_loss_and_others_take_one_where_their_rows_are_small(
    monkeypatch, heads_kept, few, passes
):
    trunk, heads, _ = network(5)
    inputs = [*trunk.parameters(), *heads.parameters()]
    expected = per_loss_gradients(losses_of(trunk, heads), inputs)
    monkeypatch.setattr("mtopt._graph.rows.HEADS", heads_kept)
    monkeypatch.setattr("mtopt._graph.batching.FEW", few)
    calls, real = [], torch.autograd.grad
    monkeypatch.setattr("torch.autograd.grad", lambda *args, **settings: calls.append(1) or real(*args, **settings))
    ours = per_loss_gradients(losses_of(trunk, heads), inputs, chunk_size=1)
    assert len(calls) == passes
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_vmap_that_cannot_work_falls_back_once_and_says_why(chunk_size):
    case = MODELS["function_that_vmap_cannot_take"]()
    inner = torch.optim.SGD(case.model.parameters(), lr=0.1)
    optimizer = MultiLossOptimizer(inner, GradDrop(seed=0), at="parameters", chunk_size=chunk_size)
    with pytest.warns(RuntimeWarning, match="one by one, since vmap could not work on this model: .*vmap") as told:
        optimizer.backward(case.run().losses)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.backward(case.run().losses)
    assert "loop, because vmap could not work" in optimizer.explain()


def test_the_loop_can_be_asked_for():
    trunk, heads, optimizer = network(3, chunk_size=1)
    optimizer.backward(losses_of(trunk, heads))
    assert "loop, as asked" in optimizer.explain()


def test_attention_on_a_cpu_is_looped_without_a_warning():
    trunk, heads, optimizer = network(3)
    z = trunk(torch.ones(2, 3, 4)).unsqueeze(1)
    z = nn.functional.scaled_dot_product_attention(z, z, z)
    optimizer.backward([head(z).sub(i).square().mean() for i, head in enumerate(heads)])
    assert "batched attention gains nothing on a CPU" in optimizer.explain()


def test_convolutions_on_a_cpu_are_looped():
    case = MODELS["group_norm_convolutions"]()
    optimizer = MultiLossOptimizer(torch.optim.SGD(case.model.parameters(), lr=0.1), at="parameters")
    optimizer.backward(case.run().losses)
    assert "gains nothing on a CPU" in optimizer.explain()


def test_a_real_error_in_the_shared_part_is_raised_not_swallowed():
    trunk, heads, optimizer = network(3)
    z = Fails.apply(trunk(torch.ones(3, 4)))
    with pytest.warns(RuntimeWarning, match="on purpose"), pytest.raises(ArithmeticError, match="on purpose"):
        optimizer.backward([head(z).square().mean() for head in heads])
    assert all(p.grad is None for p in trunk.parameters())


def test_where_losses_meet_at_parameters_alone_each_part_runs_once():
    """One forward per task: the rows of all losses cost one backward in total."""
    trunk, heads, optimizer = network(4)
    runs = []
    losses = []
    for head in heads:
        z = trunk(torch.randn(3, 4))
        z.grad_fn.register_hook(lambda *_: runs.append(1))
        losses.append(head(z).square().mean())
    optimizer.backward(losses)
    assert len(runs) == 4


def test_parameters_that_no_loss_reaches_keep_no_gradient():
    trunk, heads, optimizer = network(3)
    optimizer.backward(losses_of(trunk, heads)[:2])
    assert heads[2].weight.grad is None


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_loss_has_no_row_at_a_parameter_that_it_does_not_reach(chunk_size):
    """Not one of zeros either, also where vmap takes it together with losses that reach the parameter."""
    case = MODELS["two_groups_of_losses"]()  # of two: one group reaches `left`, one `right`, and both reach `stem`
    inner = torch.optim.SGD(case.parameters, lr=0.1)
    MultiLossOptimizer(inner, TimesTheirNumber(), at="parameters", chunk_size=chunk_size).backward(case.run().losses)
    shared = ("stem", "left", "right")
    parameters = [parameter for name in shared for parameter in case.model[name].parameters()]
    sums = torch.autograd.grad(sum(case.run().losses), parameters)
    for parameter, number, plain in zip(parameters, (4, 4, 2, 2, 2, 2), sums, strict=True):
        torch.testing.assert_close(parameter.grad, number * plain)


def test_frozen_parameters_stay_without_gradient():
    trunk, heads, optimizer = network(3)
    losses = losses_of(trunk, heads)
    trunk[0].bias.requires_grad_(False)  # after the forward: still in the graph
    optimizer.backward(losses)
    assert trunk[0].bias.grad is None
    assert trunk[0].weight.grad is not None


def test_sparse_gradients_of_one_loss_are_left_sparse():
    table, trunk = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1)
    optimizer = MultiLossOptimizer(torch.optim.SGD([*table.parameters(), *trunk.parameters()], lr=0.1), at="parameters")
    optimizer.backward([trunk(table(torch.tensor([1]))).sum(), trunk(torch.ones(2, 3)).square().sum()])
    assert table.weight.grad.is_sparse


def test_inputs_may_be_activations_and_stand_twice():
    x = torch.ones(3, requires_grad=True)
    z = x * 2
    first, again, below = per_loss_gradients([z.sum(), z.square().sum()], [z, z, x])
    assert torch.equal(first, torch.tensor([[1.0] * 3, [4.0] * 3]))
    assert torch.equal(first, again)
    assert torch.equal(below, 2 * first)


def test_an_input_that_no_loss_reaches_is_none():
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    rows = per_loss_gradients([x.sum(), x.square().sum()], [x, y])
    assert rows[1] is None


def test_a_retained_graph_can_go_on():
    x = torch.ones(3, requires_grad=True)
    losses = [(x * 2).square().sum(), (x * 3).sum()]
    per_loss_gradients(losses, x, retain_graph=True)
    per_loss_gradients(losses, x)
    with pytest.raises(RuntimeError, match="earlier backward pass has freed"):
        per_loss_gradients(losses, x)


def test_losses_that_are_entries_of_one_vector():
    """A 1-D tensor of losses made by one operation: all nodes are shared, and rows still come loss by loss."""
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    rows = per_loss_gradients((w * w).cumsum(0), w)[0]
    assert torch.equal(rows, torch.tensor([[2.0, 0, 0], [2, 4, 0], [2, 4, 6]]))
    inner = torch.optim.SGD([w], lr=0.1)
    MultiLossOptimizer(inner, GradDrop(keep=torch.ones_like), at="parameters").backward((w * w).cumsum(0))
    assert w.grad.tolist() == [6, 8, 6]
    MultiLossOptimizer(inner, GradDrop(keep=torch.ones_like)).backward((w * w).cumsum(0))
    assert w.grad.tolist() == [12, 16, 12]


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
def test_a_compiled_model_gives_the_eager_models_gradients_at_parameters():
    """One node makes all outputs, yet a head is still exclusive to its loss."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 1), nn.Linear(5, 1)

        def forward(self, x):
            z = self.trunk(x).tanh()
            return self.a(z), self.b(z)

    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net, x = Net(), torch.randn(6, 4)
        a, b = (torch.compile(net, backend="aot_eager") if compiled else net)(x)
        inner = torch.optim.SGD(net.parameters(), lr=0.1)
        MultiLossOptimizer(inner, UnitRows(), at="parameters", chunk_size=1).backward([a.square().sum(), 9 * b.sum()])
        results.append([p.grad for p in net.parameters()])
    torch.compiler.reset()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_inputs_that_require_grad_get_the_plain_sum_at_parameters():
    """They are not trained: no transform touches their gradient, nor does it count for one."""
    x, w = torch.randn(4, requires_grad=True), nn.Parameter(torch.randn(4))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), UnitRows(), at="parameters")
    losses = [(x * w).sin().sum(), 100 * (x * w**2).cos().sum()]
    plain = torch.autograd.grad(sum(losses), x, retain_graph=True)[0]
    rows = torch.stack([torch.autograd.grad(loss, w, retain_graph=True)[0] for loss in losses])
    optimizer.backward(losses)
    torch.testing.assert_close(x.grad, plain)
    torch.testing.assert_close(w.grad, (rows / rows.norm(dim=1, keepdim=True)).sum(0))


class Reads(TorchDispatchMode):
    """Counts how often numbers are read from a device, for which it is waited."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default)
        return function(*args, **(kwargs or {}))


def test_zeros_are_counted_in_one_read_however_many_parameters_there_are():
    row = [torch.tensor([0.0, 2.0]), None, torch.zeros(3), torch.ones(2, 2)]
    reads = []
    for times in (1, 5):
        with Reads() as mode:
            counts = _count_nonzero(row * times, [Site(Losses((0,), 1))])
        assert counts == [1, 0, 0, 4] * times
        reads.append(mode.count)
    assert reads == [1, 1]
