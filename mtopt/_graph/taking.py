r"""Takes each loss's gradient off the edges where the losses meet, while a backward pass runs. Combines nothing itself.

head a   head a'  head b          the last nodes that belong to one loss, its entries. A hook on each receives what
   \       |        |             the node passes on, and lets nothing flow:
  take(a)  |      take(b)         - a loss with several entries here is taken once, when its last one has come;
     \     |       /              - the entry that comes last of all hands on what `finish` returns, once;
      [ meeting ]                 - autograd adds up nothing but that, and goes on below.
           |
       the trunk                  No entry is left out: a node that is not reached in a pass is no entry of it.

A pass that only looks at the rows lets them flow, and drops their sum: a user's hook at the meeting never sees None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.graph import Node

from .loss_graph import Meeting
from .supports import Edge

Take = Callable[[int, Tensor], None]
"""Called with (position of the loss, row), once for each loss that arrives at a meeting."""

Finish = Callable[[], Tensor | None]
"""Called when all have arrived; what it returns flows on from the meeting instead of their sum."""


def nothing() -> None:
    """A `Finish` with which nothing flows on."""


@contextmanager
def rows_taken(meetings: Sequence[Meeting], handlers: Sequence[tuple[Take, Finish | None]]) -> Iterator[None]:
    """While active, a backward pass hands the rows at each meeting to its handlers instead of adding them up there.

    Where there is no `Finish`, they are added up as well.
    """
    by_node: dict[Node, dict[int, tuple[_Arrivals, int]]] = {}
    for meeting, (take, finish) in zip(meetings, handlers, strict=True):
        arrivals = _Arrivals(meeting, take, finish)
        for node, k, position in meeting.entries:
            by_node.setdefault(node, {})[k] = (arrivals, position)
    handles = [node.register_hook(_delivery(arrivals)) for node, arrivals in by_node.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(gradients: Mapping[Edge, Tensor]) -> Iterator[None]:
    """While active, a backward pass goes on with other gradients at some edges, behind the hooks on their tensors."""
    by_node: dict[Node, dict[int, Tensor]] = {}
    for (node, number), gradient in gradients.items():
        by_node.setdefault(node, {})[number] = gradient
    handles = [node.register_prehook(_replacement(new)) for node, new in by_node.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replacement(new: Mapping[int, Tensor]) -> Callable[..., tuple[Tensor | None, ...]]:
    def replace(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(new.get(k, old) if old is not None else None for k, old in enumerate(gradients))

    return replace


class _Arrivals:
    """The contributions to one meeting: a loss may send several, which make one row."""

    def __init__(self, meeting: Meeting, take: Take, finish: Finish | None) -> None:
        self.take = take
        self.finish = finish
        self.waiting = len(meeting.entries)
        self.alone = self.waiting == 1
        self.expected: dict[int, int] = {}
        for _, _, position in meeting.entries:
            self.expected[position] = self.expected.get(position, 0) + 1
        self.partial: dict[int, Tensor] = {}

    def receive(self, position: int, gradient: Tensor | None) -> Tensor | None:
        """Take one contribution; returns what autograd shall carry along its edge: nothing, or at the last one all."""
        self.waiting -= 1
        self.expected[position] -= 1
        if gradient is not None:
            before = self.partial.get(position)
            self.partial[position] = gradient if before is None else before + gradient
        if self.expected[position] == 0 and position in self.partial:
            self.take(position, self.partial.pop(position))
        if self.finish is None:
            # A row that is alone would be what flows: a hook that changes it in place would do so twice.
            return gradient.clone() if gradient is not None and self.alone else gradient
        if self.waiting > 0:
            return None
        combined = self.finish()
        if combined is not None and gradient is None:
            raise RuntimeError(
                "The gradient of one of `losses` is None where the losses meet (a custom autograd.Function returned "
                'None), so nothing can be passed on there. Return zeros instead, or use `at="parameters"`.'
            )
        return combined


def _delivery(arrivals: Mapping[int, tuple[_Arrivals, int]]) -> Callable[..., tuple[Tensor | None, ...]]:
    def deliver(grad_inputs: tuple[Tensor | None, ...], _: object) -> tuple[Tensor | None, ...]:
        carried = list(grad_inputs)
        for k, (meeting, position) in arrivals.items():
            carried[k] = meeting.receive(position, grad_inputs[k])
        return tuple(carried)

    return deliver
