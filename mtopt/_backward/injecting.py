"""Functions that inject a gradient of their own in their backward: looked for once, with zeros. Refuses nothing."""

from __future__ import annotations

import torch
from torch.autograd.graph import Node

from .._graph.loss_graph import gradient_edge, metadata_of
from .._torch import AccumulateGrad, has_hooks, is_python_function, may_be_used_once, variable_of, wrappers_silent
from .backward import Backward
from .telling import INJECTED


def tell_injected(backward: Backward) -> None:
    """Say so if a Function that several losses share gives a gradient for zeros: it does so once for each loss.

    A backward pass is linear, so that zeros give zeros; NaN is none, as zero times infinity is NaN. Zeros are given to
    the Functions alone, and pass through what lies below them, in the first step that has any: models without pay
    nothing, and no hook above them sees zeros. What runs here is run once for each loss anyway. A checkpoint, which
    would compute its part anew, and a compiled part get no look.
    """
    graph, told = backward.graph, backward.told
    if told.looked or len({facts.present for facts in backward.everywhere}) > 1:
        return  # where ranks have other losses, they might look by themselves, and wait for each other
    functions = {node for node in graph.edges if is_python_function(node) and graph.shared(node)}
    if not functions:
        return
    below = set[Node]()
    for node in graph.edges:
        if node in below or node in functions:
            below |= {child for child, _ in graph.edges[node] if child is not None}
    if any(may_be_used_once(node) for node in (*functions, *below)):
        return
    told.looked = True
    starts = [edge for edge in graph.reach_of_edges() if edge[0] in functions]
    # Hooks on parameters are told by themselves.
    leaves = [node for node in below if type(node) is AccumulateGrad and not has_hooks(variable_of(node))]
    made = [metadata_of(edge) for edge in starts]
    devices = {one.device.index for one in made if one.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices)), wrappers_silent(graph.sinks):
            found = torch.autograd.grad(
                [gradient_edge(edge) for edge in starts],
                [gradient_edge((leaf, 0)) for leaf in leaves],
                [torch.zeros(tuple(one.shape), dtype=one.dtype, device=one.device) for one in made],
                retain_graph=True,
                allow_unused=True,
            )
    except Exception:  # it wants something else than plain zeros; a real error comes again from the losses
        return
    parts = [part.to_dense() for part in found if part is not None]
    if any(bool(((part != 0) & ~part.isnan()).any()) for part in parts):
        told.once(INJECTED)
