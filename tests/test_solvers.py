"""The small solvers: against scipy, against the conditions of optimality, and on hard matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hard import HARD, REGULAR
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize, nnls, root

from mtopt._methods import few, solvers


def unit(rows):
    """The rows at length 1, those of zeros left out, and their lengths."""
    norms = rows.norm(dim=1)
    return (rows / norms[:, None])[norms > 0], norms[norms > 0]


def scipy_min_norm(gramian):
    n = len(gramian)
    g = (gramian / gramian.diagonal().max()).numpy()
    simplex = [{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)}]
    bounds = [(0, 1)] * n
    start = np.full(n, 1 / n)
    fit = minimize(lambda w: w @ g @ w, start, jac=lambda w: 2 * g @ w, bounds=bounds, constraints=simplex, tol=1e-14)
    return torch.from_numpy(fit.x)


@pytest.mark.parametrize("name", HARD)
def test_min_norm_lies_on_the_simplex_and_is_optimal(name):
    """Optimal: every row's product with the shortest vector is its squared length or more."""
    gramian = HARD[name] @ HARD[name].T
    weights = solvers.min_norm(gramian)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    shortest = weights @ gramian @ weights
    longest = gramian.diagonal().max()
    assert ((gramian @ weights - shortest) >= -2e-8 * longest).all()


@pytest.mark.parametrize("name", [*REGULAR, "more rows than dims", "zero row", "opposite, unequal", "nearly opposite"])
def test_min_norm_is_no_longer_than_scipy_s(name):
    gramian = HARD[name] @ HARD[name].T
    ours, theirs = solvers.min_norm(gramian), scipy_min_norm(gramian)
    assert ours @ gramian @ ours <= theirs @ gramian @ theirs + 1e-8 * gramian.diagonal().max()


@pytest.mark.parametrize("name", REGULAR)
def test_min_norm_is_scipy_s(name):
    gramian = HARD[name] @ HARD[name].T
    torch.testing.assert_close(solvers.min_norm(gramian), scipy_min_norm(gramian), rtol=0, atol=2e-5)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 4))
def test_nonnegative_qp_is_scipy_s_nnls(seed, n, n_problems):
    """½|A v - y|² has the matrix AᵀA and the linear part Aᵀy."""
    random = torch.Generator().manual_seed(seed)
    a = torch.randn(n + 3, n, generator=random, dtype=torch.float64)
    y = torch.randn(n_problems, n + 3, generator=random, dtype=torch.float64)
    ours = solvers.nonnegative_qp(a.T @ a, y @ a)
    theirs = torch.stack([torch.from_numpy(nnls(a.numpy(), row.numpy())[0]) for row in y])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@given(st.integers(0, 10_000), st.integers(2, 16), st.floats(1e-8, 1e-2))
def test_nonnegative_qp_ends_at_an_optimum_also_where_rows_are_dependent(seed, n, floor):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, max(1, n // 3), generator=random, dtype=torch.float64)
    matrix = rows @ rows.T / rows.square().sum() + floor * torch.eye(n, dtype=torch.float64)
    linear = torch.randn(n, generator=random, dtype=torch.float64)
    v = solvers.nonnegative_qp(matrix, linear)
    slope = matrix @ v - linear
    size = 1e-9 * (1 + v.abs().max())
    assert (v >= 0).all()
    assert (slope >= -size).all()
    assert (slope[v > size].abs() <= size).all()


@pytest.mark.parametrize("name", HARD)
def test_projections_conflict_with_no_row_and_are_the_nearest(name):
    """Nearest: what is added to the weights belongs to rows at a right angle to the projection."""
    rows = HARD[name]
    norms = rows.norm(dim=1)
    each = torch.eye(len(rows), dtype=torch.float64)
    added = solvers.dual_cone_projection(rows @ rows.T, each) - each
    unit_rows = torch.nn.functional.normalize(rows)
    slack = (each + added) @ rows @ unit_rows.T
    size = 1e-12 if name in REGULAR else 1e-3  # with dependent rows as precise as weights are: the root of FLOOR
    assert (added >= 0).all()
    assert (slack >= -size * norms[:, None]).all()
    assert ((added * norms * slack).abs() <= size * norms[:, None].square() + 1e-300).all()


@pytest.mark.parametrize("name", [*REGULAR, "zero row", "equal rows", "opposite, unequal"])
def test_projections_are_scipy_s(name):
    """min |Aᵀz + g|² over z ≥ 0."""
    rows = HARD[name]
    ours = solvers.dual_cone_projection(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64)) @ rows
    theirs = [row + torch.from_numpy(nnls(rows.T.numpy(), -row.numpy())[0]) @ rows for row in rows]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-6, atol=1e-6)


def scipy_conflict_averse(gramian, c):
    """The dual problem, as the paper's code solves it: min over the simplex of g_w·g_0 + c |g_0| |g_w|."""
    n = len(gramian)
    g = (gramian / gramian.diagonal().mean()).numpy()
    mean = np.full(n, 1 / n)
    radius = c * math.sqrt(mean @ g @ mean)

    def dual(w):
        return w @ g @ mean + radius * math.sqrt(w @ g @ w + 1e-30)

    fit = minimize(dual, mean, bounds=[(0, 1)] * n, constraints=LinearConstraint(np.ones(n), 1, 1), tol=1e-15)
    length = math.sqrt(fit.x @ g @ fit.x)
    return torch.from_numpy(mean + radius / length * fit.x)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("name", ["independent", "in conflict", "two"])
