"""GradDrop as a transform: settings per loss name, private random state. The maths is in `signs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..signs import (
    check_keep,
    check_leak,
    check_marginalize,
    check_share,
    decision_shape,
    dims_of,
    draw,
    mask_rows,
    widen,
)
from ..sums import Keep, Scratch, SignSums
from .base import Losses, RowTransform, Site


class GradDrop(RowTransform):
    r"""Gradient Sign Dropout: where the losses' gradients disagree in sign, pick one sign at random.

    The positive sign is picked with probability $f(P)$, where $P$ is the [purity][mtopt.sign_purity], and the
    gradients of the other sign are dropped, but for their leak. With `keep=1` and no leak the result is an unbiased
    estimate of the sum of the gradients, with variance $a \cdot b$ (positive times negative mass).

    Args:
        leak: Share of its gradient, in [0, 1], that a loss keeps whatever the pick: one number, one per loss,
            or a dict by loss name (0 for those not named). 1 protects a loss.
        keep: Slope $k \ge 0$ of $f(P) = \mathrm{clip}(½ + k (P - ½), 0, 1)$, or the function $f$ itself.
            0 is "Random GradDrop": the sign is picked by a fair coin.
        marginalize: Dims of the activation over which one decision is taken, on $\sum \mathrm{sgn}(A) \circ g_i$:
            0 for the batch, `(0, 2, 3)` for batch and space. Needed where losses come from different examples.
            Only where the activation is known: in a `MultiLossLayer` or with `at=module`.
        renormalize: Rescale to the norm of the plain sum, tensor by tensor. It biases the mean, and total
            cancellation becomes a fixed point.
        seed: Seed of the private random generator. `None` derives it from the state of torch's global generator
            at construction, which is left as it was.

    Raises:
        TypeError: If `keep` is neither a number nor a function, or `seed` no whole number.
        ValueError: If `leak`, `keep` or `marginalize` is out of range.

    Example:
        >>> GradDrop(leak={"seg": 1.0})
        GradDrop(leak={'seg': 1.0})

    Source:
        Algorithm 1 of Chen et al. 2020, [arXiv:2010.06808](https://arxiv.org/abs/2010.06808).
    """

    def __init__(
        self,
        *,
        leak: float | Sequence[float] | Mapping[str, float] = 0.0,
        keep: Keep = 1.0,
        marginalize: int | Sequence[int] | None = None,
        renormalize: bool = False,
        seed: int | None = None,
    ) -> None:
        self.leak: float | tuple[float, ...] | dict[str, float]
        if isinstance(leak, Mapping):
            self.leak = {name: check_share(value, f"leak[{name!r}]") for name, value in leak.items()}
        elif isinstance(leak, (int, float)):
            self.leak = check_leak(leak)[0]
        else:
            self.leak = check_leak(leak)
        self.keep = check_keep(keep)
        self.marginalize = check_marginalize(marginalize)
        self.renormalize = renormalize
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"`seed` must be a whole number or None, but it is {type(seed).__name__}.")
        self.seed = _seed_from_global_state() if seed is None else seed
        self._generators: dict[str, torch.Generator] = {}
        self.scratch = Scratch()

    def check(self, losses: Losses) -> None:
        if isinstance(self.leak, dict):
            if losses.names is None:
                raise ValueError("`leak` is a dict by loss name, but the losses have no names. Give them as a dict.")
            unknown = sorted(self.leak.keys() - set(losses.names))
            if unknown:
                raise ValueError(f"`leak` names {unknown}, but the losses are {list(losses.names)}.")
        else:
            check_leak(self.leak, losses.n_losses)

    def leaks(self, losses: Losses) -> list[float]:
        """The leak of each row."""
        if isinstance(self.leak, dict):
            assert losses.names is not None
            return [self.leak.get(losses.names[i], 0.0) for i in losses.indices]
        if isinstance(self.leak, tuple):
            return [self.leak[i] for i in losses.indices]
        return [self.leak] * len(losses)

    def transform(self, rows: Tensor, site: Site) -> Tensor:
        dims = None if self.marginalize is None else dims_of(self.marginalize, rows.ndim - 1)
        masked = mask_rows(
            widen(rows),
            uniform=draw(decision_shape(rows.shape[1:], dims), rows, self.generator(rows.device)),
            leaks=self.leaks(site.losses),
            keep=self.keep,
            activation=site.activation,
            dims=dims,
            renormalize=self.renormalize,
        )
        return masked.to(rows.dtype)

    def stream(self, losses: Losses) -> _GradDropStream | None:
        return None if self.marginalize is not None else _GradDropStream(self, losses)

    def generator(self, device: torch.device) -> torch.Generator:
        """The private generator for a device, made at first use."""
        key = str(device)
        if key not in self._generators:
            self._generators[key] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[key]

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "generators": {key: g.get_state() for key, g in self._generators.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]
        self._generators = {}
        for key, state in state_dict["generators"].items():
            self.generator(torch.device(key)).set_state(state.cpu())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_generators": self.state_dict()["generators"], "scratch": Scratch()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.load_state_dict({"seed": state["seed"], "generators": state["_generators"]})

    def __repr__(self) -> str:
        defaults = {"leak": 0.0, "keep": 1.0, "marginalize": None, "renormalize": False}
        changed = [f"{k}={getattr(self, k)!r}" for k, default in defaults.items() if getattr(self, k) != default]
        return f"GradDrop({', '.join(changed)})"


class _GradDropStream:
    """GradDrop at one site, row by row."""

    def __init__(self, method: GradDrop, losses: Losses) -> None:
        self.method = method
        self.leaks = method.leaks(losses)
        self.sums = SignSums(leaky=any(self.leaks), scratch=method.scratch)

    def add(self, position: int, row: Tensor) -> None:
        self.sums.add(row, self.leaks[position])

    def result(self) -> Tensor:
        assert self.sums.total is not None
        uniform = self.sums.draw(self.method.generator(self.sums.total.device))
        return self.sums.result(uniform, self.method.keep, renormalize=self.method.renormalize)


def _seed_from_global_state() -> int:
    """A seed that follows torch.manual_seed, without drawing from the global generator."""
    copy = torch.Generator()
    copy.set_state(torch.get_rng_state())
    return int(torch.randint(2**62, (), generator=copy))
