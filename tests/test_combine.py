"""Lists of transforms: applied left to right, over one site or several, with rows that are not everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import stacked_rows
from torch import nn

from mtopt import GradDrop, GramianTransform, LossWeighting, MultiLossLayer, MultiLossOptimizer, RowTransform
from mtopt._combine.pipeline import Pipeline
from mtopt._transform import Losses, Site


class Constant(LossWeighting):
    def __init__(self, *weights):
        self.values = torch.tensor(weights, dtype=torch.float64)

    def weights(self, losses):
        return self.values[list(losses.indices)]


class Normalize(GramianTransform):
    """Unit rows."""

    def weights(self, gramian, losses):
        return gramian.diagonal().rsqrt()


class Swap(GramianTransform):
    """A mixing matrix that is no diagonal: each new row is the sum of all but its own."""

    def weights(self, gramian, losses):
        return torch.ones_like(gramian) - torch.eye(len(gramian), dtype=gramian.dtype)


class ByLoss(GramianTransform):
    """Weights that tell the losses apart: by their squared length, and by their place in the user's list."""

    def weights(self, gramian, losses):
        return gramian.diagonal() * torch.tensor([10.0**i for i in losses.indices])


class Square(RowTransform):
    def transform(self, rows, site):
        return rows.square() * rows.sign()


def losses(n: int) -> Losses:
    return Losses(tuple(range(n)), n)


def run(transforms, rows, present=None):
    """The combination at one site."""
    combination = Pipeline(transforms).combination(losses(len(rows)), [Site(losses(len(rows)))])
    for i in range(len(rows)) if present is None else present:
        combination.add(0, i, rows[i])
    return combination.result()[0]


def unit(rows):
    return rows / rows.flatten(1).norm(dim=1).reshape(-1, *[1] * (rows.ndim - 1))


def signed_square(rows):
    return rows.square() * rows.sign()


def swapped(rows):
    return rows.sum(0) - rows


@pytest.fixture
def rows():
    torch.manual_seed(0)
    return torch.randn(4, 3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ([Square()], lambda g: signed_square(g).sum(0)),
        ([Normalize()], lambda g: unit(g).sum(0)),
        ([Swap()], lambda g: 3 * g.sum(0)),
        ([Normalize(), Square()], lambda g: signed_square(unit(g)).sum(0)),
        ([Square(), Normalize()], lambda g: unit(signed_square(g)).sum(0)),
        ([Swap(), Square()], lambda g: signed_square(swapped(g)).sum(0)),
        ([Swap(), Normalize(), Square()], lambda g: signed_square(unit(swapped(g))).sum(0)),
        ([Square(), Swap(), Swap()], lambda g: swapped(swapped(signed_square(g))).sum(0)),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "by hand",
)
def test_transforms_go_from_left_to_right(rows, transforms, expected):
    torch.testing.assert_close(run(transforms, rows), expected(rows))


@given(st.data(), stacked_rows(min_losses=2))
def test_the_order_in_which_rows_come_is_irrelevant(data, rows):
    order = data.draw(st.permutations(range(len(rows))))
    for transforms in ([GradDrop(seed=1, leak=[0.1 * i for i in range(len(rows))])], [Swap(), Square()]):
        states = [transform.state_dict() for transform in transforms]
        one = run(transforms, rows)
        for transform, state in zip(transforms, states, strict=True):
            transform.load_state_dict(state)
        if isinstance(transforms[0], GradDrop):
            transforms = [GradDrop(seed=1, leak=transforms[0].leak)]
            one = run([GradDrop(seed=1, leak=transforms[0].leak)], rows)
        torch.testing.assert_close(run(transforms, rows, order), one)


def test_graddrop_in_a_list_is_the_same_graddrop(rows):
    class Same(RowTransform):
        def transform(self, rows, site):
            return rows

    alone = run([GradDrop(seed=3, leak=0.2)], rows)
    torch.testing.assert_close(run([Same(), GradDrop(seed=3, leak=0.2)], rows), alone)
    torch.testing.assert_close(run([GradDrop(seed=3, leak=0.2), Same()], rows), alone)


@given(st.data())
def test_leaks_in_a_list_go_to_their_losses_in_whatever_order_the_rows_come(data):
    """Always the positive sign: what is left of the negative numbers are the leaks."""

    class Same(RowTransform):
        def transform(self, rows, site):
            return rows

    order = data.draw(st.permutations(range(4)))[: data.draw(st.integers(2, 4))]
    rows = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(order)))
    leak = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    kept = rows.clamp_min(0) + leak[:, None] * rows.clamp_max(0)
    found = run([Same(), GradDrop(keep=torch.ones_like, leak=leak.tolist())], rows, order)
    torch.testing.assert_close(found, kept[list(order)].sum(0))


@pytest.mark.parametrize("transforms", [[GradDrop()], [Swap(), Square()], [Normalize()]], ids=str)
def test_a_single_row_stays_as_it_is(rows, transforms):
    assert run(transforms, rows, [2]) is rows[2] or torch.equal(run(transforms, rows, [2]), rows[2])
    assert run(transforms, rows, []) is None


