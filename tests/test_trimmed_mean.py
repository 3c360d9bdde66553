"""The trimmed mean: against TorchJD's, by hand, and where there is little to trim."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation as torchjd
from hard import HARD

from mtopt import Losses, MultiLossOptimizer, Site, TrimmedMean


def rows_of(n, dtype=torch.float64, seed=0):
    return torch.randn(n, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def transformed(method, rows):
    losses = Losses(tuple(range(len(rows))), len(rows))
    return method.transform(rows, Site(losses))


@pytest.mark.parametrize(("n", "trim"), [(3, 1), (4, 0), (4, 1), (7, 2), (7, 3)])
def test_the_sum_of_the_new_rows_is_torchjd_s(n, trim):
    for seed in range(5):
        rows = rows_of(n, seed=seed)
        ours = transformed(TrimmedMean(trim=trim), rows).sum(0)
        torch.testing.assert_close(ours.flatten(), torchjd.TrimmedMean(trim)(rows.flatten(1)))


@pytest.mark.parametrize("name", [name for name, rows in HARD.items() if len(rows) >= 3])
def test_hard_rows_are_trimmed_as_torchjd_s(name):
    rows = HARD[name]
    ours = transformed(TrimmedMean(), rows).sum(0)
    torch.testing.assert_close(ours, torchjd.TrimmedMean(1)(rows), rtol=1e-12, atol=1e-12 * float(rows.abs().max()))


def test_each_loss_keeps_what_was_not_trimmed_of_its_own_row():
    rows = torch.tensor([[1.0, 5.0, -2.0], [2.0, 5.0, -9.0], [9.0, 5.0, 0.0], [6.0, 8.0, 0.0]])
    kept = transformed(TrimmedMean(), rows)
    assert kept.tolist() == [[0, 0, -1], [1, 2.5, 0], [0, 2.5, 0], [3, 0, 0]]  # of equals the first are the smaller
    assert rows[0, 0] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_where_fewer_are_present_it_is_their_median(n):
    rows = rows_of(n)
    ordered = rows.sort(0).values
    torch.testing.assert_close(
        transformed(TrimmedMean(trim=3), rows).sum(0), (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_overflow_is_seen(bad):
    rows = rows_of(5)
    rows[3, 1, 2] = bad
    result = transformed(TrimmedMean(), rows).sum(0)
    assert result[1, 2].isnan()
    assert int(result.isnan().sum()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_rows_stay_narrow(dtype):
    rows = rows_of(5, dtype)
    found = transformed(TrimmedMean(), rows)
    assert found.dtype == dtype
    expected = transformed(TrimmedMean(), rows.double())
    rounding = 1 if dtype == torch.float32 else 0.51  # once, in the end
    torch.testing.assert_close(found.double(), expected, rtol=rounding * torch.finfo(dtype).eps, atol=0)


def test_a_spoiled_loss_moves_no_weight_far():
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=1.0), TrimmedMean(), at="parameters")
    optimizer.step([w.sum(), (1.5 * w).sum(), (-1e9 * w).sum(), (2 * w).sum()])
    assert w.tolist() == [-1.25] * 3


@pytest.mark.parametrize(
    ("trim", "error", "message"),
    [
        (-1, ValueError, "`trim` must be 0 or more, but it is -1"),
        (0.1, TypeError, "`trim` must be a whole number, but it is float"),
    ],
)
def test_bad_settings_are_refused(trim, error, message):
    with pytest.raises(error, match=message):
        TrimmedMean(trim=trim)


def test_too_short_a_list_is_refused_with_nothing_changed():
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer = MultiLossOptimizer(torch.optim.SGD([w], lr=1.0), TrimmedMean(trim=2))
    with pytest.raises(ValueError, match="`trim` is 2, for which TrimmedMean needs 5 losses or more, but there are 4"):
        optimizer.step([w.sum() for _ in range(4)])
    assert w.grad is None
    optimizer.step([w.sum(), None, w.sum(), None, w.sum()])
