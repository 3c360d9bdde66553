"""The problems of `solvers` for a few rows, in plain Python: a call of torch would take longer than the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

FEW = 4
"""Rows up to which this is faster."""

Matrix = list[list[float]]


def read(gramian: Tensor) -> Matrix | None:
    """A small Gramian as lists; `None` if it is not small, or not finite."""
    if len(gramian) > FEW:
        return None
    matrix: Matrix = gramian.tolist()
    return matrix if all(map(math.isfinite, map(sum, matrix))) else None


def unit_rows(gramian: Matrix, floor: float) -> tuple[Matrix, list[float]] | None:
    """The Gramian of the rows at length 1, and their lengths; `None` if one is zero, or an eigenvalue below `floor`."""
    norms = [math.sqrt(row[i]) if row[i] > 0 else 0.0 for i, row in enumerate(gramian)]
    if not all(norms):
        return None
    n = range(len(norms))
    upper = [[gramian[i][j] / norms[i] / norms[j] for j in n] for i in n]
    cosines = [[(upper[i][j] + upper[j][i]) / 2 for j in n] for i in n]
    lowered = [[cosines[i][j] - floor * (i == j) for j in n] for i in n]
    return None if cholesky(lowered) is None else (cosines, norms)


def cholesky(matrix: Matrix) -> Matrix | None:
    """The lower factor of a positive definite matrix; `None` if it is not."""
    lower: Matrix = []
    for i, row in enumerate(matrix):
        new: list[float] = []
        for j in range(i):
            new.append((row[j] - sum(a * b for a, b in zip(new, lower[j], strict=False))) / lower[j][j])
        square = row[i] - sum(a * a for a in new)
        if not square > 0:
            return None
        lower.append([*new, math.sqrt(square)])
    return lower


def nonnegative_qp(matrix: Matrix, linear: Sequence[float]) -> list[float] | None:
    r"""$\arg\min_{v \ge 0} ½ v^T H v - b^T v$ for a positive definite $H$; `None` if rounding stands in the way.

    Source:
        Murty 1974: of those that are wrong, the last one changes sides, until none is.
    """
    n = range(len(linear))
    free = [b > 0 for b in linear]
    for _ in range(4 ** len(linear)):
        solution = solve(matrix, linear, [i for i in n if free[i]])
        if solution is None:
            return None
        rounding = 1e-12 * max(map(abs, (*solution, *linear)))
        slopes = [sum(h * v for h, v in zip(matrix[i], solution, strict=True)) - linear[i] for i in n]
        wrong = [i for i in n if (solution[i] if free[i] else slopes[i]) < -rounding]
        if not wrong:
            return [max(v, 0.0) for v in solution]
        free[wrong[-1]] ^= True
    return None


def solve(matrix: Matrix, linear: Sequence[float], free: Sequence[int]) -> list[float] | None:
    """The solution of H v = b in some coordinates, 0 in the others."""
    lower = cholesky([[matrix[i][j] for j in free] for i in free])
    if lower is None:
        return None
    half: list[float] = []
    for row, i in zip(lower, free, strict=True):
        half.append((linear[i] - sum(a * b for a, b in zip(row, half, strict=False))) / row[-1])
    solution = [0.0] * len(linear)
    for k in reversed(range(len(free))):
        rest = sum(lower[m][k] * solution[free[m]] for m in range(k + 1, len(free)))
        solution[free[k]] = (half[k] - rest) / lower[k][k]
    return solution


def min_norm(gramian: Matrix, floor: float) -> list[float] | None:
    """As in `solvers`; `None` where that must do it."""
    if (found := unit_rows(gramian, floor)) is None:
        return None
    cosines, norms = found
    least = min(norms)
    solution = nonnegative_qp(cosines, [least / norm for norm in norms])
    if solution is None:
        return None
    weights = [v / norm for v, norm in zip(solution, norms, strict=True)]
    return [weight / sum(weights) for weight in weights]


def dual_cone_projection(gramian: Matrix, vectors: Sequence[Sequence[float]], floor: float) -> Matrix | None:
    """As in `solvers`, without `eps`; `None` where that must do it."""
    if (found := unit_rows(gramian, floor)) is None:
        return None
    cosines, norms = found
    n = range(len(norms))
    projected: Matrix = []
    for vector in vectors:
        scaled = [weight * norm for weight, norm in zip(vector, norms, strict=True)]
        linear = [-sum(s * row[j] for s, row in zip(scaled, cosines, strict=True)) for j in n]
        solution = nonnegative_qp(cosines, linear)
        if solution is None:
            return None
        projected.append([vector[i] + solution[i] / norms[i] for i in n])
    return projected


def given_cosines(gramian: Matrix, products: Sequence[float], floor: float) -> list[float] | None:
    """As in `solvers`; `None` where that must do it."""
    if (found := unit_rows(gramian, floor)) is None:
        return None
    cosines, norms = found
    return solve(cosines, products, range(len(norms)))
