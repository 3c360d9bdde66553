"""Inner products and weighted sums of rows: stacked or by themselves, in parts, in half precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import GRAMIAN

import mtopt
from mtopt._combine import block, products
from mtopt._combine.conflict import Conflict
from mtopt._combine.pipeline import Pipeline
from mtopt._transform import Losses, Site


@pytest.fixture
def parts_of_16(monkeypatch):
    monkeypatch.setattr(products, "PART", 16)


def random_rows(seed, n, shape, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for _ in range(n)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 3), (2, 3, 11), (0,)])
@pytest.mark.parametrize("stacked", [True, False])
def test_products_and_sums_are_those_of_float64(parts_of_16, dtype, shape, stacked):
    rows = random_rows(0, 5, shape, dtype)
    weights = [0.5, -1.0, 0.0, 3.0, 1e-3]
    exact = torch.stack(rows).double()
    close = 1e-12 if dtype == torch.float64 else 1e-5
    given = torch.stack(rows) if stacked else rows
    found = products.gramian(given)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, (flat := exact.reshape(5, -1)) @ flat.T, rtol=close, atol=close)
    expected = torch.tensordot(torch.tensor(weights, dtype=torch.float64), exact, 1).to(dtype)
    torch.testing.assert_close(products.weighted_sum(given, weights), expected)


@given(st.integers(0, 100), st.integers(1, 6), st.integers(1, 50))
def test_stacked_rows_and_others_give_the_same(seed, n, size):
    rows = random_rows(seed, n, (size,), torch.float64)
    weights = list(range(n))
    torch.testing.assert_close(products.gramian(rows), products.gramian(torch.stack(rows)))
    torch.testing.assert_close(products.weighted_sum(rows, weights), products.weighted_sum(torch.stack(rows), weights))


def test_rows_of_any_memory_layout_are_read_right(parts_of_16):
    rows = random_rows(0, 3, (6, 8))
    strange = [rows[0].T.contiguous().T, rows[1].expand(6, 8), torch.zeros(6, 16)[:, ::2].copy_(rows[2])]
    torch.testing.assert_close(products.gramian(strange), products.gramian(rows))
    torch.testing.assert_close(products.weighted_sum(strange, [1.0, 2.0, 3.0]), rows[0] + 2 * rows[1] + 3 * rows[2])


def test_small_rows_are_stacked_and_large_ones_left_where_they_are(parts_of_16):
    small, large = random_rows(0, 2, (8,)), random_rows(0, 2, (9,))
    assert torch.equal(products.stacked_if_small(small), torch.stack(small))
    assert products.stacked_if_small(large) is large


def test_an_overflow_is_seen_whatever_its_weight(parts_of_16):
    rows = random_rows(0, 3, (20,))
    rows[1][3] = torch.inf
    assert not products.gramian(rows).isfinite().all()
    assert products.weighted_sum(rows, [1.0, 0.0, 1.0]).isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_neither_rounded_nor_overflow_on_the_way(parts_of_16, dtype):
    rows = [torch.full((3,), 200.0, dtype=dtype)] * 400
    assert products.gramian(rows).max() == 3 * 200.0**2
    assert (products.weighted_sum(rows, [1.0] * 399 + [-398.0]) == 200).all()


# -- where float32 does not hold the squares, or rows cancel each other --


def combined(method, rows):
    of = Losses(tuple(range(len(rows))), len(rows), None, tuple(torch.arange(1.0, len(rows) + 1)))
    combination = Pipeline(method).combination(of, [Site(of)])
    for i, row in enumerate(rows):
        combination.add(0, i, row)
    return combination.result()[0]


EXTREMES = {
    "tiny": [1e-26] * 4,
    "huge": [1e20] * 4,
    "a saturated head": [1e-30, 1.0, 1.0, 1.0],
    "both": [1e-26, 1e20, 1.0, 1e-10],
    "one of zeros": [1e-26, 0.0, 1.0, 1.0],
}


@pytest.mark.parametrize("size", [50, 40_000])
@pytest.mark.parametrize("scales", EXTREMES)
@pytest.mark.parametrize("name", GRAMIAN)
def test_rows_of_any_length_are_combined_as_in_float64(name, scales, size):
    """Also before GradDrop, where each weighted row is taken by itself."""
    rows = torch.stack(random_rows(1, 4, (size,))) * torch.tensor(EXTREMES[scales])[:, None]
    for transforms in (lambda: [GRAMIAN[name]()], lambda: [GRAMIAN[name](), mtopt.GradDrop(leak=1.0)]):
        expected = combined(transforms(), rows.double())
        found = combined(transforms(), rows).double()
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_a_gramian_is_looked_at_again_only_where_it_lost_something(monkeypatch):
    asked = []
    real = block.gramian
    monkeypatch.setattr(block, "gramian", lambda *given, exact: asked.append(exact) or real(*given, exact=exact))
    rows = torch.stack(random_rows(1, 3, (60_000,)))
    zero = torch.tensor([1.0, 0.0, 1.0])[:, None]
    for these, looks in ((rows, 1), (rows * zero, 1), (1e-26 * rows, 2), (rows[[0, 1, 0]], 2), (rows / zero, 1)):
        asked.clear()
        combined([mtopt.MGDA()], these)
        assert asked == [False, True][:looks]


@pytest.mark.parametrize("size", [12, 60_000])
@pytest.mark.parametrize("name", [name for name in GRAMIAN if name not in ("PCGrad", "GradVac")])
def test_neither_order_nor_scale_counts_where_rows_are_dependent(name, size):
    """In float32, five rows of rank two: what rounding leaves of a rank must not decide. (Two draw their order.)"""
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        rows = torch.randn(5, 2, generator=random) @ torch.randn(2, size, generator=random)
        order = torch.randperm(5, generator=random)
        found = combined([GRAMIAN[name]()], rows)
        length = max(found.norm(), 1e-2 * (rows.norm() if GRAMIAN[name]().scale_equivariant else 1))
        if not GRAMIAN[name]().uses_values and name != "DCGD":  # those belong to the losses; its first is the residual
            assert (combined([GRAMIAN[name]()], rows[order]) - found).norm() <= 1e-3 * length
        if GRAMIAN[name]().scale_equivariant:
            assert (combined([GRAMIAN[name]()], 3.7 * rows) / 3.7 - found).norm() <= 1e-3 * length


def test_a_gramian_is_symmetric_to_the_last_bit():
    seen = []

    class Look(mtopt.GramianTransform):
        def weights(self, gramian, losses):
            seen.append(gramian)
            return torch.ones(len(losses))

    for size in (7, 60_000):
        combined([Look()], torch.stack(random_rows(0, 5, (size,))))
    assert all(torch.equal(gramian, gramian.T) for gramian in seen)


@pytest.mark.parametrize("scale", [1e-26, 1.0, 1e20])
def test_a_monitor_sees_the_cosines_of_rows_of_any_length(scale):
    rows = random_rows(3, 2, (100_000,))
    conflict = Conflict(["a", "b"])
    conflict.add([scale * row for row in rows], [0, 1])
    expected = torch.nn.functional.cosine_similarity(rows[0].double(), rows[1].double(), 0)
    torch.testing.assert_close(conflict.cosines[0, 1], expected, rtol=1e-4, atol=1e-6)


def test_products_of_large_rows_are_rounded_like_those_of_small_ones():
    """Summed up in float32 from end to end they are 1e-5 off, where few numbers are much larger than the others."""
    few = [
        row / torch.rand(row.shape, generator=torch.Generator().manual_seed(0)) for row in random_rows(4, 2, (400_000,))
    ]
    exact = torch.stack(few).double() @ torch.stack(few).double().T
    lengths = exact.diagonal().sqrt()
    assert ((products.gramian(few) - exact) / lengths / lengths[:, None]).abs().max() < 1e-6


def test_conflict_over_two_sites_is_that_of_their_rows_side_by_side():
    left = [torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([3.0, 3.0, 0.0, 0.0])]
    right = [torch.tensor([-1.0, 1.0]), torch.tensor([-4.0, -1.0])]
    found, other = Conflict(["a", "b"]), Conflict(["a", "b"])
    found.add(left, [0, 1])
    other.add(right, [0, 1])
    found.include(other)
    whole = torch.stack([torch.cat(pair) for pair in zip(left, right, strict=True)]).double()
    assert torch.equal(found.gramian, whole @ whole.T)
    assert (found.coordinates, found.conflicting, int(found.histogram.sum())) == (5, 2, 5)
    assert found.purity == pytest.approx((1 + 0.75 + 1 + 0 + 0.5) / 5)
