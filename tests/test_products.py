"""Inner products and weighted sums of rows: stacked or by themselves, in parts, in half precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtopt._combine import products
from mtopt._combine.conflict import Conflict


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
