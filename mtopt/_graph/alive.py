"""Graphs freed, spoiled in place, or good for one backward pass only: seen before, or said in plain words after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.autograd.graph import Node

from .._torch import (
    COMPILERS_SETTINGS,
    DONATES_NOTHING,
    donates,
    tells_changed,
    tells_donated,
    tells_freed,
    touch_saved,
)
from .loss_graph import LossGraph

_DONATES = (
    "A compiled part can be differentiated only once, since its backward pass was compiled to write over what it "
    f"needs, but here it is differentiated several times. Set `{DONATES_NOTHING}` before the model is compiled "
    f"(`import {COMPILERS_SETTINGS}` first). If it was compiled already, call `torch.compiler.reset()`, too, and run "
    "the forward again."
)


def check_alive(graph: LossGraph, retain_graph: bool = False) -> None:
    """Raise if a backward pass already freed the graph, or an in-place change spoiled it: before anything is touched.

    The same if all of it is to be retained, and cannot be.
    """
    check_repeatable(graph.edges if retain_graph else ())
    for node in graph.edges:
        try:
            touch_saved(node)
        except RuntimeError as error:
            if (explained := _explained(error)) is not None:
                raise explained from error
            # Anything else says only that this node does not let itself be looked at.


def check_repeatable(nodes: Iterable[Node]) -> None:
    """Raise if one of the nodes, which are to be run with their graph retained, can be run only once."""
    if any(map(donates, nodes)):
        raise RuntimeError(_DONATES)


@contextmanager
def graph_errors_explained() -> Iterator[None]:
    """Say in plain words what torch says of a graph that cannot be differentiated."""
    try:
        yield
    except RuntimeError as error:
        if (explained := _explained(error)) is not None:
            raise explained from error
        raise


def _explained(error: RuntimeError) -> RuntimeError | None:
    if tells_freed(error):
        return RuntimeError(
            "`losses` come from a graph that an earlier backward pass has freed. Run the forward again, or give "
            "`retain_graph=True` to the earlier backward pass."
        )
    if tells_donated(error):
        return RuntimeError(_DONATES)
    return RuntimeError(f"`losses` cannot be differentiated: {error}") if tells_changed(error) else None
