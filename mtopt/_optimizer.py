"""MultiLossOptimizer: passes as the optimizer that it wraps, and adds a backward of several losses. No maths."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._backward.activations import combine_plain
from ._backward.agreement import Agreement
from ._backward.at import check_at, combine_at
from ._backward.backward import Backward
from ._backward.explanation import transforms_explained
from ._backward.marks import MarkSite
from ._checks import check_chunk_size, needs_closure
from ._combine.pipeline import Pipeline
from ._graph.batching import Batching
from ._graph.loss_graph import LossGraph, graph_errors_explained
from ._graph.losses import common_scale, given, read_losses, totals
from ._methods.graddrop import GradDrop
from ._ranks import ALONE, ranks_of
from ._telling import CLOSURE_OF_ITS_OWN, NEVER_HANDED, THERE_BEFORE, Told
from ._torch import not_compiled
from ._transform import LossesLike, Transform

_STATE_KEY = "mtopt"


class MultiLossOptimizer(Optimizer):
    """Wraps an optimizer, takes the list of losses instead of their sum, and combines their gradients.

    Args:
        inner: The optimizer that takes the steps. It keeps its parameters, groups and state; schedulers, GradScaler and
            checkpoints work on the wrapper as on it.
        transforms: One transform of the losses' gradients, or a list of them, applied left to right. `None` is
            `GradDrop()`; an empty list is the plain sum.
        at: Where the gradients are combined: `"activations"`, where the losses first meet, found anew in each step;
            `"parameters"`, at those that two losses or more reach; or a module or several, at their outputs.
        chunk_size: Losses differentiated together by vmap where rows need it. `None` chooses, 1 asks for a loop.
        process_group: The ranks that train together, and average their gradients. `None` is the default group.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has a wrong value, or `marginalize` is asked for where no activation is known.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        >>> optimizer = MultiLossOptimizer(torch.optim.AdamW(model.parameters()))
        >>> features = model["trunk"](torch.ones(2, 4)).relu()
        >>> optimizer.step([model["a"](features).mean(), model["b"](features).square().mean()])
    """

    # Not Optimizer.__init__: it would make groups and state beside those of `inner`, and fire the step hooks twice.
    def __init__(
        self,
        inner: Optimizer,
        transforms: Transform | Iterable[Transform] | None = None,
        *,
        at: str | nn.Module | Iterable[nn.Module] = "activations",
        chunk_size: int | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(inner, Optimizer):
            hint = " Make one first, e.g. torch.optim.AdamW(model.parameters())."
            raise TypeError(f"`inner` must be a torch.optim.Optimizer, but it is {type(inner).__name__}.{hint}")
        if isinstance(inner, MultiLossOptimizer):
            raise TypeError("`inner` is a MultiLossOptimizer already. Give all transforms to one, as a list.")
        self.inner = inner
        self.pipeline = Pipeline(GradDrop() if transforms is None else transforms)
        self.at = check_at(at)
        self.process_group = process_group
        # All that changes from step to step is inside objects that are never rebound: trainers run these methods on
        # a stand-in that shares our attributes.
        self.batching = Batching(check_chunk_size(chunk_size))
        self._memory: dict[str, Any] = {"explanation": None, "told": Told()}
        self._key = uuid4().hex
        dims = self.pipeline.marginalized
        if isinstance(self.at, str):
            if dims is not None:
                raise ValueError(
                    f'`marginalize` needs the activation, which is not known with at="{self.at}". Name the module that '
                    f"makes it, `at=module`, or use a MultiLossLayer."
                )
        else:
            for i, module in enumerate(self.at):
                handle = module.register_forward_hook(MarkSite(self._key, i, dims))
                weakref.finalize(self, handle.remove)

    # -- several losses ------------------------------------------------------------------------------------------------

    @not_compiled  # it walks the graph, which torch.compile cannot follow; the forward may be compiled
    def backward(self, losses: LossesLike, *, retain_graph: bool = False) -> None:
        """Add the combined gradient of the losses to `.grad`.

        Args:
            losses: The losses, as a list, a dict of named ones or a 1-D tensor; `None` is absent in this step.
            retain_graph: Whether another backward may follow through the same graph.

        Raises:
            TypeError: If a loss is not a real tensor, or a gradient to combine is complex or sparse.
            ValueError: If there is no loss, a loss is not a scalar, needs no gradient, stands twice or does not reach
                the named site, or a transform's settings do not fit.
            RuntimeError: If nothing would be combined, the graph was freed, or a named module was not called; if ranks
                do not do the same, or one of them raised or stopped.
        """
        ranks = ranks_of(self.process_group) if self.transforms else ALONE  # a plain sum needs no agreement
        with Agreement(ranks) as agreement, self.pipeline.watched(), graph_errors_explained():
            present, roots = read_losses(losses)
            graph = LossGraph(roots)
            graph.check_alive()
            if self.pipeline.needs_scale:
                present = replace(present, scale=common_scale(roots))
            self.pipeline.check(present)
            parameters, batching, told = self._parameters(), self.batching, self._memory["told"]
            if self.transforms:
                told.of_totals(present, totals(roots))
            backward = Backward(
                present, graph, self.pipeline, retain_graph, parameters, batching, self._key, agreement, told
            )
            if not self.pipeline.gradient_transforms or (len(present) == 1 and ranks.size == 1):
                explanation = combine_plain(backward)
            else:
                explanation = combine_at(self.at, backward)
        self._memory["explanation"] = explanation
        self._memory["told"].handed = True
        self.pipeline.names = present.names or self.pipeline.names

    def step(  # type: ignore[override]
        self, losses: LossesLike | Callable[[], Any] | None = None, *, closure: Callable[[], Any] | None = None
    ) -> Any:
        """Take one step of the inner optimizer, after a backward of the losses if they are given.

        Args:
            losses: As for `backward`. Left out, the step uses `.grad` as it is. A function is taken as the closure.
            closure: Evaluates the model anew, for optimizers such as LBFGS. It clears the gradients and returns the
                losses (their backward is done here), or does its own backward and returns one loss. All random
                decisions are the same in each evaluation within one step.

        Returns:
            What the inner optimizer returns: the first evaluation's loss if there is a closure, else None.

        Raises:
            TypeError: If losses are given to an inner optimizer that needs a closure.
            ValueError: If both losses and a closure are given.
        """
        if callable(losses):
            if closure is not None:
                raise ValueError("`losses` is a function and `closure` is given, too. Give one of them.")
            losses, closure = None, losses
        if losses is not None:
            if closure is not None:
                raise ValueError("`losses` and `closure` are both given. Let the closure return the losses.")
            if needs_closure(type(self.inner).step):
                raise TypeError(
                    f"`losses` are evaluated several times in one step of {type(self.inner).__name__}. Give a closure "
                    f"that clears the gradients, computes the losses and returns them."
                )
            self._tell_unless_handed(THERE_BEFORE)
            self.backward(losses)
        if closure is None:
            self._tell_unless_handed(NEVER_HANDED)
            return self.inner.step()
        return self.inner.step(self._evaluation(closure))

    def _evaluation(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        frozen = copy.deepcopy(self.pipeline.state())

        def evaluate() -> Any:
            value = closure()
            if value is None or isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
                self._tell_unless_handed(CLOSURE_OF_ITS_OWN)
                return value
            self.pipeline.load_state(copy.deepcopy(frozen))
            self.backward(value)
            return sum(loss.detach() for loss in given(value))

        return evaluate

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _tell_unless_handed(self, text: str) -> None:
        if self.transforms and not torch.compiler.is_compiling():
            self._memory["told"].unless_handed(text, self._parameters())

    def explain(self) -> str:
        """What the last backward did and why, what each transform is, and what to change if it is slow: one screen."""
        last = self._memory["explanation"] or "no losses yet: call .step(losses) or .backward(losses)"
        transforms = transforms_explained(self.pipeline.transforms)
        return f"{self!r}\n{last}\n{transforms}\ninner optimizer: {type(self.inner).__name__}, which takes the step"

    @property
    def transforms(self) -> list[Transform]:
        """The transforms in their order, each with a `state_dict()` of its own."""
        return self.pipeline.transforms

    # -- all of Optimizer, delegated -----------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.inner.param_groups = value

    @property
    def state(self) -> Any:
        return self.inner.state

    @state.setter
    def state(self, value: Any) -> None:
        self.inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        return self.inner.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.inner.defaults = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)
        self._memory["told"].handed = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, and one more key with the transforms'."""
        return {**self.inner.state_dict(), _STATE_KEY: {"transforms": self.pipeline.state()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a wrapped checkpoint, or a plain one of the inner optimizer (the transforms then stay as they are).

        Raises:
            ValueError: If the checkpoint has another number of transforms, or does not fit the inner optimizer.
        """
        inner = {key: value for key, value in state_dict.items() if key != _STATE_KEY}
        own = state_dict.get(_STATE_KEY)
        before = copy.deepcopy(self.pipeline.state())
        if own is not None:
            self.pipeline.load_state(own["transforms"])
        try:
            self.inner.load_state_dict(inner)
        except Exception:
            self.pipeline.load_state(before)
            raise
        self.pipeline.joined, self.pipeline.loaded, self.pipeline.names = False, True, None

    def register_step_pre_hook(self, hook: Any) -> RemovableHandle:
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> RemovableHandle:
        return self.inner.register_step_post_hook(hook)

    def register_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.inner.register_state_dict_pre_hook(hook, prepend)

    def register_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.inner.register_state_dict_post_hook(hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.inner.register_load_state_dict_pre_hook(hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Any, prepend: bool = False) -> RemovableHandle:
        return self.inner.register_load_state_dict_post_hook(hook, prepend)

    def __getattr__(self, name: str) -> Any:
        # What else the inner optimizer has, such as `train` and `eval`. Private names are switches that torch sets and
        # probes, and hold for the object itself: by `_step_supports_amp_scaling` updates were 65,536 times too large.
        if name.startswith("_") or "inner" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        # Not `step`, if a scheduler has patched it on this object: it would hold the scheduler and the old object.
        return {key: value for key, value in self.__dict__.items() if key != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        at = f'"{self.at}"' if isinstance(self.at, str) else [type(module).__name__ for module in self.at]
        return f"MultiLossOptimizer({type(self.inner).__name__}, {self.pipeline!r}, at={at})"
