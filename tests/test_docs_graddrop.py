"""The pages on GradDrop: what their pictures show is true, and each law of the theory has tests, some of them here."""

from __future__ import annotations

import ast
import math
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from laws import integrate
from strategies import leaks, stacked_rows, uniforms
from torch import Tensor

from mtopt import GradDrop, MultiLossLayer, sign_dropout, sign_purity
from mtopt._draws import uniform as draw
from mtopt._signs import SignSums, kept_shares, pick_positive

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs/pictures"
NAMES = ("purity", "pick", "leak", "batch", "noise")
THEORY = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
SECTIONS = dict(section.split("\n", 1) for section in re.split(r"^## ", THEORY, flags=re.MULTILINE)[1:])
LAWS = {  # of docs/theory.md, each with the tests that hold it
    "Purity is a share": (
        "test_signs::test_purity_is_between_0_and_1",
        "test_signs::test_purity_mirrors_when_signs_flip",
        "test_signs::test_purity_does_not_see_the_scale",
        "test_signs::test_purity_does_not_see_the_order_of_losses",
        "test_signs::test_purity_is_half_of_one_plus_the_ratio_of_sums",
        "test_signs::test_purity_has_the_papers_values",
    ),
    "The result has one sign": (
        "test_signs::test_without_leak_a_coordinate_is_the_positive_mass_or_the_negative_or_nothing",
        "test_docs_graddrop::test_no_row_that_is_kept_points_against_the_result",
        "test_signs::test_the_result_scales_with_the_rows",
        "test_signs::test_the_order_of_losses_is_irrelevant",
    ),
    "Agreement is kept": (
        "test_signs::test_unanimous_rows_are_summed_bit_for_bit_in_every_dtype",
        "test_graddrop::test_half_rows_are_decided_in_float32_in_every_form",
        "test_docs_graddrop::test_below_slope_one_agreement_is_kept_or_dropped_as_a_whole",
    ),
    "A loss alone is kept": (
        "test_signs::test_a_single_loss_is_kept_bit_for_bit",
        "test_signs::test_a_coordinate_of_one_loss_alone_is_kept_bit_for_bit",
        "test_layer::test_a_loss_that_does_not_come_back_has_no_row",
        "test_docs_graddrop::test_a_row_alone_at_its_site_is_never_picked_away",
    ),
    "Leak interpolates": (
        "test_signs::test_the_result_is_linear_in_the_leak",
        "test_signs::test_a_full_leak_is_the_plain_sum_bit_for_bit",
        "test_docs_graddrop::test_one_leak_for_all_shrinks_the_deviation_and_keeps_the_mean",
        "test_docs_graddrop::test_with_leaks_the_mean_has_each_row_by_its_chance",
    ),
    "The mean is a share of the sum": (
        "test_signs::test_the_mean_is_a_share_of_the_sum",
        "test_docs_graddrop::test_above_slope_one_the_mean_is_no_shorter_than_the_sum",
        "test_signs::test_a_keep_function_is_taken_as_it_is",
        "test_signs::test_mean_and_variance_of_the_worked_example",
    ),
    "The variance is what the losses dispute": (
        "test_signs::test_the_variance_is_that_of_a_choice_between_the_two_masses",
        "test_signs::test_at_slope_one_the_variance_is_positive_times_negative_mass",
        "test_signs::test_mean_and_variance_of_the_worked_example",
        "test_docs_graddrop::test_at_the_same_mean_a_smaller_slope_has_more_noise",
    ),
    "It rests only where every gradient is zero": (
        "test_signs::test_the_update_is_surely_zero_only_where_every_row_is",
        "test_signs::test_total_cancellation_still_moves",
        "test_docs_graddrop::test_with_leaks_below_one_only_zero_rows_stand_still",
    ),
    "It moves by most of the larger mass": (
        "test_signs::test_the_mean_size_is_at_least_a_share_of_the_larger_mass",
        "test_docs_graddrop::test_the_bound_on_the_mean_size_is_reached",
    ),
    "One decision for a batch": (
        "test_docs_graddrop::test_the_marginalized_mean_has_each_row_by_its_chance",
        "test_signs::test_the_marginalized_mean_has_the_worked_values",
        "test_signs::test_the_marginal_of_the_mean_is_the_sum_of_marginals",
        "test_docs_graddrop::test_the_marginal_of_the_mean_is_a_share_by_the_slope",
        "test_docs_graddrop::test_votes_that_agree_drop_nothing",
    ),
    "Draws have 24 bits": (
        "test_signs::test_a_half_precision_draw_never_drops_a_unanimous_gradient",
        "test_signs::test_purity_is_float32_or_wider",
        "test_signs::test_draws_are_uniform_and_independent_of_their_neighbours",
        "test_docs_graddrop::test_draws_are_multiples_of_two_to_the_minus_24_whatever_the_dtype",
        "test_docs_graddrop::test_a_small_share_in_half_precision_gets_its_turn_as_often_as_it_should",
    ),
    "Masks multiply": ("test_signs::test_an_overflow_stays_visible_even_where_it_is_dropped",),
    "Renormalizing biases the mean": (
        "test_signs::test_renormalizing_gives_the_norm_of_the_plain_sum",
        "test_docs_graddrop::test_renormalizing_never_lengthens_the_mean",
        "test_docs_graddrop::test_renormalized_one_coordinate_has_the_mean_of_a_coin",
        "test_docs_graddrop::test_renormalized_total_cancellation_stands_still",
    ),
}

