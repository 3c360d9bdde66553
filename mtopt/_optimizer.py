"""MultiLossOptimizer: passes as the optimizer that it wraps, and adds a backward pass of several losses. No maths."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ._backward.agreement import Agreement, refuse_nan
from ._backward.at import check_at, combine_at, in_words, of_parameters, takes_parameters
from ._backward.backward import Backward
from ._backward.closure import evaluation
from ._backward.explanation import Explanation, transforms_explained
from ._backward.first_step import FirstStep
from ._backward.gathered import Gathered
from ._backward.inner import Given as Metric
from ._backward.inner import check_histories, metric_of, refuse_momentum, refuse_second_order
from ._backward.known import Known, known_of
from ._backward.marks import MarkSite
from ._backward.plain import add_up_again, combine_plain
from ._backward.telling import NEVER_HANDED, THERE_BEFORE, Told
from ._checks import check_chunk_size, check_state_dict, is_listed, needs_closure, type_of
from ._combine.pipeline import Pipeline
from ._delegating import Delegating
from ._graph.alive import graph_errors_explained
from ._graph.batching import Batching
from ._graph.losses import (
    check_declared,
    check_one_list,
    check_reaching,
    common_scale,
    read_losses,
    totals,
    with_absent,
)
from ._graph.supports import Edge
from ._methods.graddrop import GradDrop
from ._ranks import ALONE, ranks_of
from ._together import Together, parameters_of
from ._torch import not_compiled
from ._transform import Losses, LossesLike, Transform

_STATE_KEY = "mtopt"


class MultiLossOptimizer(Delegating):
    """Wraps an optimizer, takes the list of losses instead of their sum, and combines their gradients.

    Args:
        inner: The optimizer that takes the steps. It keeps its parameters, groups and state; schedulers, GradScaler and
            checkpoints work on the wrapper as on it. Or a list of several, for different parameters, such as Muon for
            matrices and AdamW for the rest: each takes its step, and losses are combined over the parameters of all.
        transforms: One transform of the losses' gradients, or a list of them, applied left to right. `None` is
            `GradDrop()`; an empty list is the plain sum.
        at: Where the gradients are combined: `"activations"`, where all losses have met that will ever meet, found anew
            in each step; `"nested"`, wherever losses meet, where a further loss joins what was combined above as one
            row; `"parameters"`, at those of the optimizer that two losses or more reach; `"all parameters"`, where a
            method counts those, too, that one loss alone reaches; a module or several, at their outputs; or some of the
            optimizer's parameters, such as `model.trunk.parameters()`: all others get the plain sum.
        metric: In which metric methods compare gradients at parameters: `"inner"` is that of the inner optimizer, so
            that what a method promises to first order holds for the step, not for the gradient (torch's Adam, AdamW,
            NAdam, RAdam, Adamax, Adagrad, RMSprop, Adadelta; SGD's is the plain one). For others, a function of the
            optimizer, a parameter and its rows of shape `(T, *S)`, which returns rows whose inner products are taken
            instead, such as `rows / (v.sqrt() + eps).sqrt()`. `None` is the plain inner product.
        length: How long the combined gradient is, whatever the method: `"sum"`, as the plain sum of the gradients;
            `"mean"`, as their mean. So one learning rate does for all methods. `None` is the method's own length, and
            some have a tenth of others'.
        losses: The names of all losses that will ever come. Then a step may have a dict of any of them: the others are
            absent, and one that comes late begins with a state of its own. `None`: those of the first step.
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
        inner: Optimizer | Iterable[Optimizer],
        transforms: Transform | Iterable[Transform] | None = None,
        *,
        at: str | nn.Module | Tensor | Iterable[nn.Module | Tensor] = "activations",
        metric: Metric = None,
        length: str | None = None,
        losses: Iterable[str] | None = None,
        chunk_size: int | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        several = list(inner) if is_listed(inner) else [inner]
        if any(isinstance(each, MultiLossOptimizer) for each in several):
            raise TypeError("`inner` is a MultiLossOptimizer already. Give all transforms to one, as a list.")
        if is_listed(inner):
            inner = Together(several)
        if not isinstance(inner, Optimizer):
            hint = " Make one first, e.g. torch.optim.AdamW(model.parameters())."
            raise TypeError(f"`inner` must be a torch.optim.Optimizer, but it is {type_of(inner)}.{hint}")
        refuse_second_order(inner)
        self.inner = inner
        self.declared = check_declared(losses)
        self.pipeline = Pipeline(GradDrop() if transforms is None else transforms, length)
        self.at = check_at(at, self._parameters())
        self.metric = metric
        metric_of(inner, metric)
        at_parameters = takes_parameters(self.at)
        some = of_parameters(self.at) is not None
        check_histories(self.pipeline, inner, metric, at_parameters=at_parameters, some=some)
        self.process_group = process_group
        # All that changes from step to step is inside objects that are never rebound: trainers run these methods on
        # a stand-in that shares our attributes.
        self.batching = Batching(check_chunk_size(chunk_size))
        self._memory: dict[str, Any] = {
            "explanation": None,
            "overlaps": {},
            "known": {},
            "told": Told(),
            "gathered": Gathered(),
        }
        self._first_step = FirstStep(self.pipeline, self._memory["told"])
        self._key = uuid4().hex
        dims = self.pipeline.marginalized
        if isinstance(self.at, str) or takes_parameters(self.at):
            if dims is not None:
                raise ValueError(
                    f"`marginalize` needs the activation, which is not known with at={in_words(self.at)}. Name the "
                    f"module that makes it, `at=module`, or use a MultiLossLayer."
                )
        else:
            for i, module in enumerate(self.at):
                assert isinstance(module, nn.Module)
                handle = module.register_forward_hook(MarkSite(self._key, i, dims))
                weakref.finalize(self, handle.remove)

    # -- several losses ------------------------------------------------------------------------------------------------

    @not_compiled  # it walks the graph, which torch.compile cannot follow; the forward may be compiled
    def backward(self, losses: LossesLike, *more: Any, retain_graph: bool = False) -> None:
        """Add the combined gradient of the losses to `.grad`.

        Args:
            losses: The losses, as a list, a dict of named ones or a 1-D tensor; `None` is absent in this step.
            retain_graph: Whether another backward pass may follow through the same graph.

        Raises:
            TypeError: If a loss is not a real tensor, or a gradient to combine is complex or sparse.
            ValueError: If there is no loss, a loss is not a scalar, needs no gradient, stands twice or does not reach
                the named site, a transform's settings do not fit, or one reads the losses and one of them is NaN.
            RuntimeError: If nothing would be combined, the graph was freed, or a named module was not called; if ranks
                do not do the same, or one of them raised or stopped.
        """
        check_one_list(more, "backward")
        losses = with_absent(losses, self.declared)
        if self.transforms or retain_graph or not self._add_up_again(losses):
            self._memory["explanation"] = self._combine(losses, retain_graph=retain_graph)
        self._memory["told"].handed = True

    @not_compiled
    def gather(self, losses: LossesLike, *more: Any, retain_graph: bool = False) -> None:
        """Take the losses' gradients, and decide later: once on all that was gathered, in `step()`.

        For losses that no one graph holds: micro-batches, loaders in turn. A loss that comes again, by name or place,
        is added to what came of it before. A gradient is kept for each loss and parameter until `step()`, or `decide()`
        if something is done to `.grad` before the step. `zero_grad()` drops them.

        Args:
            losses: As for `backward`; a dict may have other names in each call.
            retain_graph: Whether another backward pass may follow through the same graph.

        Raises:
            TypeError: As for `backward`.
            ValueError: As for `backward`; or if rows are not combined at parameters, or the inner optimizer needs a
                closure.
            RuntimeError: If the graph was freed, or parameters are sharded by FSDP2.
        """
        check_one_list(more, "gather")
        losses = with_absent(losses, self.declared)
        if not self.transforms:
            self.backward(losses, retain_graph=retain_graph)
            return
        if not takes_parameters(self.at):
            raise ValueError(
                f"`gather` keeps gradients of parameters, but they are combined at={in_words(self.at)}, which is new "
                f'in each forward pass. Take at="parameters".'
            )
        if needs_closure(type(self.inner).step):
            raise ValueError(
                f"`gather` waits for one step, but {type(self.inner).__name__} evaluates the losses several times in "
                f"one. Give it a closure that returns all losses."
            )
        parameters = self._parameters()
        self._memory["gathered"].add(losses, parameters, self.batching, retain_graph=retain_graph)
        self._memory["told"].handed = True

    def decide(self) -> None:
        """Combine all that was gathered since the last decision, and add it to `.grad`; else do nothing.

        `step()` does it by itself. Call it before what reads `.grad` earlier: clipping, and a GradScaler's `unscale_`
        and `step`.

        Raises:
            RuntimeError: If nothing would be combined, as for `backward`. What was gathered is still there.
        """
        gathered: Gathered = self._memory["gathered"]
        if gathered:
            self.backward(gathered.losses(self._parameters()))
            gathered.clear()

    def _add_up_again(self, losses: LossesLike) -> bool:
        """A plain sum, as in the step before: False if there is more to it."""
        if self.pipeline.watch is not None:
            return False
        present, roots = read_losses(losses)
        known = self._known(present, roots)
        if known.explained is None or not known.suffices(self._parameters()):
            return False
        add_up_again(losses, present, roots)
        return True

    def _combine(self, losses: LossesLike, *, retain_graph: bool) -> Explanation:
        ranks = ranks_of(self.process_group) if self.transforms else ALONE  # a plain sum needs no agreement
        told = self._memory["told"]
        with Agreement(ranks) as agreement, self.pipeline.watched(), graph_errors_explained():
            present, roots = read_losses(losses)
            if self.pipeline.needs_scale:
                present = replace(present, scale=common_scale(roots))
            backward = Backward(
                present,
                roots,
                self._known(present, roots),
                self.pipeline,
                retain_graph,
                self._parameters(),
                self.batching,
                self._memory["overlaps"],
                self._key,
                agreement,
                told,
                metric_of(self.inner, self.metric),
            )
            if not backward.can_be_taken_back or (isinstance(losses, Tensor) and backward.graph.bundled):
                backward.look_at_all()
            if isinstance(losses, Tensor):
                check_reaching(backward.graph, present)
            if self.pipeline.uses_values and ranks.size == 1:  # several ranks find it together
                refuse_nan(present)
            self.pipeline.check(present)
            self._first_step.tell(present, ranks.size)
            if self.transforms and not backward.can_be_taken_back:
                told.of_totals(present, totals(roots))
            refuse_momentum(self.pipeline, self.inner)
            alone = len(present) == 1 and ranks.size == 1 and not self.pipeline.order.histories
            plain = not self.pipeline.reads_gradients or alone
            explanation = combine_plain(backward) if plain else combine_at(self.at, backward)
        self.pipeline.names = present.names or self.pipeline.names
        return explanation

    def _known(self, losses: Losses, roots: Sequence[Edge]) -> Known:
        form = (losses.names, losses.indices, *(node.name() for node, _ in roots))
        return known_of(form, self._memory["known"])

    def step(  # type: ignore[override]
        self, losses: LossesLike | Callable[[], Any] | None = None, *more: Any, closure: Callable[[], Any] | None = None
    ) -> Any:
        """Take one step of the inner optimizer, after a backward pass of the losses if they are given.

        Args:
            losses: As for `backward`. Left out, the step uses `.grad` as it is. A function is taken as the closure.
            closure: Evaluates the model anew, for optimizers such as LBFGS. It clears the gradients and returns the
                losses (their backward is done here), or does its own backward pass and returns one loss. All random
                decisions, and all weights of losses, are the same in each evaluation within one step. The inner
                optimizer is told the sum of the weighted losses. If it searches along a line by that
                (`line_search_fn="strong_wolfe"`), use weightings alone: no loss has the gradient that the other
                transforms make, and one warning tells so.

        Returns:
            What the inner optimizer returns: the first evaluation's value if there is a closure, else None.

        Raises:
            TypeError: If losses are given one by one, or to an inner optimizer that needs a closure.
            ValueError: If both losses and a closure are given.
        """
        check_one_list(more, "step")
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
            if self._memory["gathered"]:
                self.gather(losses)
            else:
                self._tell_unless_handed(THERE_BEFORE)
                self.backward(losses)
        if closure is None:
            self.decide()
            self._tell_unless_handed(NEVER_HANDED)
            watch = self.pipeline.watch
            with nullcontext() if watch is None else watch.stepping():
                return self.inner.step()
        told, tell = self._memory["told"], self._tell_unless_handed
        return self.inner.step(evaluation(closure, self.backward, self.pipeline, self.inner, told, tell, self.declared))

    def _parameters(self) -> list[Tensor]:
        return parameters_of(self.inner)

    def _tell_unless_handed(self, text: str) -> None:
        if self.transforms and not torch.compiler.is_compiling():
            self._memory["told"].unless_handed(text, self._parameters())

    def explain(self) -> str:
        """What the last backward pass did and why, what each transform is, what to change if it is slow: one screen."""
        last = self._memory["explanation"] or "no losses yet: call .step(losses) or .backward(losses)"
        transforms = transforms_explained(self.pipeline.transforms)
        inner = f"inner optimizer: {_name(self.inner)}, which takes the step"
        lines = repr(self), str(last), transforms, str(self.pipeline.length), str(self.pipeline.watch or ""), inner
        return "\n".join(filter(None, lines))

    @property
    def transforms(self) -> list[Transform]:
        """The transforms in their order, each with a `state_dict()` of its own."""
        return self.pipeline.transforms

    # -- what an optimizer does, and more ------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)
        self._memory["gathered"].clear()
        self._memory["told"].handed = False

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, and one more key with the transforms'."""
        return {**self.inner.state_dict(), _STATE_KEY: self.pipeline.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a wrapped checkpoint, or a plain one of the inner optimizer (the transforms then stay as they are).

        Raises:
            ValueError: If the checkpoint is of other transforms, spoiled, or does not fit the inner optimizer.
        """
        check_state_dict(state_dict)
        inner = {key: value for key, value in state_dict.items() if key != _STATE_KEY}
        own = state_dict.get(_STATE_KEY)
        before = self.pipeline.copied_state()
        with self.pipeline.histories_unless_it_fails():
            if own is not None:
                self.pipeline.load_state_dict(own, self._parameters())
            try:
                self.inner.load_state_dict(inner)
            except Exception:
                self.pipeline.load_state(before)
                raise
        self.pipeline.joined, self.pipeline.loaded, self.pipeline.names = False, True, None
        self._first_step.loaded(state_dict, own=own is not None)

    def __repr__(self) -> str:
        return f"MultiLossOptimizer({_name(self.inner)}, {self.pipeline!r}, at={in_words(self.at)})"


def _name(inner: Optimizer) -> str:
    return repr(inner) if isinstance(inner, Together) else type(inner).__name__