def test_one_gramian_for_all_tensors_of_a_group(rows):
    """At parameters the rows are spread over several tensors; a loss may miss one of them."""
    other = torch.randn(4, 5, dtype=torch.float64)
    combination = Pipeline([Normalize()]).combination(losses(4), [Site(losses(4))] * 2)
    for i in range(4):
        combination.add(0, i, rows[i])
        if i != 1:
            combination.add(1, i, other[i])
    whole = torch.cat([rows.flatten(1), other * torch.tensor([[1.0], [0], [1], [1]])], 1)
    scale = 1 / whole.norm(dim=1)
    first, second = combination.result()
    torch.testing.assert_close(first, torch.tensordot(scale, rows, 1))
    torch.testing.assert_close(second, (scale[:, None] * other)[[0, 2, 3]].sum(0))


@given(st.data())
def test_each_loss_gets_its_own_weight_in_whatever_order_and_at_whatever_sites_its_rows_come(data):
    """Losses may be absent from the step, or from a site."""
    place = st.permutations(range(4)).flatmap(lambda order: st.integers(2, 4).map(lambda n: order[:n]))
    present = data.draw(st.lists(place, min_size=1, max_size=3))
    rows = torch.randn(len(present), 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(len(present)))
    combination = Pipeline(ByLoss()).combination(losses(4), [Site(losses(4))] * len(present))
    for site, indices in enumerate(present):
        for i in indices:
            combination.add(site, i, rows[site, i])
    here = torch.tensor([[[float(i in indices)] for i in range(4)] for indices in present])  # (sites, 4, 1)
    weights = (rows * here).square().sum((0, 2)) * torch.tensor([1.0, 10.0, 100.0, 1000.0])
    for found, expected in zip(combination.result(), (weights[:, None] * rows * here).sum(1), strict=True):
        torch.testing.assert_close(found, expected)


def test_rows_that_are_alone_stay_as_they_are_at_each_of_several_sites(rows):
    combination = Pipeline(Normalize()).combination(losses(4), [Site(losses(4))] * 3)
    for site in (0, 2):
        combination.add(site, 1, rows[site])
    first, nothing, last = combination.result()
    assert torch.equal(first, rows[0])
    assert nothing is None
    assert torch.equal(last, rows[2])


def test_mixing_gives_a_row_to_a_loss_that_had_none():
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    combination = Pipeline([Swap(), Square()]).combination(losses(3), [Site(losses(3))] * 2)
    for i, row in ((0, rows[0]), (1, rows[1])):
        combination.add(0, i, row)
    for i in range(3):
        combination.add(1, i, torch.ones(1))
    first, second = combination.result()
    assert first.tolist() == (rows[1] ** 2 + rows[0] ** 2 + rows.sum(0) ** 2).tolist()
    assert second.tolist() == [12.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_summed_wide(dtype):
    rows = torch.cat([torch.ones(1, 1), torch.full((512, 1), 2.0**-9)]).to(dtype)

    class Same(RowTransform):
        def transform(self, rows, site):
            return rows

    assert run([Same()], rows).item() == 2
    assert run([Same()], rows).dtype == dtype


# -- in the optimizer --


def trained(at, transforms):
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5).double(), nn.ModuleList(nn.Linear(5, 1) for _ in range(3)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    optimizer = MultiLossOptimizer(
        torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=1),
        transforms,
        at=trunk if at == "module" else at,
    )
    z = trunk(x)
    optimizer.backward([head(z).sub(i).square().mean() for i, head in enumerate(heads)])
    return [p.grad for p in [*trunk.parameters(), *heads.parameters()]]


@pytest.mark.parametrize("at", ["activations", "parameters", "module"])
def test_weightings_scale_the_losses_also_for_their_own_parameters(at):
    plain = trained(at, [])
    weighted = trained(at, [Constant(2.0, 0.5, 3.0), Constant(1.0, 2.0, 1.0)])
    for head, weight in enumerate((2, 1, 3)):
        torch.testing.assert_close(weighted[2 + 2 * head], weight * plain[2 + 2 * head])


@pytest.mark.parametrize("at", ["activations", "parameters", "module"])
@pytest.mark.parametrize("first", [[], [GradDrop(leak=1.0)]], ids=["plain", "full leak"])
def test_weightings_come_before_the_rows(at, first):
    torch.testing.assert_close(trained(at, [Constant(2.0, 2.0, 2.0), *first]), [2 * g for g in trained(at, [])])