# -- the theory page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_every_law_has_a_statement_a_proof_and_tests_that_exist(law):
    assert SECTIONS[law].index("**Law.**") < SECTIONS[law].index("**Proof.**")
    assert LAWS[law]
    for file, test in (name.split("::") for name in LAWS[law]):
        tree = ast.parse((ROOT / f"tests/{file}.py").read_text(encoding="utf-8"))
        assert test in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], file


def test_no_law_stands_outside_of_the_list():
    assert [title for title, text in SECTIONS.items() if "**Law.**" in text] == list(LAWS)
    assert "thirteen laws" in THEORY
    assert len(LAWS) == 13


# -- the pictures ------------------------------------------------------------------------------------------------------


@pytest.fixture
def graddrop(monkeypatch):
    monkeypatch.syspath_prepend(PICTURES)
    import graddrop

    return graddrop


def bars(axes):
    """The heights of the bars with a label."""
    return {group.get_label(): [bar.get_height() for bar in group] for group in axes.containers}


def points(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def results(axes):
    texts = [text.get_text().replace("−", "-") for text in axes.texts]
    return [float(text.removeprefix("result\n")) for text in texts if text.startswith("result\n")]


def words(svg: str) -> list[str]:
    """The texts in a picture, which matplotlib writes as comments beside the outlines of their letters."""
    return re.findall(r"<!-- (.*?) -->", svg)


def test_the_picture_of_purity_shows_the_share_that_is_positive(graddrop):
    above, below = graddrop.purity().axes
    columns = zip(*(bars(above)[f"loss {i}"] for i in (1, 2, 3)), strict=True)
    shares = [sum(g for g in column if g > 0) / sum(map(abs, column)) for column in columns]
    assert shares == [1, 0.7, 0.5, 0]
    assert bars(below)["positive share P"] == pytest.approx(shares)
    assert bars(below)["negative share"] == pytest.approx([1 - share for share in shares])


def test_the_picture_of_a_pick_keeps_the_rows_of_the_picked_sign(graddrop):
    above, below = graddrop.pick().axes
    rows = list(zip(*graddrop.ROWS.tolist(), strict=True))
    kept = list(zip(*(bars(above)[f"loss {i}, kept"] for i in (1, 2, 3)), strict=True))
    draws = zip(points(below)["the draw U"], bars(below)["positive share P"], strict=True)
    signs = [1 if uniform < share else -1 for uniform, share in draws]
    assert kept == [tuple(g if g * sign > 0 else 0 for g in row) for row, sign in zip(rows, signs, strict=True)]
    assert results(above) == [sum(column) for column in kept]


def test_the_picture_of_leak_protects_the_target(graddrop):
    for axes, source, targets in zip(graddrop.leak().axes, (7, 0), ([0, -1.5, -3], [-3, -3, -3]), strict=True):
        assert bars(axes)["source (7)"] == [source] * 3
        assert bars(axes)["target (−3)"] == targets
        assert results(axes) == [source + target for target in targets]
    titles = [axes.get_title() for axes in graddrop.leak().axes]
    assert titles == ["positive sign picked: 70 %", "negative sign picked: 30 %"]


def test_the_picture_of_a_batch_takes_one_decision_by_the_sum_of_votes(graddrop):
    gradients, votes, sums, kept = (bars(axes) for axes in graddrop.batch().axes)
    signs = {"loss 1": (1, -1, 1), "loss 2": (-1, 1, 1)}
    for loss, of_examples in signs.items():
        assert votes[loss] == [g * sign for g, sign in zip(gradients[loss], of_examples, strict=True)]
    assert [sums["sum 1"], sums["sum 2"]] == [[sum(votes["loss 1"])], [sum(votes["loss 2"])]] == [[4], [-2]]
    decided = graddrop.batch().axes[2]
    assert decided.get_title() == "3. their sums: P = 0.67"  # 4 / (4 + 2)
    assert decided.get_xlabel() == "U = 0.3: positive is picked"
    assert (kept["loss 1"], kept["loss 2"]) == (gradients["loss 1"], [0, 0, 0])


def test_the_picture_of_noise_has_the_chances_means_and_variances_of_the_law(graddrop):
    chances, means, variances = graddrop.noise().axes
    positive, negative = 7 + 2, 3 + 1
    mass, total = positive + negative, positive - negative
    for k in (0, 0.5, 1):
        share = 0.5 + k * (positive / mass - 0.5)
        assert bars(chances)[f"k = {k:g}"] == pytest.approx([1 - share, share])
    slopes = [i / 10 for i in range(11)]
    assert list(means.lines[0].get_xdata()) == slopes
    assert list(means.lines[0].get_ydata()) == pytest.approx([(1 + k) / 2 * total for k in slopes])
    assert list(variances.lines[0].get_ydata()) == pytest.approx([(mass**2 - (k * total) ** 2) / 4 for k in slopes])
    assert (means.lines[1].get_ydata()[0], variances.lines[1].get_ydata()[0]) == (total, positive * negative)


def test_the_committed_pictures_are_those_that_the_script_draws(graddrop, tmp_path):
    graddrop.main(tmp_path)
    for name in NAMES:
        drawn, committed = ((folder / f"graddrop-{name}.svg").read_text("utf-8") for folder in (tmp_path, PICTURES))
        assert words(drawn) == words(committed)
        if f"matplotlib {matplotlib.__version__}<" in committed:  # another version may put things elsewhere
            assert drawn == committed


def test_the_pictures_have_a_white_background_and_load_nothing():
    for name in NAMES:
        svg = (PICTURES / f"graddrop-{name}.svg").read_text("utf-8")
        assert 'style="fill: #ffffff"' in svg[: svg.index('id="axes_1"')]
        assert all(reference.startswith("#") for reference in re.findall(r'(?:xlink:)?href="(.*?)"', svg))


def test_the_page_shows_every_picture_and_its_alt_text_has_only_numbers_that_are_seen():
    page = (ROOT / "docs/graddrop.md").read_text(encoding="utf-8")
    alts = {name: alt for alt, name in re.findall(r"!\[(.+?)\]\(pictures/graddrop-(\w+)\.svg\)", page)}
    assert tuple(alts) == NAMES
    for name, alt in alts.items():
        seen = " ".join(words((PICTURES / f"graddrop-{name}.svg").read_text("utf-8"))).replace("-", "−")
        assert set(re.findall(r"−?\d+(?:\.\d+)?", alt)) <= set(re.findall(r"−?\d+(?:\.\d+)?", seen)), name


# -- laws that have no test elsewhere; U is integrated out, not sampled ------------------------------------------------

slopes = st.floats(0, 1)


def masses(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.clamp_min(0).sum(0), -rows.clamp_max(0).sum(0)


def chances(rows: Tensor, slope: float) -> Tensor:
    """How probable it is that each row is kept."""
    positive, negative = masses(rows)
    share = 0.5 + slope * (positive / (positive + negative).clamp_min(1e-9) - 0.5)
    return torch.where(rows > 0, share, torch.where(rows < 0, 1 - share, torch.ones_like(rows)))


@given(stacked_rows(), uniforms(), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_no_row_that_is_kept_points_against_the_result(rows, uniform, slope):
    draws = torch.full(rows.shape[1:], uniform, dtype=torch.float64)
    kept = rows * kept_shares(rows, pick_positive(rows, draws, slope), [0.0] * len(rows))
    result = sign_dropout(rows, uniform=draws, keep=slope)
    assert torch.equal(kept.sum(0), result)
    assert (kept * result >= 0).all()


@given(stacked_rows(signs="same"), slopes)
def test_below_slope_one_agreement_is_kept_or_dropped_as_a_whole(rows, slope):
    total = rows.sum(0)
    kept = integrate(rows, lambda result: (result == total).double(), keep=slope)
    dropped = integrate(rows, lambda result: ((result == 0) & (total != 0)).double(), keep=slope)
    torch.testing.assert_close(kept + dropped, torch.ones_like(total))
    torch.testing.assert_close(dropped, torch.where(total == 0, torch.zeros_like(total), (1 - slope) / 2))


@given(stacked_rows(min_losses=1, max_losses=1), st.sampled_from([0.0, 0.5]))
def test_a_row_alone_at_its_site_is_never_picked_away(rows, slope):
    activation = torch.ones_like(rows[0], requires_grad=True)
    _, alias = MultiLossLayer(2, GradDrop(keep=slope, seed=0))(activation)
    (alias * rows[0]).sum().backward()
    assert torch.equal(activation.grad, rows[0])


@given(stacked_rows(), st.floats(0, 1))
def test_one_leak_for_all_shrinks_the_deviation_and_keeps_the_mean(rows, share):
    total, (positive, negative) = rows.sum(0), masses(rows)
    torch.testing.assert_close(integrate(rows, lambda result: result, leak=share), total)
    variance = integrate(rows, lambda result: (result - total).square(), leak=share)
    torch.testing.assert_close(variance, (1 - share) ** 2 * positive * negative)


@given(st.data(), stacked_rows(), slopes)
def test_with_leaks_the_mean_has_each_row_by_its_chance(data, rows, slope):
    each = data.draw(leaks(len(rows)))
    share = torch.tensor(each, dtype=torch.float64)[:, None]
    expected = ((share + (1 - share) * chances(rows, slope)) * rows).sum(0)
    torch.testing.assert_close(integrate(rows, lambda result: result, leak=each, keep=slope), expected)


@given(stacked_rows(), st.floats(1, 9))
def test_above_slope_one_the_mean_is_no_shorter_than_the_sum(rows, slope):
    mean, total, (positive, negative) = integrate(rows, lambda result: result, keep=slope), rows.sum(0), masses(rows)
    longer = torch.where(positive > negative, positive, -negative)
    clipped = slope * total.abs() >= rows.abs().sum(0)
    torch.testing.assert_close(mean, torch.where(clipped, longer, (1 + slope) / 2 * total))
    assert (mean.abs() >= total.abs() - 1e-9).all()


@given(stacked_rows(), slopes, slopes)
def test_at_the_same_mean_a_smaller_slope_has_more_noise(rows, one, other):
    def noise(slope):
        scaled = 2 / (1 + slope)
        return integrate(rows, lambda result: (scaled * result - rows.sum(0)).square(), keep=slope)

    assert (noise(min(one, other)) >= noise(max(one, other)) - 1e-9).all()
    torch.testing.assert_close(noise(0.0), rows.abs().sum(0).square())


@given(st.data(), stacked_rows(), slopes)
def test_with_leaks_below_one_only_zero_rows_stand_still(data, rows, slope):
    each = [min(share, 0.9) for share in data.draw(leaks(len(rows)))]
    assert torch.equal(integrate(rows, torch.abs, leak=each, keep=slope) == 0, (rows == 0).all(0))


@given(st.floats(1e-3, 1e3), st.booleans())
def test_the_bound_on_the_mean_size_is_reached(scale, turned):
    larger = -scale if turned else scale
    rows = torch.tensor([[larger], [-(math.sqrt(2) - 1) * larger]], dtype=torch.float64)
    assert integrate(rows, torch.abs).item() == pytest.approx(2 * (math.sqrt(2) - 1) * scale, rel=1e-12)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows `(T, examples, features)` and their activation."""
    n_losses, examples, features = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    size = (n_losses + 1) * examples * features
    numbers = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    both = torch.tensor(numbers, dtype=torch.float64).reshape(n_losses + 1, examples, features)
    return both[1:], both[0]


def joint_mean(rows: Tensor, activation: Tensor, slope: float) -> Tensor:
    """The mean of the result that is marginalized over the batch, by integrating over one U for all features."""
    purity = sign_purity((activation.sign() * rows).sum(1))
    ends = [0.0, *sorted((0.5 + slope * (purity - 0.5)).tolist()), 1.0]
    settings = {"activation": activation, "marginalize": 0, "keep": slope}
    mean = torch.zeros_like(rows[0])
    for low, high in pairwise(ends):
        draws = torch.full_like(purity, (low + high) / 2)
        mean += (high - low) * sign_dropout(rows, uniform=draws, **settings)
    return mean


@given(batches(), slopes)
def test_the_marginalized_mean_has_each_row_by_its_chance(batch, slope):
    rows, activation = batch
    votes = (activation.sign() * rows).sum(1, keepdim=True)
    torch.testing.assert_close(joint_mean(rows, activation, slope), (chances(votes, slope) * rows).sum(0))


@given(batches(), slopes)
def test_the_marginal_of_the_mean_is_a_share_by_the_slope(batch, slope):
    rows, activation = batch
    marginal = (activation.sign() * joint_mean(rows, activation, slope)).sum(0)
    torch.testing.assert_close(marginal, (1 + slope) / 2 * (activation.sign() * rows).sum((0, 1)))


@given(batches(), uniforms(), st.booleans())
def test_votes_that_agree_drop_nothing(batch, uniform, turned):
    rows, activation = batch
    votes = (activation.sign() * rows).sum(1, keepdim=True)
    rows = torch.where(votes < 0, -rows, rows) * (-1 if turned else 1)
    draws = torch.full(rows.shape[2:], uniform, dtype=torch.float64)
    assert torch.equal(sign_dropout(rows, uniform=draws, activation=activation, marginalize=0), rows.sum(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [2**10, 2**15, 2**15 + 1])
def test_draws_are_multiples_of_two_to_the_minus_24_whatever_the_dtype(dtype, size):
    sums = SignSums(leaky=False)
    sums.add(torch.ones(size, dtype=dtype), 0.0)
    for draws in (draw(sums.total, None), sums.draw(None)):
        assert draws.dtype == torch.float32
        assert torch.equal(draws * 2**24, (draws * 2**24).round())
        assert ((draws >= 0) & (draws < 1)).all()


def test_a_small_share_in_half_precision_gets_its_turn_as_often_as_it_should():
    size = 2**20
    rows = torch.tensor([[1.0], [-1023.0 / 1024]], dtype=torch.bfloat16).expand(-1, size) / torch.tensor(
        [[1024.0], [1]]
    )
    rows = rows.to(torch.bfloat16)
    share = sign_purity(rows[:, :1].float()).item()
    picked = (sign_dropout(rows, generator=torch.Generator().manual_seed(0)) > 0).float().mean().item()
    assert abs(picked - share) < 5 * math.sqrt(share / size)  # bfloat16 draws: 3 times as often


@given(stacked_rows(), st.sampled_from([0.0, 0.3, 1.0]))
def test_renormalizing_never_lengthens_the_mean(rows, slope):
    mean = integrate(rows, lambda result: result, keep=slope, renormalize=True)
    variance = integrate(rows, lambda result: (result - mean).square(), keep=slope, renormalize=True).sum()
    assert mean.square().sum() <= rows.sum(0).square().sum() - variance + 1e-9


@given(stacked_rows(min_losses=2), slopes)
def test_renormalized_one_coordinate_has_the_mean_of_a_coin(rows, slope):
    rows = rows[:, :1]
    assume(rows.min() < 0 < rows.max())
    total = rows.sum(0)
    expected = slope * total * total.abs() / rows.abs().sum(0)
    mean = integrate(rows, lambda result: result, keep=slope, renormalize=True)
    torch.testing.assert_close(mean, expected)


@given(stacked_rows(), uniforms())
def test_renormalized_total_cancellation_stands_still(rows, uniform):
    rows = torch.cat([rows, -rows])
    draws = torch.full(rows.shape[1:], uniform, dtype=torch.float64)
    assert torch.equal(sign_dropout(rows, uniform=draws, renormalize=True), torch.zeros_like(rows[0]))
    assert torch.equal(sign_dropout(rows, uniform=draws) == 0, (rows == 0).all(0))