def test_conflict_averse_is_scipy_s(name, c):
    gramian = HARD[name] @ HARD[name].T
    ours, theirs = solvers.conflict_averse(gramian, c), scipy_conflict_averse(gramian, c)
    torch.testing.assert_close(ours @ HARD[name], theirs @ HARD[name], rtol=2e-3, atol=2e-3)
    assert (gramian @ ours).min() >= (gramian @ theirs).min() - 1e-9 * gramian.diagonal().max()


@pytest.mark.parametrize("c", [0.0, 0.4, 1.0, 2.0])
@pytest.mark.parametrize("name", HARD)
def test_conflict_averse_stays_in_its_ball_and_is_best_for_the_worst_loss(name, c):
    """Best: no random point of the ball does better."""
    rows = HARD[name]
    found, mean = solvers.conflict_averse(rows @ rows.T, c) @ rows, rows.mean(0)
    radius = c * mean.norm()
    assert (found - mean).norm() <= radius * (1 + 1e-6) + 1e-9 * rows.abs().max()
    moves = torch.randn(200, rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = mean + radius * moves / moves.norm(dim=1, keepdim=True)
    tolerance = 1e-6 * rows.norm(dim=1).max() * (radius + mean.norm())
    assert (rows @ found).min() >= (rows @ others.T).min(0).values.max() - tolerance


@pytest.mark.parametrize("power", [0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", [*REGULAR, "zero row", "equal rows", "parallel", "all tiny", "all huge"])
def test_fair_weights_solve_their_equation(name, power):
    gramian = HARD[name] @ HARD[name].T
    weights = solvers.fair_weights(gramian, power)
    here = gramian.diagonal() > 0
    assert (weights[~here] == 0).all()
    assert (weights[here] > 0).all()
    torch.testing.assert_close((gramian @ weights)[here], weights[here] ** -power, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["independent", "in conflict", "two"])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_fair_weights_are_scipy_s(name, power):
    gramian = HARD[name] @ HARD[name].T
    fit = root(lambda x: gramian.numpy() @ np.exp(x) - np.exp(-power * x), np.zeros(len(gramian)), tol=1e-12)
    torch.testing.assert_close(solvers.fair_weights(gramian, power), torch.from_numpy(np.exp(fit.x)))


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("power", [0.2, 1.0, 5.0, 50.0])
def test_fair_weights_are_finite(name, power):
    weights = solvers.fair_weights(HARD[name] @ HARD[name].T, power)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", HARD)
def test_given_cosines_are_numpy_s_least_squares(name, equal):
    rows, norms = unit(HARD[name])
    here = HARD[name].norm(dim=1) > 0
    products = torch.ones(len(here), dtype=torch.float64) if equal else torch.arange(len(here)).double()
    weights = solvers.given_cosines(HARD[name] @ HARD[name].T, products)
    assert (weights[HARD[name].norm(dim=1) == 0] == 0).all()
    if len(norms) > 0:
        theirs, *_ = np.linalg.lstsq(rows.numpy(), products[here].numpy(), rcond=1e-4)
        ours = weights[HARD[name].norm(dim=1) > 0] @ rows
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_solvers_know_no_order(seed, n):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, n + 2, generator=random, dtype=torch.float64)
    order = torch.randperm(n, generator=random)
    gramian = rows @ rows.T
    turned = gramian[order][:, order]
    for solve in (
        solvers.min_norm,
        lambda g: solvers.conflict_averse(g, 0.4),
        lambda g: solvers.fair_weights(g, 1.0),
        lambda g: solvers.given_cosines(g, torch.ones(len(g), dtype=torch.float64)),
    ):
        torch.testing.assert_close(solve(turned), solve(gramian)[order], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("below", [1 - 5.5e-8, 1 + 5.5e-8])
def test_a_gramian_that_rounding_made_asymmetric_is_no_singular_one(below):
    """Two copies, whose products were rounded to both sides."""
    gramian = torch.tensor([[1.0, 1 / below], [below, 1.0]], dtype=torch.float64)
    for weights in (
        solvers.min_norm(gramian),
        solvers.conflict_averse(gramian, 0.4),
        solvers.fair_weights(gramian, 1.0),
    ):
        assert weights.isfinite().all()
        assert (weights >= 0).all()


# -- a few rows, in plain Python ---------------------------------------------------------------------------------------


def gramians(n_rows, how_many=150):
    """Of rows of very unequal lengths, some of them dependent or nearly opposite."""
    generator = torch.Generator().manual_seed(n_rows)
    for k in range(how_many):
        rank = 1 + k % (n_rows + 1)
        lengths = 10 ** (6 * torch.rand(n_rows, 1, generator=generator, dtype=torch.float64) - 3)
        rows = torch.randn(n_rows, rank, generator=generator, dtype=torch.float64) * lengths
        if k % 7 == 0:
            rows[0] = 1e-3 * rows[0] - rows[1]
        yield rows @ rows.T


@pytest.mark.parametrize("n_rows", [2, 3, 4])
@pytest.mark.parametrize("name", ["min_norm", "dual_cone_projection", "given_cosines"])
def test_few_rows_have_the_weights_that_many_have(monkeypatch, name, n_rows):
    given = {"dual_cone_projection": torch.eye(n_rows).double(), "given_cosines": torch.arange(n_rows).double()}
    vectors = (given[name],) if name in given else ()
    solved = 0
    for gramian in gramians(n_rows):
        as_lists = (vector.tolist() for vector in vectors)
        solved += getattr(few, name)(gramian.tolist(), *as_lists, solvers.FLOOR) is not None
        ours = getattr(solvers, name)(gramian, *vectors)
        with monkeypatch.context() as patch:
            patch.setattr(few, "FEW", 0)
            expected = getattr(solvers, name)(gramian, *vectors)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))
    assert solved > 50
