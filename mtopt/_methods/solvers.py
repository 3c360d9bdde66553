"""Small convex problems over the weights of T rows, solved in float64 from their Gramian. No method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import few

FLOOR = 1e-8
"""Least eigenvalue of the Gramian of rows of length 1: what it is raised to where rows are linearly dependent.

Float32 rows say nothing of a part of them below 1e-7 of their length. A lower floor would let weights of 1e4 and more
cancel each other.
"""

ROUNDS = 500
"""A bound against endless loops by rounding; some 5 to 20 are usual."""


def min_norm(gramian: Tensor) -> Tensor:
    r"""The shortest vector in the convex hull of the rows: $\arg\min_w w^T G w$ over $w \ge 0$, $\sum_i w_i = 1$.

    Up to its length it is $\arg\min_{v \ge 0} ½ v^T G v - \sum_i v_i$.
    """
    small = few.read(gramian)
    if small is not None and (weights := few.min_norm(small, FLOOR)) is not None:
        return gramian.new_tensor(weights)
    zero = gramian.diagonal() == 0
    if zero.any():
        return zero / zero.sum(dtype=gramian.dtype)
    cosines, norms = unit_rows(gramian)
    lengths = nonnegative_qp(cosines, norms.min() / norms) / norms
    return lengths / lengths.sum()


def dual_cone_projection(gramian: Tensor, weights: Tensor, eps: float = 0.0) -> Tensor:
    r"""Weights of the vector nearest to $\sum_i w_i g_i$ that conflicts with no row: $\arg\min_{v \ge w} v^T G v$.

    Args:
        gramian: Shape `(T, T)`.
        weights: $w \ge 0$, shape `(T,)`, or `(B, T)` for several vectors. It is kept for a row of zeros.
        eps: What is added to the diagonal of $G$, as a share of its trace.

    Source:
        Proposition 1 of Quinton, Rey 2024, [arXiv:2406.16232](https://arxiv.org/abs/2406.16232).
    """
    if eps:
        gramian = gramian + eps * gramian.trace() * torch.eye(len(gramian), dtype=gramian.dtype)
    small = few.read(gramian)
    if small is not None:
        found = few.dual_cone_projection(small, weights.reshape(-1, len(gramian)).tolist(), FLOOR)
        if found is not None:
            return weights.new_tensor(found).reshape(weights.shape)
    projected = weights.clone()
    here = gramian.diagonal() > 0
    if here.any():
        cosines, norms = unit_rows(gramian[here][:, here])
        projected[..., here] += nonnegative_qp(cosines, -(weights[..., here] * norms @ cosines)) / norms
    return projected


def nonnegative_qp(matrix: Tensor, linear: Tensor) -> Tensor:
    r"""$\arg\min_{v \ge 0} ½ v^T H v - b^T v$, by block principal pivoting.

    Args:
        matrix: $H$, positive definite, shape `(T, T)`.
        linear: $b$, shape `(T,)`, or `(B, T)` for several problems with the same $H$.

    Source:
        Júdice, Pires 1994; Algorithm 2 of Kim, Park 2011, SIAM J. Sci. Comput. 33(6).
    """
    linears = linear.reshape(-1, linear.shape[-1])
    if (linears > 0).all():  # often no bound is active
        solutions: Tensor = torch.linalg.solve(matrix, linears.T).T
        if (solutions >= 0).all():
            return solutions.reshape(linear.shape)
    solutions = torch.zeros_like(linears)
    problem = torch.arange(len(linears))
    free = linears > 0
    fewest = torch.full_like(problem, len(matrix) + 1)
    patience = torch.full_like(problem, 3)
    for _ in range(ROUNDS):
        b = linears[problem]
        v = _solve_free(matrix, b, free)
        slope = v @ matrix - b
        rounding = 1e-12 * torch.maximum(v.abs().amax(1), b.abs().amax(1))[:, None]
        wrong = torch.where(free, v, slope) < -rounding
        solutions[problem] = v
        count = wrong.sum(1)
        going = count > 0
        if not going.any():
            break
        better = count < fewest
        fewest = torch.where(better, count, fewest)
        patience = torch.where(better, 3, patience - 1)
        # All wrong ones change sides; the last of them alone where that has not helped for a while, so that it ends.
        last = wrong & (wrong.flip(1).cumsum(1).flip(1) == 1)
        free = free ^ torch.where((patience < 0)[:, None], last, wrong)
        problem, free, fewest, patience = problem[going], free[going], fewest[going], patience[going]
    return solutions.clamp_min(0).reshape(linear.shape)


def _solve_free(matrix: Tensor, linears: Tensor, free: Tensor) -> Tensor:
    """The solutions of H v = b in the free coordinates, 0 in the others; one for each row of `free`."""
    both = free[:, :, None] & free[:, None, :]
    systems = torch.where(both, matrix, torch.eye(len(matrix), dtype=matrix.dtype))
    solutions: Tensor = torch.linalg.solve(systems, torch.where(free, linears, 0.0))
    return solutions


def conflict_averse(gramian: Tensor, radius: float) -> Tensor:
    r"""Weights of the $d$ with the largest $\min_i g_i \cdot d$ in a ball around the mean row $g_0$.

    Its radius is `radius` times $\|g_0\|$. There $d = g_0 + \sum_i v_i g_i$, where $v \ge 0$ minimizes
    $½ v^T G v - (t 1 - G m)^T v$ for the level $t = \min_i g_i \cdot d$ that puts $d$ on the sphere; $m_i = 1 / T$.
    As $t$ rises, $v$ becomes longer, and is linear in $t$ from one change of its support to the next.

    Source:
        Algorithm 1 of Liu et al. 2021, [arXiv:2110.14048](https://arxiv.org/abs/2110.14048).
    """
    weights = torch.full_like(gramian.diagonal(), 1 / len(gramian))
    here = gramian.diagonal() > 0
    products = (gramian @ weights)[here]
    square = radius**2 * float(weights[here] @ products)
    if square <= 0:
        return weights
    cosines, norms = unit_rows(gramian[here][:, here])
    highest = math.inf if here.all() else 0.0  # no vector has a product other than 0 with a row of zeros
    linear = torch.stack([1 / norms, products / norms])  # in units where every row has length 1
    support = torch.ones_like(norms, dtype=torch.bool)  # often right; if not, the path is followed from near by
    rising = None
    for _ in range(ROUNDS):
        rise, base = _solve_free(cosines, linear, support.expand(2, -1))  # v = t rise - base
        level = min(_level_on_sphere(cosines, rise, base, square), highest)
        # Linear in t as well, and never below 0: v in the support, the slope of the objective elsewhere.
        growth = torch.where(support, rise, cosines @ rise - linear[0])
        offset = torch.where(support, base, cosines @ base - linear[1])
        if level < math.inf and (level * growth - offset >= -1e-12 * offset.abs().max()).all():
            break
        if rising is None:
            level = level if level < math.inf else float(products.min()) + math.sqrt(square) * float(norms.max())
            v = nonnegative_qp(cosines, level * linear[0] - linear[1])
            support, rising = v > 0, float(v @ cosines @ v) < square
        elif rising:
            change = torch.where(growth < 0, offset / growth, math.inf).argmin()
            support[change] = ~support[change]
        else:
            change = torch.where(growth > 0, offset / growth, -math.inf).argmax()
            support[change] = ~support[change]
    weights[here] += (level * rise - base).clamp_min(0) / norms
    return weights


def _level_on_sphere(cosines: Tensor, rise: Tensor, base: Tensor, square: float) -> float:
    """The level t at which v = t rise - base has the squared length `square`; infinity if there is none."""
    a, b, c = float(rise @ cosines @ rise), float(rise @ cosines @ base), float(base @ cosines @ base)
    inside = b * b - a * (c - square)
    return (b + math.sqrt(inside)) / a if a > 0 and inside >= 0 else math.inf


def fair_weights(gramian: Tensor, power: float) -> Tensor:
    r"""The $w > 0$ with $(G w)_i = w_i^{-p}$; 0 for a row of zeros.

    In units where every row has length 1 it is the least point of a convex function, found by damped Newton steps.

    Source:
        $p = 1$: claim 3.1 of Navon et al. 2022, [arXiv:2202.01017](https://arxiv.org/abs/2202.01017); $p = 1 / \alpha$:
        eq. (4) of Ban, Ji 2024, [arXiv:2402.15638](https://arxiv.org/abs/2402.15638).
    """
    weights = torch.zeros_like(gramian.diagonal())
    here = gramian.diagonal() > 0
    if not here.any():
        return weights
    cosines, norms = unit_rows(gramian[here][:, here])
    start = norms ** ((power - 1) / (power + 1))  # exact where the rows are orthogonal
    u = start
    for _ in range(ROUNDS):
        pull = start * (start / u) ** power  # norms ** (power - 1) * u**-power, which would overflow on the way
        curvature = cosines + torch.diag(power * pull / u)
        step = torch.linalg.solve(curvature, pull - cosines @ u)
        longest = float((step / u).abs().max())
        u = torch.maximum(u + step / (1 + longest if longest > 0.1 else 1), u / 10)
        if longest < 1e-7:  # the next step would be the square of this
            break
    weights[here] = u / norms
    return weights


def given_cosines(gramian: Tensor, products: Tensor) -> Tensor:
    r"""Weights $u$ of the rows at length 1 in a vector whose product with each is the one given; 0 for a row of zeros.

    $u = C^+ p$ with the cosines $C$ and the products $p$: the least squares, where rows are linearly dependent. All are
    0 where that vector is 0, as for two opposite rows and equal products, and not what rounding makes of it.
    """
    small = few.read(gramian)
    if small is not None and (found := few.given_cosines(small, products.tolist(), FLOOR)) is not None:
        return gramian.new_tensor(found)
    weights = torch.zeros_like(gramian.diagonal())
    here = gramian.diagonal() > 0
    norms, wanted = gramian.diagonal()[here].sqrt(), products[here]
    cosines = gramian[here][:, here] / norms / norms[:, None]
    solution = torch.linalg.pinv(cosines, rtol=FLOOR, hermitian=True) @ wanted
    # This is the squared length of $\sum_i u_i g_i / \|g_i\|$: as a share of $p^T p$ no more than rounding, it is 0.
    weights[here] = torch.where(solution @ wanted > 1e-12 * wanted.square().sum(), solution, 0)
    return weights


def unit_rows(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The Gramian of the rows at length 1, with no eigenvalue below `FLOOR`; and their lengths. No row is zero."""
    norms = gramian.diagonal().sqrt()
    cosines = gramian / norms / norms[:, None]
    cosines = (cosines + cosines.T) / 2  # what is decided from one half must hold for the other
    _, failed = torch.linalg.cholesky_ex(cosines - FLOOR * torch.eye(len(cosines), dtype=cosines.dtype))
    if failed:
        values, vectors = torch.linalg.eigh(cosines)
        cosines = (vectors * values.clamp_min(FLOOR)) @ vectors.T
    return cosines, norms
