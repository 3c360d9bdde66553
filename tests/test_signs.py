"""The laws of sign purity and sign dropout, on plain tensors."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import integrate, oracle
from scipy import stats
from strategies import FLOATS, leaks, stacked_rows, uniforms
from torch import Tensor

from mtopt import sign_dropout, sign_purity
from mtopt._draws import Draws
from mtopt._draws import uniform as draw_uniform
from mtopt._signs import SignSums, kept_shares, norm_ratio, pick_positive

GOLDEN = json.loads((Path(__file__).parent / "data" / "graddrop.json").read_text())


def full(rows: Tensor, value: float) -> Tensor:
    return torch.full(rows.shape[1:], value, dtype=torch.float64)


def stream(rows: Tensor, uniform: Tensor, leak: list[float], keep: float = 1.0, renormalize: bool = False) -> Tensor:
    sums = SignSums(leaky=any(leak))
    for row, share in zip(rows, leak, strict=True):
        sums.add(row, share)
    draws = uniform.to(sums.total.dtype, copy=True)  # they are used up
    return sums.result(draws, keep, renormalize=renormalize)


def masked(rows: Tensor, uniform: Tensor, leak: list[float], keep: float = 1.0, renormalize: bool = False) -> Tensor:
    """The way that keeps all rows, which lists of transforms go."""
    kept = (rows * kept_shares(rows, pick_positive(rows, uniform, keep), leak)).sum(0)
    return kept * norm_ratio(rows.sum(0), kept) if renormalize else kept


# -- purity --


@given(stacked_rows(scales=True))
def test_purity_is_between_0_and_1(rows):
    purity = sign_purity(rows)
    assert ((purity >= 0) & (purity <= 1)).all()


@given(stacked_rows())
def test_purity_mirrors_when_signs_flip(rows):
    torch.testing.assert_close(sign_purity(-rows), 1 - sign_purity(rows))


@given(stacked_rows(), st.sampled_from([2.0**-90, 0.37, 1e30]))
def test_purity_does_not_see_the_scale(rows, scale):
    torch.testing.assert_close(sign_purity(rows * scale), sign_purity(rows))


@given(stacked_rows(), st.randoms(use_true_random=False))
def test_purity_does_not_see_the_order_of_losses(rows, random):
    order = random.sample(range(len(rows)), len(rows))
    torch.testing.assert_close(sign_purity(rows[order]), sign_purity(rows))


@given(stacked_rows())
def test_purity_is_half_of_one_plus_the_ratio_of_sums(rows):
    mass = rows.abs().sum(0)
    ratio = torch.where(mass > 0, rows.sum(0) / mass.clamp_min(1e-9), torch.zeros_like(mass))
    torch.testing.assert_close(sign_purity(rows), (1 + ratio) / 2)


def test_purity_has_the_papers_values():
    rows = torch.tensor([[3.0, 7.0, 0.0], [1.0, -3.0, 0.0]])
    assert sign_purity(rows).tolist() == pytest.approx([1.0, 0.7, 0.5])


@pytest.mark.parametrize("dtype", FLOATS)
def test_purity_is_float32_or_wider(dtype):
    assert sign_purity(torch.ones(2, 3, dtype=dtype)).dtype == torch.promote_types(dtype, torch.float32)


# -- what is kept --


@given(st.data(), stacked_rows(), uniforms(), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_dropout_is_what_the_paper_says(data, rows, uniform, slope):
    share = data.draw(leaks(len(rows)))
    ours = sign_dropout(rows, uniform=full(rows, uniform), leak=share, keep=slope)
    torch.testing.assert_close(ours, oracle(rows, full(rows, uniform), share, slope))


@given(st.data(), stacked_rows(min_losses=2), uniforms(), st.sampled_from([0.0, 1.0, 2.0]), st.booleans())
def test_streaming_agrees_with_all_rows_at_once(data, rows, uniform, slope, renormalize):
    share = data.draw(leaks(len(rows)))
    at_once = masked(rows, full(rows, uniform), share, slope, renormalize)
    torch.testing.assert_close(stream(rows, full(rows, uniform), share, slope, renormalize), at_once)


@given(stacked_rows(), uniforms(), st.sampled_from([0.0, 0.5, 1.0]))
def test_without_leak_a_coordinate_is_the_positive_mass_or_the_negative_or_nothing(rows, uniform, slope):
    result = sign_dropout(rows, uniform=full(rows, uniform), keep=slope)
    positive, negative = rows.clamp_min(0).sum(0), rows.clamp_max(0).sum(0)
    assert (torch.isclose(result, positive) | torch.isclose(result, negative) | (result == 0)).all()


@given(st.data(), uniforms(), st.sampled_from(FLOATS))
def test_unanimous_rows_are_summed_bit_for_bit_in_every_dtype(data, uniform, dtype):
    scales = dtype in (torch.float32, torch.float64)
    rows = data.draw(stacked_rows(signs="same", dtype=dtype, scales=scales))
    wide = rows.to(torch.promote_types(dtype, torch.float32))
    draws = full(rows, uniform).to(wide.dtype)
    in_order = sum(wide[1:], wide[0].clone())
    assert torch.equal(sign_dropout(rows, uniform=draws), in_order.to(dtype))
    share = data.draw(leaks(len(rows)))
    assert torch.equal(stream(rows, draws, share), in_order.to(dtype))


@given(st.data(), stacked_rows(min_losses=1, max_losses=1, scales=True, dtype=torch.float32), uniforms())
def test_a_single_loss_is_kept_bit_for_bit(data, rows, uniform):
    share = data.draw(leaks(1))
    assert torch.equal(sign_dropout(rows, uniform=full(rows, uniform), leak=share), rows[0])


@given(st.data(), stacked_rows(scales=True, dtype=torch.float32), uniforms(), st.integers(0, 5))
def test_a_coordinate_of_one_loss_alone_is_kept_bit_for_bit(data, rows, uniform, owner):
    alone = torch.zeros_like(rows)
    alone[owner % len(rows)] = rows[owner % len(rows)]
    share = data.draw(leaks(len(rows)))
    draws = full(rows, uniform)
    assert torch.equal(sign_dropout(alone, uniform=draws, leak=share), alone.sum(0))
    assert torch.equal(stream(alone, draws, share), alone.sum(0))


@given(stacked_rows(scales=True), uniforms(), st.sampled_from([0.0, 1.0, 3.0]))
def test_a_full_leak_is_the_plain_sum_bit_for_bit(rows, uniform, slope):
    draws, all_of_it = full(rows, uniform), [1.0] * len(rows)
    in_order = sum(rows[1:], rows[0].clone())
    assert torch.equal(sign_dropout(rows, uniform=draws, leak=1.0, keep=slope), in_order)
    assert torch.equal(stream(rows, draws, all_of_it, slope), in_order)
    assert torch.equal(masked(rows, draws, all_of_it, slope), rows.sum(0))


@given(st.data(), stacked_rows(), uniforms(), st.floats(0, 1))
def test_the_result_is_linear_in_the_leak(data, rows, uniform, t):
    one, other = data.draw(leaks(len(rows))), data.draw(leaks(len(rows)))
    between = [t * a + (1 - t) * b for a, b in zip(one, other, strict=True)]
    draws = full(rows, uniform)
    ends = t * sign_dropout(rows, uniform=draws, leak=one) + (1 - t) * sign_dropout(rows, uniform=draws, leak=other)
    torch.testing.assert_close(sign_dropout(rows, uniform=draws, leak=between), ends)


@given(stacked_rows(), uniforms(), st.randoms(use_true_random=False))
def test_the_order_of_losses_is_irrelevant(rows, uniform, random):
    order = random.sample(range(len(rows)), len(rows))
    draws = full(rows, uniform)
    torch.testing.assert_close(sign_dropout(rows[order], uniform=draws), sign_dropout(rows, uniform=draws))


@given(stacked_rows(), uniforms(), st.sampled_from([2.0**-60, 8.0, 2.0**60]))
def test_the_result_scales_with_the_rows(rows, uniform, scale):
    draws = full(rows, uniform)
    assert torch.equal(sign_dropout(rows * scale, uniform=draws), sign_dropout(rows, uniform=draws) * scale)


# -- in the mean: U is integrated out, not sampled --


@given(stacked_rows(), st.floats(0, 1))
def test_the_mean_is_a_share_of_the_sum(rows, slope):
    mean = integrate(rows, lambda result: result, keep=slope)
    torch.testing.assert_close(mean, (1 + slope) / 2 * rows.sum(0))


@given(stacked_rows(), st.floats(0, 1))
def test_the_variance_is_that_of_a_choice_between_the_two_masses(rows, slope):
    mean = integrate(rows, lambda result: result, keep=slope)
    variance = integrate(rows, lambda result: (result - mean).square(), keep=slope)
    expected = (rows.abs().sum(0).square() - slope**2 * rows.sum(0).square()) / 4
    torch.testing.assert_close(variance, expected)


@given(stacked_rows())
def test_at_slope_one_the_variance_is_positive_times_negative_mass(rows):
    variance = integrate(rows, torch.square) - rows.sum(0).square()
    torch.testing.assert_close(variance, rows.clamp_min(0).sum(0) * rows.clamp_max(0).sum(0).neg())


@pytest.mark.parametrize(("slope", "mean", "variance"), [(0, 2.5, 42.25), (0.5, 3.75, 40.6875), (1, 5, 36)])
def test_mean_and_variance_of_the_worked_example(slope, mean, variance):
    rows = torch.tensor([[7.0], [-3.0], [2.0], [-1.0]], dtype=torch.float64)
    assert integrate(rows, lambda result: result, keep=slope).item() == pytest.approx(mean)
    second = integrate(rows, torch.square, keep=slope).item()
    assert second - mean**2 == pytest.approx(variance)


@given(stacked_rows())
def test_the_update_is_surely_zero_only_where_every_row_is(rows):
    moved = integrate(rows, torch.abs)
    assert torch.equal(moved == 0, (rows == 0).all(0))


@given(stacked_rows())
def test_the_mean_size_is_at_least_a_share_of_the_larger_mass(rows):
    larger = torch.maximum(rows.clamp_min(0).sum(0), rows.clamp_max(0).sum(0).neg())
    assert (integrate(rows, torch.abs) >= 2 * (math.sqrt(2) - 1) * larger - 1e-9).all()


def test_total_cancellation_still_moves():
    rows = torch.tensor([[2.0], [-2.0]])
    assert integrate(rows, torch.abs).item() == 2.0


@given(stacked_rows())
def test_a_keep_function_is_taken_as_it_is(rows):
    squared = integrate(rows, lambda result: result, keep=lambda purity: purity**2)
    share = sign_purity(rows) ** 2
    expected = share * rows.clamp_min(0).sum(0) + (1 - share) * rows.clamp_max(0).sum(0)
    torch.testing.assert_close(squared, expected)


@given(stacked_rows())
def test_a_keep_function_is_given_the_purity(rows):
    """0.5 where every row is zero, so that it need not know what to do with NaN."""
    seen = []
    sign_dropout(rows, keep=lambda purity: seen.append(purity.clone()) or purity)
    torch.testing.assert_close(seen, [sign_purity(rows)])


@pytest.mark.parametrize("n", [1000, 100_000], ids=["small", "large enough for the fast draw"])
def test_draws_are_on_the_whole_grid_of_24_bits(n):
    sums = SignSums(leaky=False)
    sums.add(torch.ones(n), 0.0)
    grid = sums.draw(torch.Generator().manual_seed(0)) * 2**24
    assert torch.equal(grid, grid.round())
    assert 0 <= grid.min() < grid.max() < 2**24
    for bit in range(24):
        share = (grid.long() >> bit & 1).double().mean()
        assert abs(share - 0.5) < 5 * 0.5 / n**0.5  # five standard errors


# -- marginalized --


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=str)
def test_the_marginalized_layer_has_the_worked_values(case):
    rows = torch.tensor([GOLDEN["g1"], GOLDEN["g2"]], dtype=torch.float64)
    result = sign_dropout(
        rows,
        uniform=torch.tensor(GOLDEN["U"], dtype=torch.float64),
        activation=torch.tensor(GOLDEN["A"], dtype=torch.float64),
        marginalize=0,
        leak=case["leak"],
        keep=case["keep"],
        renormalize=case["renormalize"],
    )
    torch.testing.assert_close(result, torch.tensor(case["result"], dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_not_marginalized_has_the_worked_values():
    rows = torch.tensor([GOLDEN["g1"], GOLDEN["g2"]])
    uniform = torch.tensor(GOLDEN["not_marginalized"]["U"])
    assert sign_dropout(rows, uniform=uniform).tolist() == GOLDEN["not_marginalized"]["result"]


def test_the_marginalized_mean_has_the_worked_values():
    rows = torch.tensor([GOLDEN["g1"], GOLDEN["g2"]], dtype=torch.float64)
    mean = marginalized_mean(rows, torch.tensor(GOLDEN["A"], dtype=torch.float64), (0,))
    torch.testing.assert_close(mean, torch.tensor(GOLDEN["expectation_leak0_keep1"], dtype=torch.float64))


def marginalized_mean(rows: Tensor, activation: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The mean of the marginalized result, by integrating over one U that all decisions share."""
    marginals = (rows * activation.sign()).sum([d + 1 for d in dims], keepdim=True)
    ends = torch.cat([torch.zeros(1), sign_purity(marginals).flatten(), torch.ones(1)]).double().sort().values
    mean = torch.zeros_like(rows[0])
    for low, high in pairwise(ends):
        uniform = torch.full(marginals.shape[1:], float(low + high) / 2, dtype=torch.float64)
        result = sign_dropout(rows, uniform=uniform, activation=activation, marginalize=dims)
        mean += (high - low) * result
    return mean


