"""The one gateway to torch's private and undocumented names, and to what differs between its versions. Decides nothing.

`tests/test_torch.py` holds that each name exists in the installed torch, and means what is said here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._functorch import _is_vmap_fallback_enabled, _set_vmap_fallback_enabled  # type: ignore[attr-defined]
from torch._compile import _disable_dynamo
from torch.autograd.graph import Node
from torch.nn.parallel import distributed as ddp
from torch.utils._pytree import tree_leaves as tree_leaves  # `torch.utils.pytree` is public, but younger than 2.6

# -- nodes of the graph ------------------------------------------------------------------------------------------------

AccumulateGrad: type[Node] = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]
"""The node of a leaf, which adds to its `.grad`."""


def _backward_of(*operators: str) -> frozenset[str]:
    """The names of the nodes that torch makes for some of its operators."""
    return frozenset(f"{operator}Backward0" for operator in operators)


# Nodes that pass parts of a tensor on as they are, some of them with zeros elsewhere.
CUTTING = _backward_of(
    *("Slice", "Select", "Index", "IndexSelect", "MaskedSelect", "Split", "SplitWithSizes", "Unbind", "Gather", "Take"),
    *("Diagonal", "Unfold", "AsStrided", "MaskedFill", "Where", "IndexPut", "SliceScatter", "SelectScatter", "Tril"),
    "Triu",
) | {"torch::autograd::CopySlices"}
COVERING = _backward_of(
    *("View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute", "Unsqueeze", "Squeeze", "Expand", "Alias"),
    *("Clone", "ToCopy", "Cat", "Stack", "Flip", "Roll", "Repeat", "ConstantPadNd", "DiagEmbed", "Cumsum"),
) | {"SqueezeBackward1", "SqueezeBackward2", "SumBackward1", "MeanBackward1"}
# Those of them that put a tensor together of several, or may let nothing of a gradient through.
PUTTING_TOGETHER = _backward_of(
    *("Cat", "Stack", "Where", "MaskedFill", "IndexPut", "SliceScatter", "SelectScatter", "Tril", "Triu"),
    "ConstantPadNd",
) | {"torch::autograd::CopySlices"}
# Nodes whose gradient at a coordinate comes from that coordinate alone.
ELEMENTWISE = _backward_of(
    *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Abs", "Exp", "Log", "Sqrt", "Rsqrt", "Sin", "Cos", "Reciprocal"),
    *("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu", "Silu", "Softplus", "Elu", "LogSigmoid", "Hardtanh", "Mish"),
    *("TanhBackward", "SigmoidBackward", "SoftplusBackward", "GeluBackward", "SiluBackward", "Erf", "Log1P", "Expm1"),
    *("Sinh", "Cosh", "Tan", "Asin", "Acos", "Atan", "Atan2", "Asinh", "Acosh", "Atanh", "Erfc", "Exp2", "Log2"),
    *("Log10", "Celu", "Hardswish", "Hardsigmoid", "Threshold", "Sgn", "Hypot", "Addcdiv", "HuberLoss", "Xlogy"),
    *("Clamp", "Lerp", "Addcmul", "Maximum", "Minimum", "MseLoss", "SmoothL1Loss", "BinaryCrossEntropyWithLogits"),
) | {"AddBackward1", "SubBackward1", "RsubBackward0", "RsubBackward1", "PowBackward1", "ClampBackward1"}
# What makes a parameter's view, or another weight, of parameters alone.
OF_PARAMETERS = (
    COVERING
    | ELEMENTWISE
    | _backward_of("Slice", "Select", "Mm", "Norm", "LinalgVectorNorm", "Sum")
    | {
        "WeightNormInterfaceBackward0",
        "torch::autograd::CopySlices",
    }
)
# What may lie between a loss and its scaling: the average over micro-batches, a weight, another shape or dtype.
PASSING = _backward_of("Div", "Mul", "ToCopy", "View", "Unsqueeze", "Unbind")
ADDING = _backward_of("Add", "Sum", "Mean")
STACK = "StackBackward0"
MULTIPLICATION = "MulBackward0"
CONVOLUTION = "ConvolutionBackward0"
ATTENTION_ON_CPU = "ScaledDotProductFlashAttentionForCpuBackward0"
COMPILED = "CompiledFunctionBackward"  # a piece, or all, of a model behind torch.compile
REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"


def names_of(nodes: Iterable[Node]) -> set[str]:
    """The names of all kinds of nodes, as `name()` gives them; types of C++ have lost their namespace."""
    names = {kind.__name__ for kind in set(map(type, nodes))}
    return {f"torch::autograd::{name}" if name in ("CopySlices", "AccumulateGrad") else name for name in names}


def operator_of(node: Node) -> str:
    """What made a tensor, without the ending that all nodes' names have."""
    return node.name().removesuffix("0").removesuffix("Backward")


