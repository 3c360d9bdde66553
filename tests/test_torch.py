"""The gateway: each name that torch does not document exists in the installed torch, and means what we think."""

from __future__ import annotations

import importlib

import pytest
import torch
from models import Twice
from ranks import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import mtopt
from mtopt import _torch as gateway


def leaf(*shape):
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape).requires_grad_()


def nodes_below(node):
    found, stack = [], [node]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.append(node)
            stack += [child for child, _ in node.next_functions]
    return found


def names_below(tensor):
    return {node.name() for node in nodes_below(tensor.grad_fn)}


# -- nodes of the graph ------------------------------------------------------------------------------------------------

INDEX = torch.tensor([0, 2])
MASK = torch.tensor([True, False, False, True])
PARTS = {  # from a vector of four
    "Slice": lambda x: x[1:3],
    "Select": lambda x: x[1],
    "Index": lambda x: x[INDEX],
    "IndexSelect": lambda x: x.index_select(0, INDEX),
    "MaskedSelect": lambda x: x.masked_select(MASK),
    "Split": lambda x: x.split(3)[1],
    "SplitWithSizes": lambda x: x.split([1, 3])[0],
    "Unbind": lambda x: x.unbind()[2],
    "Gather": lambda x: x.gather(0, INDEX),
    "Take": lambda x: x.take(INDEX),
    "Diagonal": lambda x: x.view(2, 2).diagonal(),
    "Unfold": lambda x: x[:].unfold(0, 2, 3),
    "AsStrided": lambda x: x.as_strided((2,), (2,)),
    "MaskedFill": lambda x: x.masked_fill(MASK, 0.0),
    "Where": lambda x: torch.where(MASK, x, torch.zeros(4)),
    "IndexPut": lambda x: x.index_put((INDEX,), torch.zeros(2)),
    "SliceScatter": lambda x: x.slice_scatter(torch.zeros(2), 0, 0, 2),
    "SelectScatter": lambda x: x.select_scatter(torch.zeros(()), 0, 1),
    "Tril": lambda x: x.view(2, 2).tril(),
    "Triu": lambda x: x.view(2, 2).triu(),
    "torch::autograd::CopySlices": lambda x: copied(x),
}


def copied(x):
    made = x.clone()
    made[1:3] = 0.0
    return made


@pytest.mark.parametrize("operator", PARTS)
def test_nodes_that_read_a_part_are_known_by_name_and_pass_zeros_elsewhere(operator):
    x = leaf(4)
    part = PARTS[operator](x)
    name = operator if ":" in operator else f"{operator}Backward0"
    assert part.grad_fn.name() == name
    assert name in gateway.CUTTING
    (gradient,) = torch.autograd.grad(part.sum(), x)
    assert 0 < gradient.count_nonzero() < x.numel()


def test_every_name_of_a_part_is_tested():
    assert {name if ":" in name else f"{name}Backward0" for name in PARTS} == gateway.CUTTING


COVERED = {  # from a matrix of 2 x 3
    "View": lambda x: x.view(6),
    "UnsafeView": lambda x: x.t().reshape(6),
    "Transpose": lambda x: x.transpose(0, 1),
    "T": lambda x: x.t(),
    "Permute": lambda x: x.permute(1, 0),
    "Unsqueeze": lambda x: x.unsqueeze(0),
    "Squeeze": lambda x: x.view(1, 2, 3).squeeze(),
    "Expand": lambda x: x.expand(4, 2, 3),
    "Alias": lambda x: torch.ops.aten.alias(x),
    "Clone": lambda x: x.clone(),
    "ToCopy": lambda x: x.double(),
    "Cat": lambda x: torch.cat([x, x]),
    "Stack": lambda x: torch.stack([x, x]),
    "Flip": lambda x: x.flip(0),
    "Roll": lambda x: x.roll(1, 0),
    "Repeat": lambda x: x.repeat(2, 1),
    "ConstantPadNd": lambda x: nn.functional.pad(x, (1, 1)),
    "DiagEmbed": lambda x: torch.diag_embed(x),
    "Cumsum": lambda x: x.cumsum(0),
    "SqueezeBackward1": lambda x: x.view(2, 1, 3).squeeze(1),
    "SqueezeBackward2": lambda x: x.view(1, 2, 1, 3).squeeze((0, 2)),
    "SumBackward1": lambda x: x.sum(0),
    "MeanBackward1": lambda x: x.mean(1),
}


