"""What a conflict report refuses, since it would be wrong, and what else it says. Computes no gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._backward.fan_out import combines_itself
from .._backward.refusals import check_real
from .._combine.conflict import Conflict
from .._graph.loss_graph import LossGraph, Meeting
from .._torch import COMPILED, REENTRANT_CHECKPOINT, is_flattened_by_fsdp1, tells_once
from .modules import Modules
from .places import overlap_of
from .rows import Batch, ConflictAt, RowsAt, is_leaf

ONE_PROCESS = "Call it on the bare model, in one process: `conflict_report(losses_of(bare, batch), bare)`."

HIDDEN = (
    "torch.compile made one node of what the `losses` share and what they do not, so that nobody can tell these apart. "
    "For this batch run the model as it was before it was compiled, or compile its trunk alone."
)


def check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, but it is {type(model).__name__}.")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise RuntimeError(f"`model` is wrapped by DistributedDataParallel. {ONE_PROCESS}")
    # A DTensor has a mesh; FSDP1 marks what it has flattened.
    if any(hasattr(p, "device_mesh") or is_flattened_by_fsdp1(p) for p in model.parameters()):
        raise RuntimeError(f"`model` has its parameters split over several processes. {ONE_PROCESS}")


def check_graph(graph: LossGraph, meetings: Sequence[Meeting]) -> None:
    """Raise if the graph does not show what the losses share, or changes gradients on the way."""
    for meeting in meetings:
        if not is_leaf(meeting.edge):
            check_real(meeting.dtype)
    if graph.sinks:
        raise RuntimeError(f"The `losses` come from a DistributedDataParallel. {ONE_PROCESS}")
    reach = None
    for node in graph.edges:
        if node.name() == REENTRANT_CHECKPOINT:
            raise RuntimeError(
                "A reentrant checkpoint hides what the `losses` share. For this batch leave it out, or use "
                "torch.utils.checkpoint with use_reentrant=False."
            )
        if combines_itself(node):
            raise RuntimeError(
                "The model has a MultiLossLayer, which would combine the gradients on their way. Call its `.eval()` "
                "for this forward pass: then it lets them through."
            )
        if node.name() == COMPILED and graph.shared(node):
            reach = graph.reach_of_edges() if reach is None else reach
            if len({mask for edge, mask in reach.items() if edge[0] is node}) > 1:
                raise RuntimeError(HIDDEN)


def check_rows(graph: LossGraph, found: Sequence[RowsAt]) -> None:
    """The same, where the rows tell: behind one node that made one tensor of all losses, others' heads get zeros."""
    if not any(node.name() == COMPILED for node in graph.edges):
        return
    some: set[int] = set()  # losses with a gradient somewhere
    none: set[int] = set()  # and those without one where another has one
    for at in found:
        there = {position for position, row in zip(at.positions, at.rows, strict=True) if row.any()}
        some |= there
        none |= set(at.positions) - there if there else set()
    if some & none:
        raise RuntimeError(HIDDEN)


@contextmanager
def refusals_explained() -> Iterator[None]:
    """Say what to do where torch will not go through a graph several times."""
    try:
        yield
    except RuntimeError as error:
        if not tells_once(error):
            raise
        raise RuntimeError(
            "The graph of the `losses` can be differentiated only once (a selective checkpoint, or a compiled part). "
            "For this batch run the model without. Run the forward pass anew before the next backward."
        ) from error


def combines(arrived: Sequence[RowsAt]) -> bool:
    """Whether `at="activations"` has something to combine."""
    return all(at.plain for at in arrived) and not all(overlap_of(at).apart for at in arrived)


def notes_on(
    batch: Batch, modules: Modules, seen: Sequence[ConflictAt], total: Conflict, *, plain: bool
) -> tuple[str, ...]:
    notes = []
    absent = batch.losses.n_losses - len(batch.losses)
    if absent:
        notes.append(f"{absent} of {batch.losses.n_losses} losses are absent (None) and not in this report.")
    infinite = [module.name for module in seen if not module.conflict.gramian.isfinite().all()]
    if infinite:
        notes.append(
            f"some gradient is not finite, first in {infinite[0] or 'the model itself'}: find the cause first."
        )
    zero = [name for name, norm in zip(batch.names, total.norms.tolist(), strict=True) if norm == 0]
    if zero:
        notes.append(
            f"no gradient of {', '.join(zero)} comes to a shared parameter (a head that starts at zero?), so this says "
            f"little. Train a few steps first."
        )
    if modules.outside:
        notes.append(f"{modules.outside} shared parameters are not in `model`, and not in this report.")
    if not plain:
        notes.append('at="parameters" would refuse these parameters: some are complex, or have sparse gradients.')
    return tuple(notes)