def variable_of(leaf: Node) -> Tensor:
    """The leaf tensor of an `AccumulateGrad`."""
    variable: Tensor = leaf.variable  # type: ignore[attr-defined]
    return variable


def sequence_number(node: Node) -> int:
    """A number that grows in the order in which a thread made its nodes."""
    return node._sequence_nr()


class Metadata(Protocol):
    """What a node knows of a tensor that it made."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def outputs_of(node: Node) -> Sequence[Metadata]:
    """The tensors that a node made, which are the inputs of its backward pass."""
    return node._input_metadata


def notes_on(node: Node) -> dict[str, Any]:
    """A place for Python's notes, which lives as long as the node."""
    notes: dict[str, Any] = node.metadata  # type: ignore[assignment]  # a property, whatever its stub says
    return notes


def multiplied_by(node: Node) -> Tensor | None:
    """The constant that a multiplication's input was multiplied by, if it is a tensor."""
    constant: Tensor | None = getattr(node, "_saved_other", None) if node.name() == MULTIPLICATION else None
    return constant


def scales(node: Node) -> bool:
    """Whether it multiplies or divides."""
    return node.name() in (MULTIPLICATION, "DivBackward0")


def scaled_by_a_number(node: Node) -> bool:
    """Whether it multiplies or divides one tensor by a single number, as far as that can be read."""
    if not scales(node) or (HOOKS_CAN_BE_SEEN and may_be_used_once(node)):
        return False
    factors = (getattr(node, name, None) for name in ("_saved_self", "_saved_other"))
    return all(factor is None or factor.numel() == 1 for factor in factors)


def has_sparse_gradient(node: Node) -> bool:
    """Whether it is an embedding that gives a sparse gradient."""
    return bool(getattr(node, "_saved_sparse", False))


def node_type(function: type[torch.autograd.Function]) -> type[Node]:
    """The type of the nodes of an `autograd.Function`."""
    made: type[Node] = function._backward_cls
    return made