def full(operator):
    return operator if operator[:-1].endswith("Backward") else f"{operator}Backward0"


@pytest.mark.parametrize("operator", COVERED)
def test_nodes_that_pass_all_on_are_known_by_name_and_give_ones_for_ones(operator):
    x = leaf(2, 3)
    made = COVERED[operator](x)
    assert made.grad_fn.name() == full(operator)
    assert full(operator) in gateway.COVERING
    (gradient,) = torch.autograd.grad(made, x, torch.ones_like(made))
    assert (gradient > 0).all()


def test_every_name_that_passes_all_on_is_tested():
    assert gateway.COVERING - {full(name) for name in COVERED} == {"ReshapeAliasBackward0"}  # under functorch alone


NUMBERS = {  # a number alone, between 0 and 1
    "Add": lambda x: x + x, "AddBackward1": lambda x: torch.ops.aten.add.Scalar(x, 1), "Sub": lambda x: x - x,
    "SubBackward1": lambda x: torch.ops.aten.sub.Scalar(x, 1), "RsubBackward0": lambda x: torch.rsub(x, x),
    "RsubBackward1": lambda x: 1 - x, "Mul": lambda x: x * x, "Div": lambda x: x / 2, "Neg": lambda x: -x,
    "Pow": lambda x: x**3, "PowBackward1": lambda x: x**x, "Abs": lambda x: x.abs(), "Exp": lambda x: x.exp(),
    "Log": lambda x: x.log(), "Sqrt": lambda x: x.sqrt(), "Rsqrt": lambda x: x.rsqrt(), "Sin": lambda x: x.sin(),
    "Cos": lambda x: x.cos(), "Reciprocal": lambda x: x.reciprocal(), "Relu": lambda x: x.relu(),
    "LeakyRelu": nn.functional.leaky_relu, "Sigmoid": lambda x: x.sigmoid(), "Tanh": lambda x: x.tanh(),
    "Gelu": nn.functional.gelu, "Silu": nn.functional.silu, "Softplus": nn.functional.softplus,
    "Elu": nn.functional.elu, "LogSigmoid": nn.functional.logsigmoid, "Hardtanh": nn.functional.hardtanh,
    "Mish": nn.functional.mish, "Erf": lambda x: x.erf(), "Log1P": lambda x: x.log1p(), "Expm1": lambda x: x.expm1(),
    "ClampBackward1": lambda x: x.clamp(0, 1), "Clamp": lambda x: x.clamp(x.detach() - 1, x.detach() + 1),
    "Lerp": lambda x: x.lerp(x * 2, 0.5), "Addcmul": lambda x: torch.addcmul(x, x, x),
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
    "Atan": torch.atan, "Atan2": lambda x: torch.atan2(x, x * x), "Asinh": torch.asinh,
    "Acosh": lambda x: torch.acosh(x + 1), "Atanh": torch.atanh, "Erfc": torch.special.erfc, "Exp2": torch.exp2,
    "Log2": torch.log2, "Log10": torch.log10, "Celu": nn.functional.celu, "Hardswish": nn.functional.hardswish,
    "Hardsigmoid": nn.functional.hardsigmoid, "Threshold": lambda x: nn.functional.threshold(x, 0.1, 0),
    "Sgn": torch.sgn, "Hypot": lambda x: torch.hypot(x, x), "Addcdiv": lambda x: torch.addcdiv(x, x, x + 1),
    "Xlogy": lambda x: torch.xlogy(x, x + 1),
    "HuberLoss": lambda x: nn.functional.huber_loss(x, torch.zeros_like(x), reduction="none"),
    "Maximum": lambda x: torch.maximum(x, x / 2), "Minimum": lambda x: torch.minimum(x, x * 2),
    "MseLoss": lambda x: nn.functional.mse_loss(x, torch.zeros_like(x), reduction="none"),
    "SmoothL1Loss": lambda x: nn.functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
    "BinaryCrossEntropyWithLogits": lambda x: nn.functional.binary_cross_entropy_with_logits(
        x, torch.zeros_like(x), reduction="none"
    ),
}  # fmt: skip
SECOND = {"Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Softplus": nn.functional.softplus}


def once_more(function):
    def slope(x):
        y = function(x)
        return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]

    return slope


