"""The methods that are compared, by name, and the settings that are tried of each. No training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from problems.base import Problem
from torch import Tensor

import mtopt
from mtopt import GradDrop, RowTransform, Site, Transform
from mtopt._draws import Draws

PLAIN = "plain sum"
AGAIN = "plain sum, again"  # how far its ratio is from 1 is the noise
TRUNK = "trunk"  # the site `model.trunk`
TRIALS = 5
WEIGHTS = 10.0  # tuned weights are drawn between 1 / this and this
DECAYS = (1e-3, 1.0)  # tuned weight decay is drawn between these
OF_TWO = (1, 2, 2, 2, 3)  # a method with two settings draws the second anew for each of these learning rates


class SignAgnostic(RowTransform):
    """Each coordinate of each row is kept by a fair coin of its own, and doubled: the mean is the row.

    The control of Kurin et al. 2022, arXiv:2201.04122, appendix D.3, which rescales to the plain sum's norm instead.
    """

    scale_equivariant = True
    uses_values = False

    def __init__(self, *, seed: int | None = None) -> None:
        self.draws = Draws(seed)

    def transform(self, rows: Tensor, site: Site) -> Tensor:
        coins = torch.rand(rows.shape, device=rows.device, generator=self.draws.next(rows.device))
        return 2 * (coins < 0.5).to(rows.dtype) * rows


@dataclass(frozen=True)
class Method:
    """A method on a problem.

    Attributes:
        make: From a seed to its transforms.
        at: The site.
        second: The setting that is tuned beside the learning rate, if any.
        lr_factor: The learning rates that are tried are those of the problem times this.
        length: Of the combined gradient, as `MultiLossOptimizer` takes it.
        setting_of: The method whose best setting it takes, instead of being tuned.
        family: Its p-values are corrected for the methods of the same one.
        partner: The method that it is compared with, beside the plain sum.
    """

    make: Callable[[int], list[Transform]]
    at: str
    second: str | None = None
    lr_factor: float = 1.0
    length: str | None = None
    setting_of: str | None = None
    family: str = ""
    partner: str | None = None


@dataclass(frozen=True)
class Setting:
    """One setting of a method: a trial of its tuning."""

    lr: float
    weights: tuple[float, ...] | None = None
    weight_decay: float = 0.0


OTHERS: dict[str, Callable[[int], Transform]] = {
    "AlignedMTL": lambda seed: mtopt.AlignedMTL(),
    "CAGrad": lambda seed: mtopt.CAGrad(),
    "ConFIG": lambda seed: mtopt.ConFIG(),
    "DualProj": lambda seed: mtopt.DualProj(),
    "DWA": lambda seed: mtopt.DWA(),
    "FairGrad": lambda seed: mtopt.FairGrad(),
    "FAMO": lambda seed: mtopt.FAMO(),
    "GeometricMean": lambda seed: mtopt.GeometricMean(),
    "GradNorm": lambda seed: mtopt.GradNorm(),
    "GradVac": lambda seed: mtopt.GradVac(seed=seed),
    "IMTLG": lambda seed: mtopt.IMTLG(),
    "IMTLL": lambda seed: mtopt.IMTLL(),
    "MGDA": lambda seed: mtopt.MGDA(),
    "NashMTL": lambda seed: mtopt.NashMTL(),
    "PCGrad": lambda seed: mtopt.PCGrad(seed=seed),
    "ReLoBRaLo": lambda seed: mtopt.ReLoBRaLo(seed=seed),
    "RLW": lambda seed: mtopt.RLW(seed=seed),
    "SoftAdapt": lambda seed: mtopt.SoftAdapt(),
    "STCH": lambda seed: mtopt.STCH(),
    "UncertaintyWeighting": lambda seed: mtopt.UncertaintyWeighting(),
    "UPGrad": lambda seed: mtopt.UPGrad(),
}
BEFORE_GRADDROP = ("GradNorm", "PCGrad", "MGDA")


def methods_of(problem: Problem) -> dict[str, Method]:
    """All methods that the problem allows, the plain sum first."""
    at = problem.at
    methods = {
        PLAIN: Method(lambda seed: [], at),
        "tuned weights": Method(lambda seed: [], at, "weights"),
        "weight decay": Method(lambda seed: [], at, "weight decay"),
    }
    if at == "activations":
        methods["GradDrop"] = Method(lambda seed: [GradDrop(seed=seed)], at)
    if problem.marginal:
        methods["GradDrop, marginalized"] = Method(lambda seed: [GradDrop(marginalize=0, seed=seed)], TRUNK)
    if problem.marginal and problem.protected is not None:
        leak = {problem.protected: 1.0}
        methods[f"GradDrop, marginalized, leak 1 on the {problem.protected}"] = Method(
            lambda seed: [GradDrop(marginalize=0, leak=leak, seed=seed)], TRUNK
        )
    methods["GradDrop, at parameters"] = Method(lambda seed: [GradDrop(seed=seed)], "parameters")
    # Half of the gradient is dropped, whatever its sign: so twice the learning rate.
    methods["Random GradDrop"] = Method(lambda seed: [GradDrop(keep=0.0, seed=seed)], at, lr_factor=2.0)
    methods["sign-agnostic masking"] = Method(lambda seed: [SignAgnostic(seed=seed)], at)
    for name, make in OTHERS.items():
        methods[name] = Method(lambda seed, make=make: [make(seed)], at)  # type: ignore[misc]
    for name in BEFORE_GRADDROP:
        make = OTHERS[name]
        methods[f"{name}, then GradDrop"] = Method(
            lambda seed, make=make: [make(seed), GradDrop(seed=seed)],  # type: ignore[misc]
            at,
        )
    return methods


def settings_of(problem: Problem, method: Method, trials: int = TRIALS) -> list[Setting]:
    """What is tried: as many settings for every method, the same in every run."""
    if method.second is None:
        middle_first = sorted(range(len(problem.lrs)), key=lambda i: abs(i - len(problem.lrs) // 2))
        return [Setting(method.lr_factor * problem.lrs[i]) for i in sorted(middle_first[:trials])]
    draws = random.Random(f"{method.second} of {len(problem.tasks)}")
    lrs = [problem.lrs[i] for i in OF_TWO[:trials]]
    if method.second == "weights":
        return [Setting(lr, weights=_weights(draws, len(problem.tasks))) for lr in lrs]
    return [Setting(lr, weight_decay=_log_uniform(draws, *DECAYS)) for lr in lrs]


def at_edge(problem: Problem, method: Method, lr: float) -> bool:
    """Whether the best learning rate is the smallest or the largest that was tried: a better one may lie beyond."""
    tried = [setting.lr for setting in settings_of(problem, method)]
    return lr in (min(tried), max(tried))


def transforms_of(method: Method, setting: Setting, seed: int) -> Sequence[Transform]:
    """The transforms of a run; weights that are tuned come first."""
    weights = [] if setting.weights is None else [mtopt.ConstantWeights(setting.weights)]
    return [*weights, *method.make(seed)]


def _weights(draws: random.Random, n: int) -> tuple[float, ...]:
    """With mean 1."""
    drawn = [_log_uniform(draws, 1 / WEIGHTS, WEIGHTS) for _ in range(n)]
    return tuple(float(f"{n * weight / sum(drawn):.4g}") for weight in drawn)


def _log_uniform(draws: random.Random, low: float, high: float) -> float:
    return float(f"{math.exp(draws.uniform(math.log(low), math.log(high))):.3g}")