def is_python_function(node: Node) -> bool:
    """Whether its backward pass is that of an `autograd.Function`, which may do anything."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


# -- saved tensors -----------------------------------------------------------------------------------------------------

# From torch 2.9 on a saved tensor tells whether it has hooks. Before, reading it might run those of the user.
HOOKS_CAN_BE_SEEN = hasattr(torch._C._autograd.SavedTensor, "unpack_hook")


def touch_saved(node: Node) -> None:
    """Read the saved tensors of a node, which raises where one was freed or changed; none behind hooks may compute."""
    for raw_name, name in _saved_names(type(node)):
        raw = getattr(node, raw_name)  # a Python Function raises here, once freed
        if not HOOKS_CAN_BE_SEEN:
            return
        if isinstance(raw, (tuple, list)):
            if all(saved.unpack_hook is None for saved in raw):
                getattr(node, name)
        elif raw.unpack_hook is None:
            getattr(node, name)


def may_be_used_once(node: Node) -> bool:
    """Whether a backward pass through the node may be allowed only once: behind hooks (a checkpoint), or compiled."""
    if node.name() == COMPILED:
        return True
    for raw_name, _ in _saved_names(type(node)):
        if not HOOKS_CAN_BE_SEEN:
            return True
        if raw_name != "_raw_saved_tensors":
            raw = getattr(node, raw_name)
            if any(saved.unpack_hook is not None for saved in (raw if isinstance(raw, (tuple, list)) else (raw,))):
                return True
    return False


def _donated(node: Node) -> tuple[bool, bool]:
    """Whether the backward pass of a compiled part is compiled, and whether what it saved is donated to it.

    That is settled when the backward pass is first run: nothing is donated if that run retains the graph. A cache of
    earlier compilations may have settled it. What was compiled under `DONATES_NOTHING` has None, which torch refuses to
    run again, too, once the setting is on.
    """
    function = getattr(node, "_forward_cls", None) if node.name() == COMPILED else None
    donated = getattr(getattr(function, "metadata", None), "bw_donated_idxs", [])
    if donated is None:
        donated = [0] if torch._functorch.config.donated_buffer else []
    return getattr(function, "compiled_bw", None) is not None, len(donated) > 0


def donates(node: Node) -> bool:
    """Whether it is a compiled part whose backward can be run only once, since it writes over what it needs."""
    return _donated(node) == (True, True)


def would_donate(node: Node) -> bool:
    """Whether it will be one, unless the first run of its backward pass retains the graph."""
    return _donated(node) == (False, True)


COMPILERS_SETTINGS = "torch._functorch.config"  # not there until it is imported
DONATES_NOTHING = f"{COMPILERS_SETTINGS}.donated_buffer = False"
"""The setting under which a compiled backward pass can be run several times."""


@cache
def _saved_names(node_type: type) -> tuple[tuple[str, str], ...]:
    """The names of a node's saved tensors: the raw ones, and those that unpack them."""
    raw = [name for name in dir(node_type) if name.startswith("_raw_saved_")]
    # A Python Function has one name for all, which is public.
    return tuple((name, name.removeprefix("_raw_" if name == "_raw_saved_tensors" else "_raw")) for name in raw)


def tells_freed(error: RuntimeError) -> bool:
    """Whether it says that an earlier backward pass has freed what this one needs."""
    return "second time" in str(error)


def tells_changed(error: RuntimeError) -> bool:
    """Whether it says that what a backward pass needs was changed in place."""
    return "inplace operation" in str(error)


def tells_donated(error: RuntimeError) -> bool:
    """Whether it says that a compiled part can be differentiated only once: its backward pass writes over its needs."""
    return "donated buffer" in str(error)


def tells_once(error: RuntimeError) -> bool:
    """Whether it says that a graph can be differentiated only once: a selective checkpoint, or a compiled part."""
    return "backward once" in str(error) or tells_donated(error)


def tells_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective call failed: torch has types of its own for some backends, and plain texts for others."""
    text = f"{type(error).__name__} {error}"
    return re.search("^Dist|gloo|nccl|ProcessGroup", text, re.IGNORECASE) is not None


# -- tensors -----------------------------------------------------------------------------------------------------------


def version(tensor: Tensor) -> int:
    """How often its memory was changed in place."""
    return tensor._version


def is_view(tensor: Tensor) -> bool:
    return tensor._is_view()


def storage_of(tensor: Tensor) -> int:
    """Where its memory begins, whatever part of it the tensor is."""
    return tensor.untyped_storage().data_ptr()


def has_hooks(leaf: Tensor) -> bool:
    """Whether it has hooks by `register_hook`. Those of DistributedDataParallel and FSDP are on other objects."""
    return bool(leaf._backward_hooks)


def has_post_accumulate_hooks(parameter: Tensor) -> bool:
    return bool(parameter._post_accumulate_grad_hooks)


def call_post_accumulate_hooks(parameter: Tensor) -> None:
    """What autograd does once it has added to `.grad`: `register_post_accumulate_grad_hook` has no other caller."""
    for hook in (parameter._post_accumulate_grad_hooks or {}).values():
        hook(parameter)


def is_flattened_by_fsdp1(parameter: Tensor) -> bool:
    return getattr(parameter, "_fsdp_flattened", False)


# -- random numbers ----------------------------------------------------------------------------------------------------


def last_seeding() -> tuple[object, ...]:
    """Not equal to what it was before, once `torch.manual_seed` was called, though the same seed be given again.

    The generators themselves do not tell. But a seed for devices that are not in use is noted for later, and no process
    uses both kinds of device.
    """
    notes = (getattr(module, "_lazy_seed_tracker", None) for module in (torch.cuda, torch.xpu))
    return tuple(getattr(note, "manual_seed_all_cb", None) for note in notes)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def names_parameters(state_dict: Mapping[str, Any]) -> bool:
    """Whether an optimizer's state has names of parameters, not numbers: `torch.distributed.checkpoint` made it."""
    groups = state_dict.get("param_groups") or ()
    return any(isinstance(parameter, str) for group in groups for parameter in group.get("params", ()))