@pytest.mark.parametrize("at", ["activations", "parameters", "module"])
def test_a_gramian_transform_sees_the_rows_at_the_site(at):
    """Unit rows: at the activation, or over all shared parameters together."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 5).double(), nn.ModuleList(nn.Linear(5, 1) for _ in range(3)).double()
    z = trunk(torch.randn(6, 4, dtype=torch.float64))
    values = [head(z).sub(i).square().mean() for i, head in enumerate(heads)]
    sites = list(trunk.parameters()) if at == "parameters" else [z]
    by_loss = [torch.autograd.grad(value, sites, retain_graph=True) for value in values]
    norms = [torch.cat([g.flatten() for g in gradients]).norm() for gradients in by_loss]
    combined = [sum(g / n for g, n in zip(gs, norms, strict=True)) for gs in zip(*by_loss, strict=True)]
    expected = combined if at == "parameters" else torch.autograd.grad(z, list(trunk.parameters()), combined[0])
    for ours, theirs in zip(trained(at, [Normalize()])[:2], expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("absent", [0, 1, 2, 3])
@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_a_gramian_transform_weighs_the_losses_that_are_there_whichever_is_absent(at, absent):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(5, dtype=torch.float64))
    z = w * 1  # its gradient is that of w
    values = [(z * torch.randn(5, dtype=torch.float64)).sum() for _ in range(4)]
    rows = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in values]
    given = [None if i == absent else value for i, value in enumerate(values)]
    MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), ByLoss(), at=at).backward(given)
    weighted = [10.0**i * row.square().sum() * row for i, row in enumerate(rows) if i != absent]
    torch.testing.assert_close(w.grad, sum(weighted))


def test_values_reach_a_weighting_with_names():
    seen = []

    class Look(LossWeighting):
        def weights(self, losses):
            seen.append((losses.values, [losses.label(i) for i in range(len(losses))], losses.indices))
            return torch.ones(len(losses))

    w = nn.Parameter(torch.tensor(2.0))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), [Look()])
    optimizer.backward({"a": w * 2, "none": None, "b": (w.double() * 3).reshape(1)})
    values, names, indices = seen[0]
    assert values.tolist() == [4.0, 6.0]
    assert values.dtype == torch.float64
    assert names == ["a", "b"]
    assert indices == (0, 2)


def test_values_are_not_known_in_a_layer():
    class Look(GramianTransform):
        def weights(self, gramian, losses):
            return losses.values

    a, b = MultiLossLayer(2, Look())(torch.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match="sees no loss values"):
        (a.sum() + b.square().sum()).backward()


@given(st.data())
def test_sites_that_go_through_the_gramian_together_are_combined_as_one_tensor_would_be(data):
    sizes = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    rows = torch.randn(3, sum(sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(sum(sizes)))
    together = data.draw(st.sampled_from([1, 9, 2**17]))  # numbers: groups of one, some, all
    method = data.draw(st.sampled_from([Normalize(), Swap()]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtopt._combine.combination.TOGETHER", together)
        combination = Pipeline(method).combination(losses(3), [Site(losses(3))] * len(sizes))
        for site, of_site in enumerate(rows.split(sizes, 1)):
            for i, row in enumerate(of_site):
                combination.add(site, i, row)
        combined = torch.cat(combination.result())
    torch.testing.assert_close(combined, run(method, rows), equal_nan=True)


def test_sites_of_other_losses_or_shapes_do_not_go_together(rows):
    combination = Pipeline(Normalize()).combination(losses(4), [Site(losses(4))] * 3)
    for i in range(4):
        combination.add(0, i, rows[i])
    for i in (1, 2):
        combination.add(1, i, rows[i, 0])
    combination.add(2, 3, rows[3, 0])
    flat = torch.zeros(4, 10, dtype=torch.float64)
    flat[:, :6], flat[1:3, 6:8], flat[3, 8:] = rows.flatten(1), rows[1:3, 0], rows[3, 0]
    expected = (flat[:, :8] / flat[:, :8].norm(dim=1, keepdim=True)).sum(0)
    one, two, alone = combination.result()
    torch.testing.assert_close(one, expected[:6].view(3, 2))
    torch.testing.assert_close(two, expected[6:])
    assert torch.equal(alone, rows[3, 0])


# -- a transform of one's own, in words --------------------------------------------------------------------------------


class Odd(GramianTransform):
    """Settings hard to put in words: one under another name, one that is a tensor, one that holds its owner."""

    def __init__(self, weights=1, matrix=torch.ones(2), owner=None, number=2):  # noqa: B008
        self.hidden, self.matrix, self.number = weights, matrix, number
        self.owner = self if owner else None

    def weights(self, gramian, losses):
        return gramian.new_ones(len(losses))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: Odd(3), "Odd(matrix=tensor([1., 1.]))"),
        (lambda: Odd(matrix=torch.zeros(2), number=5), "Odd(matrix=tensor([0., 0.]), number=5)"),
        (lambda: Odd(matrix=None), "Odd(matrix=None)"),
        (lambda: Odd(matrix=None, owner=True), "Odd(matrix=None, owner=...)"),
    ],
    ids=["hidden", "tensor", "usual", "itself"],
)
def test_a_transform_is_put_in_words_whatever_its_settings(made, text):
    assert repr(made()) == text
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=0.1), made(), at="parameters")
    optimizer.step([w.sum(), w.square().sum()])
    assert text in optimizer.explain()