@pytest.mark.parametrize("operator", [*NUMBERS, *(f"{name}Backward" for name in SECOND)])
def test_nodes_that_work_number_by_number_are_known_by_name_and_have_a_diagonal_jacobian(operator):
    function = NUMBERS.get(operator) or once_more(SECOND[operator.removesuffix("Backward")])
    x = torch.tensor([0.3, 0.6, 0.9], requires_grad=True)
    y = function(x)
    name = full(operator)
    assert name in names_below(y)
    assert name in gateway.ELEMENTWISE
    for i in range(3):
        (gradient,) = torch.autograd.grad(y[i], x, retain_graph=True)
        assert not gradient[[k for k in range(3) if k != i]].any()


def test_every_name_that_works_number_by_number_is_tested():
    tested = {full(name) for name in NUMBERS} | {f"{name}BackwardBackward0" for name in SECOND}
    assert gateway.ELEMENTWISE - tested == {"GeluBackwardBackward0", "SiluBackwardBackward0"}  # made of others here


def test_the_names_of_kinds_are_those_of_the_nodes():
    x = leaf(3, 4)
    filled = torch.zeros(4, 2)
    filled[:, 0] = nn.functional.layer_norm(x, (4,)).sum(0).exp()
    (loss,) = ((filled + 1).square().mean(),)
    nodes, waiting = set(), [loss.grad_fn, Square.apply(x).grad_fn]
    while waiting:
        nodes.add(node := waiting.pop())
        waiting += [child for child, _ in node.next_functions if child is not None]
    assert gateway.names_of(nodes) == {node.name() for node in nodes}
    assert {"torch::autograd::CopySlices", "torch::autograd::AccumulateGrad"} < gateway.names_of(nodes)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_what_puts_a_tensor_together_also_moves_parts_of_one():
    assert gateway.PUTTING_TOGETHER < gateway.CUTTING | gateway.COVERING


def test_hooks_that_run_after_accumulation_are_seen():
    parameter = leaf(2)
    assert not gateway.has_post_accumulate_hooks(parameter)
    parameter.register_post_accumulate_grad_hook(lambda _: None)
    assert gateway.has_post_accumulate_hooks(parameter)


def test_what_is_made_of_parameters_alone_is_known_by_name():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert layer.weight.grad_fn.name() in gateway.OF_PARAMETERS
    assert (leaf(2, 2) @ leaf(2, 2)).grad_fn.name() in gateway.OF_PARAMETERS
    assert nn.Linear(2, 2)(torch.ones(1, 2)).grad_fn.name() not in gateway.OF_PARAMETERS


def test_a_product_with_a_number_is_told_from_one_with_many():
    assert gateway.scaled_by_a_number((leaf(2) * 3).grad_fn)
    assert gateway.scaled_by_a_number((leaf(2) / torch.tensor(3.0)).grad_fn)
    assert not gateway.scaled_by_a_number((leaf(2) * torch.ones(2)).grad_fn)
    assert not gateway.scaled_by_a_number((torch.ones(2) * leaf(2)).grad_fn)
    assert not gateway.scaled_by_a_number((leaf(2) + 3).grad_fn)


PASSED = {
    "Div": lambda x: x / 2,
    "Mul": lambda x: x * torch.tensor(8.0),
    "ToCopy": lambda x: x.double(),
    "View": lambda x: x.view(1),
    "Unsqueeze": lambda x: x.unsqueeze(0),
    "Unbind": lambda x: x.unsqueeze(0).unbind()[0],
}


@pytest.mark.parametrize("operator", PASSED)
def test_what_may_lie_between_a_loss_and_its_scaling_is_known_by_name(operator):
    assert PASSED[operator](leaf()).grad_fn.name() == f"{operator}Backward0"
    assert {f"{name}Backward0" for name in PASSED} == gateway.PASSING


def test_a_constant_factor_can_be_read_from_its_node_and_no_other_node():
    factor = torch.tensor(8.0)
    assert gateway.multiplied_by((leaf() * factor).grad_fn) is factor
    assert gateway.multiplied_by((leaf() + factor).grad_fn) is None


def test_stack_convolution_and_attention_are_known_by_name():
    assert torch.stack([leaf(), leaf()]).grad_fn.name() == gateway.STACK
    assert nn.Conv2d(1, 1, 1)(leaf(1, 1, 2, 2)).grad_fn.name() == gateway.CONVOLUTION
    attention = nn.functional.scaled_dot_product_attention(*(leaf(1, 2, 4, 8) for _ in range(3)))
    assert attention.grad_fn.name() == gateway.ATTENTION_ON_CPU


