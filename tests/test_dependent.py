"""Losses whose gradients are copies, negatives or mixtures of each other: worked values, through the optimizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods import GRAMIAN
from torch import nn
from torch.nn import functional as F

import mtopt

NORM = 3.0  # of g
ALIKE = 2 * (2 * NORM**2) ** (-2 / 3)  # FairGrad with α = 2 on two copies: (G w)_i = 2 w |g|² = w^(-1/2)

# What is combined of losses with the gradients c_i g, as a multiple of g. Not here: MGDA by the losses' values.
WORKED = {
    "AlignedMTL": {(1, 1): 2, (1, -1): 0, (1, 1, 1): 3, (1, 0): 1},  # a rank of one is as aligned as it can be
    "CAGrad": {(1, 1): 1.4, (1, -1): 0, (1, 3): 2.8, (1, 1, -1): 0.2, (1, 0): 0.5},  # 1/T Σ c, and 0.4 of it beyond
    "CRMOGM": {(1, 1): 1, (1, -1): 0, (1, -3): 0, (1, 3): 2, (1, 1, -3): 0, (1, 0): 0.5},  # the first step is UPGrad's
    "ConFIG": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 3): 4, (1, 0): 1},
    "DBMTL": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 3): 6, (1, 0): 1},
    "DCGD": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 3): 4, (1, 1, -3): 0, (1, 0): 1},
    "DualProj": {(1, 1): 1, (1, -1): 0, (1, -3): 0, (1, 3): 2, (1, 1, -3): 0, (1, 0): 0.5},
    "FairGrad": {(1, 1): ALIKE, (1, -1): 0, (1, -3): 0, (1, 1, -3): 0},
    "GradNorm": {(1, 1): 2, (1, -1): 0, (1, 3): 4, (1, 0): 1},  # the first step is the sum
    "GradientNorms": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 3): 4, (1, 1, -4): 2, (1, 0): 0.5},
    "GradientNorms, of norms": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 3): 4, (1, 1, -4): 2, (1, 0): 0.5},
    "GradVac": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 1, -3): 0, (1, 0): 1},
    "IMTLG": {(1, 1): 1, (1, -1): 0, (1, -3): 0, (1, 3): 1.5, (1, 0): 1},
    "Krum": {(1, 1, 1): 1, (1, 1, -1): 1, (-9, 1, 1): 1, (3, 1, 0): 1, (0, 0, 5): 0},
    "MGDA": {(1, 1): 1, (1, -1): 0, (1, -3): 0, (1, 3): 1, (1, 1, -3): 0, (1, 0): 0},
    "MoCo": {(1, 1): 1, (1, -1): 0, (1, -3): 1, (1, 3): 1, (1, 0): 0.275},  # one step from equal weights
    "NashMTL": {(1, 1): 1 / NORM, (1, -1): 0, (1, -3): 0, (1, 3): 1 / NORM, (1, 1, -3): 0, (1, 0): 1 / NORM},
    "PCGrad": {(1, 1): 2, (1, -1): 0, (1, -3): 0, (1, 3): 4, (1, 1, -3): 0, (1, 0): 1},
    "UPGrad": {(1, 1): 1, (1, -1): 0, (1, -3): 0, (1, 3): 2, (1, 1, -3): 0, (1, 0): 0.5},
}


def random_rows(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(make, rows, c=1.0):
    """Of losses whose rows these are, as an optimizer finds it at a parameter."""
    w = nn.Parameter(torch.zeros(rows.shape[1]))
    optimizer = mtopt.MultiLossOptimizer(torch.optim.SGD([w], lr=1.0), make(), at="parameters")
    optimizer.backward([c * ((w * row).sum() + 1) for row in rows])
    return w.grad


@pytest.mark.parametrize("size", [5, 70_000])
@pytest.mark.parametrize(("name", "shares"), [(name, shares) for name in WORKED for shares in WORKED[name]])
def test_copies_negatives_and_zeros_of_one_loss_have_the_limit_s_value(name, shares, size):
    g = NORM * F.normalize(random_rows(0, size), dim=0)
    found = gradient(GRAMIAN[name], torch.tensor(shares)[:, None] * g)
    close = 1e-2 if name == "FairGrad" else 2e-3  # it comes near 0 as a power below ½ of what rounding tells from 0
    assert (found - WORKED[name][shares] * g).norm() <= close * NORM


def test_every_method_has_worked_values():
    assert WORKED.keys() == GRAMIAN.keys() - {"MGDA, loss"}


@pytest.mark.parametrize("name", [name for name in GRAMIAN if name != "Krum"])  # which needs three losses
@given(
    seed=st.integers(0, 10_000), sign=st.sampled_from([1, -1]), classes=st.integers(1, 4), examples=st.integers(1, 3)
)
def test_a_loss_beside_its_copy_or_negative_is_finite_in_any_model(name, seed, sign, classes, examples):
    """Few examples, at that: the last batch may have one. (Values above 0, where a method needs them.)"""
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(examples, 6, generator=random), torch.randn(examples, classes, generator=random)
    trunk, head = nn.Linear(6, 8), nn.Linear(8, classes)
    with torch.no_grad():
        for p in [*trunk.parameters(), *head.parameters()]:
            p.copy_(torch.randn(p.shape, generator=random))
    loss = (head(trunk(x).tanh()) - y).square().mean()
    inner = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.1)
    above = 2 * float(loss.detach()) if sign < 0 else 0
    mtopt.MultiLossOptimizer(inner, GRAMIAN[name](), at="parameters").backward([loss, sign * loss + above])
    assert all(p.grad.isfinite().all() for p in [*trunk.parameters(), *head.parameters()])


@pytest.mark.parametrize("name", [name for name in GRAMIAN if name not in ("PCGrad", "GradVac", "Krum")])
@given(seed=st.integers(0, 10_000), n=st.integers(2, 6), rank=st.integers(1, 6))
def test_neither_the_order_of_losses_nor_their_scale_counts_in_float32(name, seed, n, rank):
    """For rows of any rank. (Two methods draw their order, and one takes the first of equals; what the losses' values
    decide is not the rows'; and of three losses or more DCGD knows the first from the others.)"""
    rows = random_rows(seed, n, rank) @ random_rows(seed + 1, rank, 30)
    make = GRAMIAN[name]
    found = gradient(make, rows)
    length = max(float(found.norm()), 1e-2 * float(rows.norm()) if make().scale_equivariant else 1e-2)
    if not make().uses_values and name != "DCGD":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        assert (gradient(make, rows[order]) - found).norm() <= 1e-2 * length
    if make().scale_equivariant and name != "DBMTL":  # whose logarithms know no scale
        assert (gradient(make, rows, 3.7) / 3.7 - found).norm() <= 1e-2 * length
