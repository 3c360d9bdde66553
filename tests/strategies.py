"""Hypothesis strategies for rows; torch draws nothing here, so a failing case is reproduced whole."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

SCALES = [1e-30, 1e-8, 1.0, 1e8, 1e30]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def stacked_rows(
    draw: st.DrawFn,
    *,
    min_losses: int = 1,
    max_losses: int = 6,
    dtype: torch.dtype = torch.float64,
    scales: bool = False,
    signs: str = "any",
) -> Tensor:
    """Rows `(T, n)` of small whole numbers and halves, many of them zero, at one scale."""
    n_losses = draw(st.integers(min_losses, max_losses))
    size = draw(st.integers(1, 5))
    low = 0 if signs == "same" else -8
    entries = st.integers(low, 8).map(lambda i: i / 2)
    values = draw(st.lists(entries, min_size=n_losses * size, max_size=n_losses * size))
    scale = draw(st.sampled_from(SCALES)) if scales else 1.0
    rows = torch.tensor(values, dtype=torch.float64).reshape(n_losses, size) * scale
    if signs == "same" and draw(st.booleans()):
        rows = -rows
    return rows.to(dtype)


def uniforms() -> st.SearchStrategy[float]:
    """U in [0, 1), its ends included as far as float32 can hold them."""
    return st.one_of(st.sampled_from([0.0, 1 - 2**-24]), st.floats(0, 1, exclude_max=True, width=32))


def leaks(n_losses: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=n_losses, max_size=n_losses)