def test_a_reentrant_checkpoint_is_known_by_name_and_another_one_hides_nothing():
    assert gateway.REENTRANT_CHECKPOINT in names_below(checkpoint(torch.exp, leaf(2), use_reentrant=True))
    assert gateway.REENTRANT_CHECKPOINT not in names_below(checkpoint(torch.exp, leaf(2), use_reentrant=False))


def test_a_compiled_piece_is_known_by_name():
    assert gateway.COMPILED in names_below(torch.compile(lambda x: x.exp().sin(), backend="aot_eager")(leaf(2)))


def test_the_node_of_a_leaf_has_it_and_no_other_node_has_that_type():
    x = leaf(2)
    y = x.exp()
    ((node, _),) = y.grad_fn.next_functions
    assert type(node) is gateway.AccumulateGrad
    assert gateway.variable_of(node) is x
    assert type(y.grad_fn) is not gateway.AccumulateGrad


def test_sequence_numbers_grow_in_the_order_in_which_nodes_are_made():
    x = leaf(2)
    nodes = [f(x).grad_fn for f in (torch.exp, torch.sin, torch.cos)]
    assert [gateway.sequence_number(node) for node in nodes] == sorted({gateway.sequence_number(n) for n in nodes})


def test_a_node_knows_shape_dtype_and_device_of_what_it_made():
    pieces = torch.ones(2, 5, dtype=torch.float64, requires_grad=True).split([2, 3], 1)
    made = gateway.outputs_of(pieces[0].grad_fn)
    assert [tuple(metadata.shape) for metadata in made] == [(2, 2), (2, 3)]
    assert {(metadata.dtype, metadata.device) for metadata in made} == {(torch.float64, torch.device("cpu"))}


def test_notes_on_a_node_are_found_again_in_the_walk_and_end_with_it():
    y = leaf(2).exp()
    gateway.notes_on(y.grad_fn)["mine"] = 1
    assert [gateway.notes_on(node).get("mine") for node in nodes_below(y.sum().grad_fn)] == [None, 1, None]
    assert "mine" not in gateway.notes_on(leaf(2).exp().grad_fn)


@pytest.mark.parametrize("sparse", [True, False])
def test_an_embedding_tells_whether_its_gradient_is_sparse(sparse):
    table = nn.Embedding(5, 2, sparse=sparse)
    node = table(torch.tensor([1])).grad_fn
    assert gateway.has_sparse_gradient(node) is sparse
    node_of_sum = table.weight.sum().grad_fn
    assert gateway.has_sparse_gradient(node_of_sum) is False


def test_the_nodes_of_a_function_have_its_type():
    made = Twice.apply(leaf(2))
    assert type(made.grad_fn) is gateway.node_type(Twice)
    assert gateway.operator_of(made.grad_fn) == "Twice"
    assert gateway.is_python_function(made.grad_fn)
    assert not gateway.is_python_function((2 * leaf(2)).grad_fn)


# -- saved tensors -----------------------------------------------------------------------------------------------------


class Saving(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.exp()


SAVING = {"built in": torch.exp, "several": lambda x: torch.cat([x, x]).cumprod(0), "Python": Saving.apply}


def touch(tensor):
    for node in nodes_below(tensor.grad_fn):
        gateway.touch_saved(node)


@pytest.mark.parametrize("how", SAVING)
def test_a_freed_graph_is_seen_before_it_is_used(how):
    y = SAVING[how](leaf(3)).sum()
    touch(y)
    y.backward()
    if not gateway.HOOKS_CAN_BE_SEEN and how != "Python":
        touch(y)  # before torch 2.9 only a backward tells
        return
    with pytest.raises(RuntimeError) as raised:
        touch(y)
    assert gateway.tells_freed(raised.value)
    assert not gateway.tells_changed(raised.value)


@pytest.mark.parametrize("how", SAVING)
def test_what_torch_says_of_a_freed_graph_is_understood(how):
    y = SAVING[how](leaf(3)).sum()
    y.backward()
    with pytest.raises(RuntimeError) as raised:
        y.backward()
    assert gateway.tells_freed(raised.value)


def test_what_torch_says_of_a_change_in_place_is_understood():
    x = leaf(3).exp()
    y = x.exp()
    z = y.sum()
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError) as raised:
        z.backward()
    assert gateway.tells_changed(raised.value)
    assert not gateway.tells_freed(raised.value)
    if gateway.HOOKS_CAN_BE_SEEN:
        with pytest.raises(RuntimeError) as raised:
            touch(z)
        assert gateway.tells_changed(raised.value)


