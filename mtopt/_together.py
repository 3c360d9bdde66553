"""Several optimizers that step as one: each has parameters of its own. No losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._checks import needs_closure, type_of


class Together(Optimizer):
    """Their groups in a row, and the state of all; a step is one of each.

    Its `state_dict` is as of one optimizer with all groups. Schedulers may be given this, or one of the optimizers.

    Args:
        optimizers: Two or more, no parameter in two of them.

    Raises:
        TypeError: If one is no optimizer, or needs a closure.
        ValueError: If there is none, or two have the same parameter.
    """

    # Not Optimizer.__init__, which would make groups of its own.
    def __init__(self, optimizers: Iterable[object]) -> None:
        self.optimizers: list[Optimizer] = []
        owner: dict[int, int] = {}
        for i, optimizer in enumerate(optimizers):
            if not isinstance(optimizer, Optimizer):
                raise TypeError(f"`inner[{i}]` must be a torch.optim.Optimizer, but it is {type_of(optimizer)}.")
            if needs_closure(type(optimizer).step):
                raise TypeError(
                    f"`inner[{i}]` is {type(optimizer).__name__}, which evaluates the losses several times in a step, "
                    f"so that it cannot step together with others. Give it as the only inner optimizer."
                )
            for parameter in parameters_of(optimizer):
                if owner.setdefault(id(parameter), i) != i:
                    raise ValueError(
                        f"`inner[{i}]` has a parameter of shape {tuple(parameter.shape)} that "
                        f"`inner[{owner[id(parameter)]}]` has, too, and both would step on it. Give it to one of them."
                    )
            self.optimizers.append(optimizer)
        if not self.optimizers:
            raise ValueError("`inner` is empty: give an optimizer, or a list of some.")
        super().__setstate__({"defaults": {}})  # what torch's own methods need, such as its hooks

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        return {parameter: kept for optimizer in self.optimizers for parameter, kept in optimizer.state.items()}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each, in their order; the closure is evaluated once, before."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return value

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
        raise TypeError(
            f"`add_param_group` does not know which of {names} shall have the group. Call that of one of "
            f"`optimizer.inner.optimizers`."
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, into all optimizers or none.

        Raises:
            ValueError: If it has other groups, or does not fit one of them.
        """
        groups = list(state_dict["param_groups"])
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"`state_dict` has {len(groups)} parameter groups, but the optimizers have {len(self.param_groups)}."
            )
        before = [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers]
        try:
            for optimizer in self.optimizers:
                own = [groups.pop(0) for _ in optimizer.param_groups]
                numbers = {number for group in own for number in group["params"]}
                kept = {number: value for number, value in state_dict["state"].items() if number in numbers}
                optimizer.load_state_dict({"state": kept, "param_groups": own})
        except Exception:
            for optimizer, old in zip(self.optimizers, before, strict=True):
                optimizer.load_state_dict(old)
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "step"}

    def __repr__(self) -> str:
        return f"[{', '.join(type(optimizer).__name__ for optimizer in self.optimizers)}]"


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