@given(stacked_rows(min_losses=2, max_losses=4), stacked_rows(min_losses=3, max_losses=3))
def test_the_marginal_of_the_mean_is_the_sum_of_marginals(base, pattern):
    width = min(base.shape[1], pattern.shape[1])
    rows = base[:, None, :width] * pattern[:, :width].roll(1, 0)[None]  # (T, 3, n)
    activation = pattern[:, :width].roll(1, 1)
    mean = marginalized_mean(rows, activation, (0,))
    torch.testing.assert_close((activation.sign() * mean).sum(0), (activation.sign() * rows).sum((0, 1)))


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 2, 3), (-1,), (0, 1, 2, 3)])
def test_marginalizing_draws_one_number_for_each_joint_decision(dims):
    rows, activation = torch.randn(3, 2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    positive = {d % 4 for d in dims}
    shape = [1 if d in positive else n for d, n in enumerate(activation.shape)]
    result = sign_dropout(rows, uniform=torch.full(shape, 0.5), activation=activation, marginalize=dims)
    marginals = (rows * activation.sign()).sum([d + 1 for d in positive], keepdim=True)
    kept = torch.where(sign_purity(marginals) > 0.5, marginals >= 0, marginals <= 0)
    torch.testing.assert_close(result, (rows * kept).sum(0))


@given(stacked_rows(min_losses=2), uniforms())
def test_renormalizing_gives_the_norm_of_the_plain_sum(rows, uniform):
    result = sign_dropout(rows, uniform=full(rows, uniform), renormalize=True)
    dropped = sign_dropout(rows, uniform=full(rows, uniform))
    expected = rows.sum(0).norm() if dropped.norm() > 0 else torch.zeros((), dtype=rows.dtype)
    torch.testing.assert_close(result.norm(), expected)


# -- odd numbers --


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_an_overflow_stays_visible_even_where_it_is_dropped(bad, uniform, leak):
    rows = torch.tensor([[bad, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    draws = torch.full((2,), uniform)
    for result in (sign_dropout(rows, uniform=draws, leak=leak), stream(rows, draws, [leak] * 3)):
        assert not result[0].isfinite()
        assert result[1] == 3


@pytest.mark.parametrize("shape", [(2, 0), (3, 0, 4), (2, 4, 0)])
def test_empty_tensors_stay_empty(shape):
    rows = torch.zeros(shape)
    assert sign_purity(rows).shape == shape[1:]
    assert sign_dropout(rows).shape == shape[1:]


def test_scalars_are_coordinates_too():
    assert sign_dropout(torch.tensor([3.0, -1.0]), uniform=torch.tensor(0.9)).item() == -1


def test_where_all_rows_are_zero_the_result_is_zero():
    assert torch.equal(sign_dropout(torch.zeros(3, 4)), torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_rows_are_summed_and_compared_in_float32(dtype):
    rows = torch.tensor([[1.0, 300.0]] + [[2.0**-9, 300.0]] * 512, dtype=dtype)
    result = sign_dropout(rows)
    assert result.dtype == dtype
    assert result[0] == 2  # 1 + 512 * 2**-9: half-precision sums would stay at 1


def test_a_half_precision_draw_never_drops_a_unanimous_gradient():
    rows = torch.ones(2, 100_000, dtype=torch.bfloat16)
    assert (sign_dropout(rows, generator=torch.Generator().manual_seed(0)) == 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 99_999), (2, 400, 500)])
def test_draws_are_uniform_and_independent_of_their_neighbours(dtype, shape):
    """In full conflict the positive sign is picked iff U < 0.3: its share, and that of pairs, within five errors."""
    rows = torch.stack([torch.full(shape[1:], 0.3, dtype=dtype), torch.full(shape[1:], -0.7, dtype=dtype)])
    picked = (sign_dropout(rows, generator=torch.Generator().manual_seed(1)) > 0).flatten().double()
    error = 5 * math.sqrt(0.21 / len(picked))
    assert abs(picked.mean() - 0.3) < error
    for lag in (1, 2, 3):
        assert abs((picked[lag:] * picked[:-lag]).mean() - 0.09) < error


def test_fast_draws_pass_tests_of_randomness():
    """Of numbers, of neighbours, of the same place in successive steps: p-values over many draws are uniform."""
    n, kinds, cells, before = 2**16, {"numbers": [], "neighbours": [], "steps": [], "rows": []}, 32, None
    draws = Draws(7)
    for _ in range(150):
        uniform = draw_uniform(torch.empty(n), draws.next(torch.device("cpu")))
        assert len(uniform.unique()) == pytest.approx(2**24 * (1 - (1 - 2**-24) ** n), rel=1e-3)  # none too often
        cell = (uniform * cells).long()
        kinds["numbers"].append(_p_value(uniform.mul(1024).long(), 1024))
        kinds["neighbours"].append(_p_value(cell[:-1:2] * cells + cell[1::2], cells**2))
        kinds["rows"].append(_p_value(cell[:-512] * cells + cell[512:], cells**2))
        if before is not None:
            kinds["steps"].append(_p_value(cell * cells + before, cells**2))
        before = cell
    for kind, values in kinds.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-3, kind
        assert min(values) > 1e-5, kind


def _p_value(cells, n_cells):
    return stats.chisquare(torch.bincount(cells, minlength=n_cells).numpy()).pvalue


def test_given_draws_are_not_changed():
    uniform = torch.full((4,), 0.25)
    sign_dropout(torch.randn(3, 4), uniform=uniform)
    assert (uniform == 0.25).all()


def test_rows_that_are_not_contiguous_give_the_same_result():
    rows = torch.randn(3, 2, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    draws = torch.rand(2, 4, 5, 6)
    torch.testing.assert_close(sign_dropout(rows, uniform=draws), sign_dropout(rows.contiguous(), uniform=draws))
    pictures = [row.contiguous(memory_format=torch.channels_last) for row in rows]
    torch.testing.assert_close(stream(pictures, draws, [0.0] * 3), sign_dropout(rows, uniform=draws))


def test_rows_are_not_changed():
    rows = torch.randn(3, 5)
    before = rows.clone()
    sign_dropout(rows, leak=0.5, renormalize=True)
    stream(rows, torch.rand(5), [0.5, 0, 0])
    assert torch.equal(rows, before)


# -- refusals --


@pytest.mark.parametrize("function", [sign_purity, sign_dropout])
def test_rows_must_be_real_tensors_with_a_loss_dimension(function):
    with pytest.raises(ValueError, match="`rows` must have one row per loss"):
        function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="T > 0"):
        function(torch.zeros(0, 3))
    for bad in (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.complex64), [[1.0]]):
        with pytest.raises(TypeError, match="`rows` must be a real floating-point tensor"):
            function(bad)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"leak": -0.1}, ValueError, "`leak` must be between 0"),
        ({"leak": [0.0, 1.5]}, ValueError, r"`leak\[1\]` must be between 0"),
        ({"leak": math.nan}, ValueError, "`leak` must be between 0"),
        ({"leak": [0.0]}, ValueError, "`leak` has 1 values for 2 losses"),
        ({"keep": -1}, ValueError, "`keep` must be 0 or"),
        ({"keep": math.inf}, ValueError, "`keep` must be 0 or"),
        ({"keep": "half"}, TypeError, "`keep` must be a number or a function"),
        ({"marginalize": 0}, ValueError, "`activation` must have the shape of a row"),
        ({"marginalize": 2, "activation": torch.ones(3, 4)}, ValueError, "`marginalize` names dim 2"),
        ({"marginalize": (0, -2), "activation": torch.ones(3, 4)}, ValueError, "twice"),
        ({"marginalize": (), "activation": torch.ones(3, 4)}, ValueError, "`marginalize` must be a dim"),
        ({"marginalize": True, "activation": torch.ones(3, 4)}, ValueError, "`marginalize` must be a dim"),
        ({"uniform": torch.zeros(5)}, ValueError, "`uniform` must have one draw per decision"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        sign_dropout(torch.randn(2, 3, 4), **settings)


@pytest.mark.parametrize("scale", [1e-40, 1e-26, 1.0, 1e34])
def test_renormalized_rows_of_any_size_are_as_long_as_their_sum(scale):
    """Where float32 does not hold the squares, too."""
    rows = scale * torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    found = sign_dropout(rows, renormalize=True, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.double().norm(), rows.sum(0).double().norm(), rtol=1e-3, atol=0)
