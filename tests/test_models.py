"""Every engine on every awkward model, against plain `autograd.grad`, loss by loss."""

from __future__ import annotations

import warnings
from contextlib import nullcontext

import pytest
import torch
from models import MODELS, Case, Run, checkpointed
from torch import Tensor

import mtopt


class PositivePart(mtopt.RowTransform):
    """Σ max(gᵢ, 0): deterministic, not linear, and easy to write down for the expected value."""

    def transform(self, rows, site):
        return rows.clamp_min(0)


class Identity(mtopt.RowTransform):
    def transform(self, rows, site):
        return rows


def always_positive() -> mtopt.GradDrop:
    """GradDrop that always picks the positive sign: the positive part, by the streaming engine."""
    return mtopt.GradDrop(keep=torch.ones_like)


TRANSFORMS = {"held": PositivePart, "streamed": always_positive}


@pytest.fixture(params=MODELS)
def case(request) -> Case:
    return MODELS[request.param]()


@pytest.fixture(params=TRANSFORMS)
def transform(request) -> mtopt.Transform:
    return TRANSFORMS[request.param]()


def optimizer_for(case: Case, transforms, **settings) -> mtopt.MultiLossOptimizer:
    return mtopt.MultiLossOptimizer(torch.optim.SGD(case.model.parameters(), lr=0.1), transforms, **settings)


def gradients(case: Case) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in case.parameters]


def true_rows(losses: list[Tensor], inputs: list[Tensor]) -> list[list[Tensor | None]]:
    """For each input its gradient from each loss, by one plain `autograd.grad` per loss."""
    by_loss = [torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True) for loss in losses]
    return [list(rows) for rows in zip(*by_loss, strict=True)]


def positive_part(rows: list[Tensor | None]) -> Tensor | None:
    """What is expected of a tensor: untouched where one loss alone reaches it."""
    present = [row for row in rows if row is not None]
    if len(present) < 2:
        return present[0] if present else None
    return torch.stack(present).clamp_min(0).sum(0)


def expected_at_sites(case: Case) -> list[Tensor | None]:
    """The plain gradient, plus what the change of the gradient at each site does to everything below it."""
    run = case.run()
    parameters = case.parameters
    expected = [
        None if all(row is None for row in rows) else sum(row for row in rows if row is not None)
        for rows in true_rows(run.losses, parameters)
    ]
    for site, rows in zip(run.sites, true_rows(run.losses, run.sites), strict=True):
        change = positive_part(rows) - sum(row for row in rows if row is not None)
        below = torch.autograd.grad(site, parameters, change, retain_graph=True, allow_unused=True)
        for i, extra in enumerate(below):
            if extra is not None:
                expected[i] = expected[i] + extra
    return expected