def test_hooks_of_the_user_are_never_run_to_look_at_a_graph():
    ran = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda packed: ran.append(1) or packed):
        y = torch.cat([leaf(3).exp(), leaf(3).exp()]).sum()
    touch(y)
    assert ran == []


def test_what_torch_says_where_a_graph_can_be_used_only_once_is_understood():
    assert gateway.tells_once(RuntimeError("... was compiled with non-empty donated buffers which requires ..."))
    assert not gateway.tells_once(RuntimeError("Trying to backward through the graph a second time"))


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own doings
@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_compiled_part_tells_whether_its_backward_can_be_run_again(retain_graph):
    torch.compiler.reset()
    run = torch.compile(lambda x: (x @ x).tanh() @ x, backend="aot_eager")
    x = leaf(3, 3)
    node = run(x).grad_fn
    assert node.name() == gateway.COMPILED
    assert gateway.would_donate(node)
    assert not gateway.donates(node)
    run(x).sum().backward(retain_graph=retain_graph)
    y = run(x).sum()
    ((node, _),) = y.grad_fn.next_functions
    assert gateway.donates(node) is not retain_graph
    assert not gateway.would_donate(node)
    if not retain_graph:
        with pytest.raises(RuntimeError) as raised:
            y.backward(retain_graph=True)
        assert gateway.tells_donated(raised.value)
    assert not gateway.donates(y.grad_fn)
    torch.compiler.reset()


def test_what_is_compiled_where_nothing_is_donated_can_be_run_again():
    settings = importlib.import_module(gateway.COMPILERS_SETTINGS)
    key, _, value = gateway.DONATES_NOTHING.removeprefix(f"{gateway.COMPILERS_SETTINGS}.").partition(" = ")
    with settings.patch({key: value == "True"}):
        torch.compiler.reset()
        run = torch.compile(lambda x: (x @ x).tanh() @ x, backend="aot_eager")
        for _ in range(2):
            y = run(leaf(3, 3))
            assert not gateway.donates(y.grad_fn)
            y.sum().backward()
    torch.compiler.reset()


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_the_version_counts_changes_in_place_through_views_too():
    x = torch.zeros(4)
    view = x.view(2, 2)
    before = gateway.version(view.detach())
    x.add_(1)
    assert gateway.version(view.detach()) == before + 1


def test_views_are_told_from_tensors_with_memory_of_their_own():
    x = torch.zeros(4)
    assert gateway.is_view(x[1:])
    assert not gateway.is_view(x)
    assert not gateway.is_view(x[1:].clone())


def test_tensors_with_one_memory_have_one_storage_and_others_have_not():
    x = torch.zeros(4)
    assert gateway.storage_of(x[1:]) == gateway.storage_of(x.detach()) == gateway.storage_of(x)
    assert gateway.storage_of(x.clone()) != gateway.storage_of(x)


def test_hooks_of_a_user_on_a_parameter_are_seen_and_those_on_its_node_or_after_it_are_not():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.register_post_accumulate_grad_hook(lambda parameter: None)
    parameter.expand_as(parameter).grad_fn.next_functions[0][0].register_hook(lambda *gradients: None)
    assert not gateway.has_hooks(parameter)
    handle = parameter.register_hook(lambda gradient: None)
    assert gateway.has_hooks(parameter)
    handle.remove()
    assert not gateway.has_hooks(parameter)


def test_post_accumulate_hooks_are_called_once_each_with_the_parameter():
    parameter, seen = nn.Parameter(torch.zeros(1)), []
    gateway.call_post_accumulate_hooks(parameter)
    handles = [parameter.register_post_accumulate_grad_hook(seen.append) for _ in range(2)]
    gateway.call_post_accumulate_hooks(parameter)
    assert seen == [parameter, parameter]
    handles[0].remove()
    gateway.call_post_accumulate_hooks(parameter)
    assert len(seen) == 3


# -- random numbers and checkpoints ------------------------------------------------------------------------------------


def test_a_seeding_is_seen_though_the_seed_be_the_same_and_nothing_else_is():
    torch.manual_seed(3)
    first = gateway.last_seeding()
    assert any(note is not None for note in first)
    torch.rand(3)
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)
    assert gateway.last_seeding() == first
    torch.manual_seed(3)
    assert gateway.last_seeding() != first


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
def test_a_state_of_torchs_distributed_checkpoint_is_told_from_a_plain_one(inner):
    net = nn.Linear(2, 2)
    optimizer, loaded = inner(net.parameters()), []
    assert not gateway.names_parameters(optimizer.state_dict())
    saved = get_optimizer_state_dict(net, optimizer)
    optimizer.load_state_dict = lambda state_dict: loaded.append(state_dict)
    set_optimizer_state_dict(net, optimizer, saved)
    assert gateway.names_parameters(loaded[0])


