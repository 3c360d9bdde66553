"""How the added cost of each method grows: by theory, and by a fit to what was measured. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import linregress

PLAIN = "plain sum"
AGAIN = "plain sum, again"  # the same in another place: how far its ratio is from 1 is the noise
DROP_ACTIVATIONS, UPGRAD_ACTIVATIONS = "GradDrop at activations", "UPGrad at activations"
DROP_PARAMETERS, UPGRAD_PARAMETERS = "GradDrop at parameters", "UPGrad at parameters"
TORCHJD = "TorchJD's UPGrad"
SEPARATE = "T separate backwards"

DEPTH = 4  # linear layers in the trunk
OUTPUTS = 4  # numbers that a head gives: whole shards on 1, 2 or 4 ranks
FEWEST = 3  # points that a slope needs


@dataclass(frozen=True)
class Size:
    """A trunk of `DEPTH` square layers, and a small head per loss.

    Attributes:
        losses: T.
        width: w, of each layer.
        batch: B, on each rank.
    """

    losses: int
    width: int
    batch: int

    @property
    def parameters(self) -> int:
        """P: those of the trunk, which all losses share."""
        return DEPTH * self.width * (self.width + 1)

    @property
    def head_parameters(self) -> int:
        """Those of all heads together."""
        return self.losses * OUTPUTS * (self.width + 1)


@dataclass(frozen=True)
class Term:
    """One part of a cost, up to a constant factor.

    Attributes:
        what: What the time goes into.
        formula: In LaTeX.
        of: The part at a size.
    """

    what: str
    formula: str
    of: Callable[[Size], float]


STEP = Term("Python for a step", "1", lambda s: 1.0)
LOSSES = Term("Python for the losses", "T", lambda s: s.losses)
DECIDED = Term("one decision", "B w", lambda s: s.batch * s.width)
ROWS = Term("rows", "T B w", lambda s: s.losses * s.batch * s.width)
PRODUCTS = Term("their products", "T^2 B w", lambda s: s.losses**2 * s.batch * s.width)
WEIGHTS = Term("T problems in T unknowns", "T^4", lambda s: s.losses**4)
BACKWARDS = Term("backwards of the trunk", "(T - 1) B P", lambda s: (s.losses - 1) * s.batch * s.parameters)
LONG_ROWS = Term("rows", "T P", lambda s: s.losses * s.parameters)
LONG_PRODUCTS = Term("their products", "T^2 P", lambda s: s.losses**2 * s.parameters)

ADDED: dict[str, tuple[Term, ...]] = {
    DROP_ACTIVATIONS: (STEP, LOSSES, DECIDED, ROWS),
    UPGRAD_ACTIVATIONS: (STEP, LOSSES, ROWS, PRODUCTS, WEIGHTS),
    DROP_PARAMETERS: (BACKWARDS, LONG_ROWS),
    UPGRAD_PARAMETERS: (BACKWARDS, LONG_ROWS, LONG_PRODUCTS),
    TORCHJD: (BACKWARDS, LONG_ROWS, LONG_PRODUCTS),
    SEPARATE: (BACKWARDS, LONG_ROWS),
}
"""What each method adds to the plain sum; the parts that can come to dominate."""

BASE = Size(losses=8, width=500, batch=128)
"""What is the same in all sweeps but the one that changes it."""

SWEEPS: dict[str, tuple[Size, ...]] = {
    "losses": tuple(Size(n, BASE.width, BASE.batch) for n in (2, 4, 8, 16, 32, 64)),
    "parameters": tuple(Size(BASE.losses, w, BASE.batch) for w in (158, 273, 500, 866, 1581, 2738)),  # 1e5 to 3e7
    "batch": tuple(Size(BASE.losses, BASE.width, n) for n in (16, 32, 64, 128, 256, 512, 1024)),
}


@dataclass(frozen=True)
class Slope:
    """Of a line on log-log axes: the power that a cost grows with, and its standard error."""

    power: float
    error: float


def fit(x: Sequence[float], y: Sequence[float]) -> Slope | None:
    """The line of least squares through the points on log-log axes; `None` for fewer than `FEWEST` points."""
    if len(x) < FEWEST:
        return None
    line = linregress(np.log(x), np.log(y))
    return Slope(float(line.slope), float(line.stderr))


def expected(method: str, sweep: str, sizes: Sequence[Size]) -> list[float]:
    """The slope of each part of what a method adds, by the same fit to the same sizes, from the flattest part on."""
    x = [float(getattr(size, sweep)) for size in sizes]
    slopes = [fit(x, [term.of(size) for size in sizes]) for term in ADDED[method]]
    return sorted(slope.power for slope in slopes if slope is not None)