# -- DistributedDataParallel -------------------------------------------------------------------------------------------

DDP_SINK: type[Node] = node_type(ddp._DDPSink)
"""The node that it may lay under all outputs of a model: it passes each on as it is."""


def wrapper_of(sink: Node) -> ddp.DistributedDataParallel:
    wrapper: ddp.DistributedDataParallel = sink.ddp_weakref()  # type: ignore[attr-defined]
    return wrapper


def below_sink(sink: Node, output: int) -> tuple[Node, int]:
    """What one output of a sink passes its gradient to."""
    needed: tuple[bool, ...] = sink.needs_input_grad[1:]  # type: ignore[attr-defined]  # the first input is no tensor
    differentiable = [edge for edge in sink.next_functions if edge[0] is not None]
    return differentiable[sum(needed[:output])]  # type: ignore[return-value]


@contextmanager
def wrappers_silent(sinks: Iterable[Node]) -> Iterator[None]:
    """While active, no wrapper with a static graph takes a pass over a part for its backward pass."""
    wrappers = {wrapper_of(sink) for sink in sinks}
    waiting = [m for m in wrappers if m.static_graph and not m._static_graph_delay_allreduce_enqueued]
    for model in waiting:
        model._static_graph_delay_allreduce_enqueued = True
    try:
        yield
    finally:
        for model in waiting:
            model._static_graph_delay_allreduce_enqueued = False


# -- transforms of functions, compiler, profiler -----------------------------------------------------------------------

# `torch.compiler.disable` is the public name, but it imports the whole compiler: 2 s for every `import mtopt`.
not_compiled = _disable_dynamo

_watching = [0, True]  # how many passes look for loops of vmap, and whether they were allowed before
_lock = threading.Lock()


@contextmanager
def loops_of_vmap_raise() -> Iterator[None]:
    """While active, vmap raises at an operator without a batching rule, rather than loop over it and warn.

    Torch has one switch for all threads, so this is for the first pass of a kind; filters of warnings, which threads
    share too, might stay changed for good where two of them overlap.
    """
    with _lock:
        if _watching[0] == 0:
            _watching[1] = _is_vmap_fallback_enabled()
            _set_vmap_fallback_enabled(False)
        _watching[0] += 1
    try:
        yield
    finally:
        with _lock:
            _watching[0] -= 1
            if _watching[0] == 0:
                _set_vmap_fallback_enabled(_watching[1])


def opaque_operator(name: str, schema: str, function: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Define `torch.ops.NAME`, into which torch.compile does not look and which draws random numbers on the host."""
    settings: dict[str, Any] = {"mutates_args": (), "schema": schema}
    if "tags" in signature(torch.library.custom_op).parameters:  # from torch 2.7 on
        # No part of a CUDA graph, which would repeat its random numbers (untested: no GPU).
        graph_unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)  # from 2.9 on
        settings["tags"] = [tag for tag in (graph_unsafe, torch.Tag.nondeterministic_seeded) if tag is not None]
    torch.library.custom_op(name, function, **settings).register_fake(fake)


def keeps_graph() -> bool:
    """Whether the backward pass that runs now was asked to retain its graph."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def profiler_runs() -> bool:
    return torch._C._autograd._profiler_enabled()