# -- several ranks -----------------------------------------------------------------------------------------------------


def wrapped(rank):
    """What the gateway says of wrapped models: what each is expected to be stands beside it."""
    model = DistributedDataParallel(nn.ModuleList([nn.Linear(2, 2)]).append(nn.Linear(2, 2)), static_graph=True)
    model.module.forward = lambda x: (model.module[0](x), x, model.module[1](x))
    outputs = model(torch.ones(1, 2))
    sink = outputs[0].grad_fn
    found = {
        "sink": type(sink) is gateway.DDP_SINK,
        "wrapper": gateway.wrapper_of(sink) is model,
        "passed on": [gateway.below_sink(outputs[i].grad_fn, outputs[i].output_nr)[0].name() for i in (0, 2)],
    }
    with gateway.wrappers_silent([sink]):
        torch.autograd.grad(outputs[0].sum(), model.module[0].weight, retain_graph=True)
        found["silent"] = model._static_graph_delay_allreduce_enqueued
    found["as before"] = not model._static_graph_delay_allreduce_enqueued
    flat = FullyShardedDataParallel(nn.Linear(2, 2), use_orig_params=False, device_id=torch.device("cpu"))
    found["flattened"] = [gateway.is_flattened_by_fsdp1(parameter) for parameter in flat.parameters()]
    found["not flattened"] = [gateway.is_flattened_by_fsdp1(parameter) for parameter in nn.Linear(2, 2).parameters()]
    return found


def lost(rank):
    """What torch says where a rank does not come."""
    if rank == 1:
        return None
    try:
        torch.distributed.all_reduce(torch.ones(1))
    except RuntimeError as error:
        return gateway.tells_lost_rank(error)


def test_the_wrappers_of_torch_are_known():
    found, _ = run_ranks(wrapped, 2)
    assert found == {
        "sink": True,
        "wrapper": True,
        "passed on": ["AddmmBackward0", "AddmmBackward0"],
        "silent": True,
        "as before": True,
        "flattened": [True],
        "not flattened": [False, False],
    }


def test_what_torch_says_of_a_lost_rank_is_understood():
    assert run_ranks(lost, 2)[0] is True
    assert not gateway.tells_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# -- compiler, profiler ------------------------------------------------------------------------------------------------


def test_what_is_not_compiled_breaks_the_graph_and_gives_the_same():
    ran = []

    @gateway.not_compiled
    def note(x):
        ran.append(type(x).__name__)  # a tracer would see a stand-in
        return x + 1

    compiled = torch.compile(lambda x: note(x * 2) * 3, backend="eager")
    torch.testing.assert_close(compiled(torch.ones(2)), torch.full((2,), 9.0))
    assert ran == ["Tensor"]


def without_a_batching_rule():
    node = nn.functional.scaled_dot_product_attention(*(leaf(1, 2, 4, 8) for _ in range(3)))
    (query, _), *_ = node.grad_fn.next_functions
    gradients = torch.ones(2, *node.shape)
    return torch.func.vmap(lambda g: torch.autograd.grad(node, query.variable, g, retain_graph=True)[0])(gradients)


def test_an_operator_without_a_batching_rule_raises_while_loops_are_looked_for_and_warns_else():
    with gateway.loops_of_vmap_raise():
        with gateway.loops_of_vmap_raise():
            pass
        with pytest.raises(RuntimeError, match="vmap fallback"):
            without_a_batching_rule()
    with pytest.warns(UserWarning, match="There is a performance drop"):
        without_a_batching_rule()


def test_a_tree_of_values_is_taken_apart():
    assert gateway.tree_leaves({"a": (1, [2]), "b": 3}) == [1, 2, 3]


def test_the_operator_of_the_layer_exists_and_has_a_fake():
    assert torch.ops.mtopt.combine.default.name() == "mtopt::combine"
    with torch._subclasses.FakeTensorMode():
        assert torch.ops.mtopt.combine([torch.ones(2)], None, 0).shape == (2,)


def test_a_running_profiler_is_seen():
    assert not gateway.profiler_runs()
    with torch.profiler.profile():
        assert gateway.profiler_runs()
    assert mtopt  # the operator above is registered by the package
