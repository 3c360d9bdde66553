"""What a user is told once per optimizer, and the look at `.grad` that it takes. Refuses nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .._sharded import local
from .._transform import Losses

NEVER_HANDED = (
    "`step()` was called on gradients that come from no losses of this optimizer: they are the plain sum, and its "
    "transforms did nothing. Give it the losses, `optimizer.step(losses)`, or `optimizer.backward(losses)` before "
    "`step()`; in a trainer, override what calls `loss.backward()`. If the plain sum is meant, give `transforms=[]`."
)
CLOSURE_OF_ITS_OWN = (
    "The closure did its own backward pass of one loss, so that the transforms of this optimizer did nothing. Let it "
    "clear the gradients and return the losses, as a list or a dict: their backward is done here. If the plain sum is "
    "meant, give `transforms=[]`."
)
THERE_BEFORE = (
    "There was a `.grad` before `step(losses)` that comes from no losses of this optimizer, and the combined gradient "
    "was added to it. If the losses were differentiated already, leave out their `.backward()`; else call "
    "`zero_grad()` first. If it is meant, call `optimizer.backward(losses)`, which adds, and then `step()`."
)
HOOKS = (
    "A parameter that the losses share has hooks (`register_hook`). Where gradients are taken loss by loss, they run "
    "once for each loss, on its gradient alone: one that is not linear, such as a clamp, does another thing than on "
    "the sum. Change `.grad` between `optimizer.backward(losses)` and `step()` instead, or use "
    "`register_post_accumulate_grad_hook`, which runs once."
)
INJECTED = (
    "An `autograd.Function` that the losses share gives a gradient for zeros: it adds one of its own (of an auxiliary "
    "loss?). Where gradients are taken loss by loss, it adds that once for each loss. Give the auxiliary loss in the "
    'list instead, as a loss of its own; or use `at="activations"`, where the Function lies below the place at which '
    "the losses meet."
)
TOTAL = (
    "`losses[{total}]` is a sum that contains {parts}, which would count twice. Leave the total out: the losses are "
    "added up here."
)
LOOKS = 3  # at gradients that are there before `step(losses)`: zeros, if `zero_grad(set_to_none=False)` cleared them


class Told:
    """What one optimizer has told; Python by itself would tell it once in a process.

    Attributes:
        handed: Whether losses were handed over since `zero_grad`.
        looked: Whether it was looked for Functions that inject a gradient.
    """

    def __init__(self) -> None:
        self.handed = False
        self.looked = False
        self.looks = LOOKS
        self.texts: set[str] = set()

    def once(self, text: str) -> None:
        if text in self.texts:
            return
        self.texts.add(text)
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("mtopt", "torch"):
            frame = frame.f_back
        warnings.warn_explicit(text, RuntimeWarning, frame.f_code.co_filename, frame.f_lineno)

    def unless_handed(self, text: str, parameters: Iterable[Tensor]) -> None:
        """Tell that the gradients come from no losses of ours, if so."""
        if self.handed or text in self.texts:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if text == THERE_BEFORE and gradients:
            self.looks -= 1
            if self.looks < 0:
                return
        if any(map(_is_some, gradients)):
            self.once(text)

    def of_totals(self, losses: Losses, totals: Mapping[int, Sequence[int]]) -> None:
        """Tell that a loss is made of others, which are told by their positions."""
        for total, parts in totals.items():
            named = ", ".join(f"`losses[{losses.label(part)}]`" for part in parts)
            self.once(TOTAL.format(total=losses.label(total), parts=named))


def _is_some(gradient: Tensor) -> bool:
    """Whether it is not all zeros, which is what `zero_grad(set_to_none=False)` leaves."""
    here = local(gradient)
    return here.layout is not torch.strided or bool((here.detach() != 0).any())
