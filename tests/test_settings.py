"""Settings: numbers of any kind are taken, and what is no such thing is a named error with the way out."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from methods import ROWS
from torch import nn

import mtopt
from mtopt import GradDrop, MultiLossLayer, MultiLossOptimizer, PCGrad


def wrap(transforms=None, **settings):
    return MultiLossOptimizer(torch.optim.SGD(nn.Linear(1, 1).parameters()), transforms, **settings)


NUMBERS = {  # one setting of each kind of number, and how it is kept
    "positive": (lambda value: mtopt.DWA(tau=value).tau, 0.5),
    "not negative": (lambda value: mtopt.CAGrad(c=value).c, 0.5),
    "share": (lambda value: mtopt.GradVac(beta=value).beta, 0.5),
    "any": (lambda value: mtopt.UncertaintyWeighting(start=value).start, -0.5),
    "keep": (lambda value: GradDrop(keep=value).keep, 0.5),
    "leak": (lambda value: GradDrop(leak=value).leak, 0.5),
    "one of the leaks": (lambda value: GradDrop(leak=[0.0, value]).leak[1], 0.5),
    "a named leak": (lambda value: GradDrop(leak={"seg": value}).leak["seg"], 0.5),
    "of a function": (lambda value: mtopt.sign_dropout(torch.ones(2, 3), leak=value).sum().item(), 1.0),
}
COUNTS = {
    "count": (lambda value: mtopt.SoftAdapt(window=value).window, 3),
    "seed": (lambda value: GradDrop(seed=value).draws.seed, 3),
    "dim": (lambda value: GradDrop(marginalize=value).marginalize[0], 3),
    "losses": (lambda value: MultiLossLayer(value).losses.n_losses, 3),
    "chunk_size": (lambda value: wrap(chunk_size=value).batching.chunk_size, 3),
}


@pytest.mark.parametrize("kind", [float, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_any_kind_is_kept_as_a_python_number(name, kind):
    keep, number = NUMBERS[name]
    kept = keep(kind(number))
    assert type(kept) is float
    assert kept == keep(number)


@pytest.mark.parametrize("kind", [int, np.int8, np.uint16, np.int64])
@pytest.mark.parametrize("name", COUNTS)
def test_a_whole_number_of_any_kind_is_kept_as_a_python_number(name, kind):
    keep, number = COUNTS[name]
    assert type(keep(kind(number))) is int
    assert keep(kind(number)) == number


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        (True, "Write 1.0 or 0.0"),
        (np.bool_(True), r"Call \.item\(\)"),
        (torch.tensor(0.5), r"Call \.item\(\)"),
        (np.array(0.5), r"Call \.item\(\)"),
        (torch.tensor([0.5, 0.5]), r"Call \.tolist\(\)"),
        ("1e-3", r"Call float\(\)"),
        (None, "NoneType"),
        (1j, "complex"),
        (float, "the class float"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_a_type_error_with_the_way_out(name, value, way_out):
    with pytest.raises(TypeError, match=rf"`\w+(\[.*\])?` must be a number.*{way_out}"):
        NUMBERS[name][0](value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_is_not_finite_is_refused(name, value):
    with pytest.raises(ValueError, match=r"`\w+(\[.*\])?` must be"):
        NUMBERS[name][0](value)


@pytest.mark.parametrize("value", [True, 2.0, "3", torch.tensor(3)], ids=repr)
@pytest.mark.parametrize("name", COUNTS)
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=r"`\w+` must be"):
        COUNTS[name][0](value)


@pytest.mark.parametrize("value", [1, "yes", None])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: GradDrop(renormalize=value),
        lambda value: mtopt.SoftAdapt(normalized=value),
        lambda value: mtopt.SoftAdapt(loss_weighted=value),
    ],
    ids=["renormalize", "normalized", "loss_weighted"],
)
def test_a_switch_is_true_or_false(make, value):
    with pytest.raises(TypeError, match="must be True or False"):
        make(value)


@pytest.mark.parametrize("value", ["ab", {0.1, 0.2}, b"ab"], ids=str)
def test_a_string_or_a_set_is_no_list_of_numbers(value):
    for refused in (lambda: GradDrop(leak=value), lambda: mtopt.sign_dropout(torch.ones(2, 3), leak=value)):
        with pytest.raises(TypeError, match="`leak` must be a number"):
            refused()


def test_settings_by_loss_go_by_names():
    with pytest.raises(TypeError, match="`leak` must have names of losses as keys, but one is 0"):
        GradDrop(leak={0: 0.5})


def test_a_choice_names_what_is_near():
    with pytest.raises(ValueError, match="Did you mean 'median'"):
        mtopt.AlignedMTL(scale="medain")
    with pytest.raises(ValueError, match="must be one of"):
        mtopt.MGDA(normalize=["l2"])


def test_a_keep_function_is_called_first():
    with pytest.raises(TypeError, match="the class Sigmoid"):
        GradDrop(keep=nn.Sigmoid)


@pytest.mark.parametrize(
    ("keep", "error", "found"),
    [
        (lambda purity: None, TypeError, "NoneType"),
        (lambda purity: [0.5, 0.5], TypeError, "list"),
        (lambda purity: purity * 1j, TypeError, "complex"),
    ],
    ids=["nothing", "list", "dtype"],
)
def test_a_keep_function_that_returns_no_shares_is_refused_when_it_is_given(keep, error, found):
    with pytest.raises(error, match=f"`keep` must return.*{found}"):
        GradDrop(keep=keep)


def test_a_keep_function_that_small_purities_do_not_suit_is_kept():
    def keep(purity):
        return purity * torch.ones(5)

    assert GradDrop(keep=keep).keep is keep


# -- losses of a layer --


@pytest.mark.parametrize("losses", [True, "ab", 2.0, None, {"a"}, [1, 2], torch.tensor(2)], ids=repr)
def test_a_layer_takes_a_number_or_a_list_of_names(losses):
    with pytest.raises(TypeError, match="`losses` must be how many losses there are, or a list of names"):
        MultiLossLayer(losses)


def test_the_names_of_a_layer_may_come_from_a_dict():
    assert MultiLossLayer({"seg": 1, "depth": 2}.keys()).losses.names == ("seg", "depth")


# -- transforms --


@pytest.mark.parametrize(
    ("transforms", "match"),
    [
        ("pcgrad", r"'pcgrad'. Give the transform itself, e.g. mtopt.PCGrad\(\)"),
        (["grad_norm"], r"e.g. mtopt.GradNorm\(\)"),
        ("zzz", r"e.g. mtopt.GradDrop\(\)"),
        (PCGrad, r"the class PCGrad. Call it to make one: PCGrad\(\)"),
        ([GradDrop(), PCGrad], r"`transforms\[1\]` must be.*Call it to make one: PCGrad\(\)"),
        ([GradDrop(), None], r"`transforms\[1\]` must be.*None. Leave it out"),
        ([[GradDrop()]], "a list. Give one list, with none inside it"),
        ({"a": GradDrop()}, "but it is a dict.*give a list"),
        (nn.Linear(1, 1), r"`transforms\[0\]` must be.*a Linear"),
        (torch.ones(2), r"`transforms\[0\]` must be.*a Tensor"),
    ],
)
@pytest.mark.parametrize("make", [wrap, lambda transforms: MultiLossLayer(2, transforms)], ids=["optimizer", "layer"])
def test_what_is_no_transform_is_refused_with_the_near_name_or_the_way_out(make, transforms, match):
    with pytest.raises(TypeError, match=match):
        make(transforms)


def test_transforms_may_come_from_any_iterable():
    assert len(wrap(make() for make in ROWS.values()).transforms) == len(ROWS)


def test_a_class_of_optimizers_is_no_optimizer():
    with pytest.raises(TypeError, match=r"`inner` must be.*the class SGD\. Make one first"):
        MultiLossOptimizer(torch.optim.SGD)


# -- sites --

LAYERS = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])


@pytest.mark.parametrize(
    ("at", "error", "match"),
    [
        (LAYERS, ValueError, r"`at` is a ModuleList, whose forward is never called.*at=list\(modules\)"),
        (nn.ModuleDict({"a": LAYERS[0]}), ValueError, r"at=list\(modules.values\(\)\)"),
        ([LAYERS[0], LAYERS], ValueError, r"`at\[1\]` is a ModuleList"),
        ([*LAYERS, LAYERS[0]], ValueError, r"`at\[2\]` is the same module as `at\[0\]`. Name each once"),
        (nn.Linear, TypeError, "`at` must be.*the class Linear"),
        ([nn.Linear], TypeError, r"`at\[0\]` must be a module, but it is the class Linear"),
        (LAYERS.parameters(), ValueError, r"`at\[0\]`, of shape \(1, 1\), is no parameter of the inner optimizer"),
        ({"trunk": LAYERS[0]}, TypeError, "`at` must be.*dict"),
        (torch.ones(2), ValueError, r"`at\[0\]`, of shape \(2,\), is no parameter of the inner optimizer"),
        ("parameter", ValueError, "Did you mean 'parameters'"),
        ("trunk", ValueError, "Name a module by itself, e.g. at=model.trunk"),
    ],
    ids=map(str, range(11)),
)
def test_what_is_no_site_is_refused(at, error, match):
    with pytest.raises(error, match=match):
        wrap(at=at)


def test_the_modules_of_a_list_are_sites():
    assert wrap(at=list(LAYERS)).at == list(LAYERS)


# -- losses of a step --


@pytest.mark.parametrize("method", ["step", "backward"])
def test_losses_given_one_by_one_are_refused_with_the_list_form(method):
    weight = nn.Parameter(torch.ones(2))
    optimizer = MultiLossOptimizer(torch.optim.SGD([weight]))
    with pytest.raises(TypeError, match=rf"`losses` must be one list.*Write `{method}\(\[seg_loss, depth_loss\]\)`"):
        getattr(optimizer, method)(weight.sum(), weight.square().sum())
    with pytest.raises(ValueError, match=r"Give the losses themselves, e.g. \[seg_loss, depth_loss\], not their sum"):
        getattr(optimizer, method)(weight.sum() + weight.square().sum())
    with pytest.raises(TypeError, match=r"it is dict_values. Give list\(losses\)"):
        getattr(optimizer, method)({"a": weight.sum()}.values())
    assert weight.grad is None


def told_in_steps(*losses, transforms=None, at="parameters"):
    """What is told in some steps."""
    weight = nn.Parameter(torch.ones(2))
    optimizer = MultiLossOptimizer(torch.optim.SGD([weight]), transforms, at=at)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for make in losses:
            optimizer.step(make(weight))
    return [str(each.message) for each in told]


def total(weight):
    return [weight.sum() + weight.square().sum()]


@pytest.mark.parametrize(
    "losses", [total, lambda w: {"total": total(w)[0]}, lambda w: torch.stack(total(w))], ids=["list", "dict", "tensor"]
)
def test_a_sum_in_place_of_the_losses_is_told_once(losses):
    (told,) = told_in_steps(losses, losses)
    assert "give the losses, not their sum" in told.lower()


@pytest.mark.parametrize(
    ("losses", "transforms"),
    [
        ([total], []),
        ([total], mtopt.DWA()),
        ([lambda w: [w.sum(), None]], None),
        ([lambda w: {"a": None, "b": w.sum()}], None),
        ([lambda w: [w.sum(), w.square().sum()], total], None),
    ],
    ids=["no transforms", "weighting", "absent", "absent by name", "later"],
)
def test_one_loss_that_may_well_be_alone_is_not_told(losses, transforms):
    assert told_in_steps(*losses, transforms=transforms) == []
