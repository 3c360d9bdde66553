"""MultiLossLayer: one alias per loss, all rows in one backward, any optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mtopt
from mtopt import GradDrop, MultiLossLayer, sign_dropout
from mtopt._draws import Draws


@pytest.fixture
def activation():
    torch.manual_seed(0)
    return torch.randn(6, 5, dtype=torch.float64, requires_grad=True)


def losses_of(aliases):
    return [alias.mul(i + 1).sub(i).square().mean() for i, alias in enumerate(aliases)]


def rows_of(activation):
    return torch.stack([torch.autograd.grad(loss, activation)[0] for loss in map(only, range(3), [activation] * 3)])


def only(i, activation):
    return activation.mul(i + 1).sub(i).square().mean()


def drawn(shape):
    return torch.rand(shape, dtype=torch.float64, generator=Draws(2).next(torch.device("cpu")))


def test_the_backward_of_the_sum_is_sign_dropout(activation):
    sum(losses_of(MultiLossLayer(3, GradDrop(seed=2))(activation))).backward()
    torch.testing.assert_close(activation.grad, sign_dropout(rows_of(activation), uniform=drawn((6, 5))))


def test_it_knows_the_activation(activation):
    sum(losses_of(MultiLossLayer(3, GradDrop(seed=2, marginalize=0))(activation))).backward()
    expected = sign_dropout(rows_of(activation), uniform=drawn((1, 5)), activation=activation.detach(), marginalize=0)
    torch.testing.assert_close(activation.grad, expected)


def test_leaks_go_by_name(activation):
    layer = MultiLossLayer(["a", "b", "c"], GradDrop(seed=2, leak={"b": 1.0}))
    sum(losses_of(layer(activation))).backward()
    expected = sign_dropout(rows_of(activation), uniform=drawn((6, 5)), leak=[0, 1, 0])
    torch.testing.assert_close(activation.grad, expected)


def test_one_ordinary_backward_runs_each_node_once(activation):
    runs = []
    below = activation * 1
    below.grad_fn.register_hook(lambda *_: runs.append(1))
    sum(losses_of(MultiLossLayer(3)(below))).backward()
    assert runs == [1]


def test_values_are_not_changed(activation):
    for alias in MultiLossLayer(3)(activation):
        assert torch.equal(alias, activation)


def test_in_eval_it_is_the_identity_with_plain_gradients(activation):
    layer = MultiLossLayer(3).eval()
    sum(losses_of(layer(activation))).backward()
    torch.testing.assert_close(activation.grad, rows_of(activation).sum(0))


def test_without_transforms_it_is_the_plain_sum(activation):
    sum(losses_of(MultiLossLayer(3, [])(activation))).backward()
    torch.testing.assert_close(activation.grad, rows_of(activation).sum(0))


def test_a_loss_that_does_not_come_back_has_no_row(activation):
    aliases = MultiLossLayer(3, GradDrop(seed=2))(activation)
    only(1, aliases[1]).backward()
    assert torch.equal(activation.grad, rows_of(activation)[1])


def test_an_absent_loss_does_not_shift_the_leaks(activation):
    aliases = MultiLossLayer(3, GradDrop(seed=2, leak=[0, 0, 1]))(activation)
    (only(0, aliases[0]) + only(2, aliases[2])).backward()
    expected = sign_dropout(rows_of(activation)[[0, 2]], uniform=drawn((6, 5)), leak=[0, 1])
    torch.testing.assert_close(activation.grad, expected)


def test_with_grad_disabled_it_is_the_identity(activation):
    with torch.no_grad():
        assert not MultiLossLayer(2)(activation * 1)[0].requires_grad


def test_an_alias_cannot_be_changed_in_place(activation):
    alias, _ = MultiLossLayer(2)(activation * 1)
    with pytest.raises(RuntimeError, match="inplace"):
        alias.relu_()


def test_create_graph_through_it_is_refused(activation):
    alias, _ = MultiLossLayer(2)(activation)
    with pytest.raises(RuntimeError, match="`create_graph=True` cannot go through a MultiLossLayer"):
        torch.autograd.grad(alias.square().sum(), activation, create_graph=True)


def test_the_models_state_dict_stays_as_it_was():
    assert not nn.Sequential(nn.Linear(2, 2), MultiLossLayer(2)).state_dict().keys() - {"0.weight", "0.bias"}


def test_its_random_state_can_be_saved(activation):
    layer = MultiLossLayer(3, GradDrop(seed=2))
    sum(losses_of(layer(activation))).backward()
    other = MultiLossLayer(3, GradDrop(seed=77))
    other.transforms[0].load_state_dict(copy.deepcopy(layer.transforms[0].state_dict()))
    results = []
    for each in (layer, other, copy.deepcopy(other)):
        activation.grad = None
        sum(losses_of(each(activation))).backward()
        results.append(activation.grad)
        if each is layer:
            continue
    assert torch.equal(results[0], results[1])


def test_the_plain_optimizer_with_the_layer_is_what_the_wrapper_does_without():
    """Two ways to one result: the layer in the model, or the optimizer that finds the place."""
    results = []
    for explicit in (True, False):
        torch.manual_seed(0)
        trunk, heads = nn.Linear(4, 5), nn.ModuleList(nn.Linear(5, 1) for _ in range(3))
        inner = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
        for step in range(3):
            z = trunk(torch.randn(6, 4, generator=torch.Generator().manual_seed(step)))
            layer, rule = MultiLossLayer(3, (method := GradDrop(seed=step))), method
            aliases = layer(z) if explicit else [z] * 3
            losses = [head(alias).square().mean() for head, alias in zip(heads, aliases, strict=True)]
            inner.zero_grad()
            if explicit:
                sum(losses).backward()
                inner.step()
            else:
                mtopt.MultiLossOptimizer(inner, rule).step(losses)
        results.append([p.detach().clone() for p in trunk.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_whole_compiled_model_with_the_layer_inside(backend):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.share = nn.Linear(4, 5), MultiLossLayer(2, GradDrop(keep=torch.ones_like))
            self.heads = nn.ModuleList(nn.Linear(5, 1) for _ in range(2))

        def forward(self, x):
            return [h(z).square().mean() for h, z in zip(self.heads, self.share(self.trunk(x).tanh()), strict=True)]

    torch.compiler.reset()
    torch.manual_seed(0)
    net = Net()
    x = torch.randn(6, 4)
    sum(net(x)).backward()
    eager = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    sum(torch.compile(net, backend=backend)(x)).backward()
    for p, gradient in zip(net.parameters(), eager, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0,), ValueError, "`losses` must be at least 1"),
        (([],), ValueError, "`losses` must be at least 1"),
        ((["a", "a"],), ValueError, "names one loss twice"),
        ((2, "drop"), TypeError, r"`transforms\[0\]` must be"),
        ((2, GradDrop(leak=[0, 0, 0])), ValueError, "`leak` has 3 values for 2 losses"),
        ((["a", "b"], GradDrop(leak={"c": 1})), ValueError, r"`leak` names \['c'\]"),
        ((2, GradDrop(leak={"c": 1})), ValueError, "no names"),
    ],
    ids=str,
)
def test_refusals_at_construction(arguments, error, match):
    with pytest.raises(error, match=match):
        MultiLossLayer(*arguments)


def test_loss_weightings_are_refused():
    class Ones(mtopt.LossWeighting):
        def weights(self, losses):
            return torch.ones(len(losses))

    with pytest.raises(ValueError, match="Ones, which needs the loss values"):
        MultiLossLayer(2, [Ones(), GradDrop()])


@pytest.mark.parametrize("bad", [torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.complex64), [1.0]])
def test_inputs_must_be_real_tensors(bad):
    with pytest.raises(TypeError, match="`activation` must be a real floating-point tensor"):
        MultiLossLayer(2)(bad)


def test_a_missing_dim_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="`marginalize` names dim 3"):
        MultiLossLayer(2, GradDrop(marginalize=3))(torch.ones(2, 2))


def test_repr():
    assert repr(MultiLossLayer(["a", "b"])) == "MultiLossLayer(['a', 'b'], GradDrop())"
    assert repr(MultiLossLayer(2, [])) == "MultiLossLayer(2, [])"