def assert_equal_gradients(ours: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_no_transform_is_the_plain_sum_bit_for_bit(case, at):
    sum(case.run().losses).backward()
    expected = gradients(case)
    case.model.zero_grad()
    optimizer_for(case, [], at=at).backward(case.run().losses)
    for ours, theirs in zip(gradients(case), expected, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def told_of(label):
    """A loss that no decision has is told."""
    return pytest.warns(RuntimeWarning, match=rf"`losses\[{label}\]` shares no number") if label else nullcontext()


def test_rows_that_stay_as_they_are_make_the_plain_sum(case):
    run = case.run()
    expected = true_rows([sum(run.losses)], case.parameters)
    for at in ("activations", "parameters"):
        if at == "parameters" and any(p.is_complex() for p in case.parameters):
            continue  # refused: see test_parameters
        case.model.zero_grad()
        optimizer = optimizer_for(case, Identity(), at=at, chunk_size=1)
        try:
            with told_of(run.told if at == "activations" else ""):
                optimizer.backward(case.run().losses)
        except RuntimeError as error:
            # One node makes all losses, so nothing meets at activations: said, not silently skipped.
            if "never meet" in str(error) and not run.sites and at == "activations":
                continue
            raise
        assert_equal_gradients(gradients(case), [rows[0] for rows in expected])


@pytest.mark.parametrize("name", [name for name, build in MODELS.items() if build().run().sites])
def test_activations(name, transform):
    case = MODELS[name]()
    run = case.run()
    with told_of(run.told):
        optimizer_for(case, transform).backward(run.losses)
    assert_equal_gradients(gradients(case), expected_at_sites(case))


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_parameters(case, transform, chunk_size):
    optimizer = optimizer_for(case, transform, at="parameters", chunk_size=chunk_size)
    run = case.run()
    with warnings.catch_warnings():
        if not case.vmap:
            warnings.simplefilter("ignore", RuntimeWarning)
        if any(p.is_complex() for p in case.parameters):
            with pytest.raises(TypeError, match=r"dtype torch\.complex128"):
                optimizer.backward(run.losses)
            return
        optimizer.backward(run.losses)
    expected = [positive_part(rows) for rows in true_rows(case.run().losses, case.parameters)]
    assert_equal_gradients(gradients(case), expected)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_per_loss_gradients(case, chunk_size):
    run = case.run()
    inputs = [*case.parameters, *(run.sites or [])]
    expected = true_rows(run.losses, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        ours = mtopt.per_loss_gradients(run.losses, inputs, chunk_size=chunk_size)
    for mine, rows, tensor in zip(ours, expected, inputs, strict=True):
        assert (mine is None) == all(row is None for row in rows)
        if mine is not None:
            filled = torch.stack([torch.zeros_like(tensor) if row is None else row for row in rows])
            torch.testing.assert_close(mine, filled, rtol=1e-9, atol=1e-12)


TRUNKS = [name for name, build in MODELS.items() if "trunk" in getattr(build().model, "_modules", {})]


@pytest.mark.parametrize("name", sorted(set(TRUNKS) - {"one_forward_per_task", "lstm", "loss_vector_by_einsum"}))
def test_a_named_module(name, transform):
    """At the output of `trunk`, whatever stands between it and the losses."""
    case = MODELS[name]()
    seen: list[Tensor] = []
    hook = case.model["trunk"].register_forward_hook(lambda module, args, output: seen.append(output))
    # An in-place change shows in what the hook has seen, so that case states nothing, and only runs.
    expected = None if "in_place" in name else expected_with_sites(name, case, seen)
    hook.remove()
    optimizer = optimizer_for(case, transform, at=case.model["trunk"])
    run = case.run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        optimizer.backward(without_penalty(name, run.losses))
    if expected is not None:
        assert_equal_gradients(gradients(case), expected)


def without_penalty(name: str, losses: list[Tensor]) -> list[Tensor]:
    """A penalty on the weights does not reach the activation, and is refused there."""
    return losses[:2] if name == "penalty_on_the_weights" else losses


def expected_with_sites(name: str, case: Case, seen: list[Tensor]) -> list[Tensor | None]:
    forward = case.forward

    def at_trunk():
        seen.clear()
        run = forward()
        return Run(without_penalty(name, run.losses), list(seen))

    return expected_at_sites(Case(case.model, at_trunk))


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_reentrant_checkpoints(at, transform):
    """They hide their parameters from the graph and refuse `autograd.grad`: one backward per loss at parameters."""
    ours, plain = checkpointed(reentrant=True), checkpointed(reentrant=False)
    plain.model.load_state_dict(ours.model.state_dict())
    optimizer = optimizer_for(ours, transform, at=at)
    optimizer.backward(ours.run().losses)
    optimizer_for(plain, transform, at=at, chunk_size=1).backward(plain.run().losses)
    assert_equal_gradients(gradients(ours), gradients(plain))
    if at == "parameters":
        assert "reentrant" in optimizer.explain()


@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_gradients_are_added_to_those_that_are_there(at):
    case = MODELS["mlp"]()
    optimizer = optimizer_for(case, PositivePart(), at=at)
    optimizer.backward(case.run().losses)
    once = gradients(case)
    optimizer.backward(case.run().losses)
    assert_equal_gradients(gradients(case), [2 * g for g in once])


def test_reentrant_checkpoints_add_to_the_gradients_that_are_there_too():
    """There the rows are read off `.grad`, so that what was in it must be put aside."""
    case = checkpointed(reentrant=True)
    optimizer = optimizer_for(case, PositivePart(), at="parameters")
    optimizer.backward(case.run().losses)
    once = gradients(case)
    optimizer.backward(case.run().losses)
    assert_equal_gradients(gradients(case), [2 * g for g in once])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at", ["activations", "parameters"])
def test_low_precision_models_stay_in_their_dtype(dtype, at):
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).to(dtype)
    heads = torch.nn.ModuleList(torch.nn.Linear(4, 1) for _ in range(2)).to(dtype)
    inner = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
    z = trunk(torch.randn(8, 4, dtype=dtype))
    mtopt.MultiLossOptimizer(inner, at=at).step([head(z).square().mean() for head in heads])
    assert all(p.grad is not None and p.grad.dtype == dtype for p in trunk.parameters())


def test_there_are_enough_awkward_models():
    assert len(MODELS) >= 25
