"""Random programs against a slow oracle: at every site right, or refused with reason and nothing changed.

`MTOPT_PROGRAMS=20000 pytest tests/test_fuzz.py -n auto` runs the long form; `MTOPT_FIRST` is its first seed.
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from oracle import Oracle, edge_of
from programs import Program

from mtopt import GradDrop, GramianTransform, MultiLossOptimizer, RowTransform

PROGRAMS = int(os.environ.get("MTOPT_PROGRAMS", "100"))
FIRST = int(os.environ.get("MTOPT_FIRST", "0"))
CHUNK = 50
NAMED = ("activations", "nested", "parameters", "all parameters")


class Prevailing(RowTransform):
    """At each coordinate the rows by their shares of it: not linear, smooth, and a row of zeros changes nothing."""

    uses_values, scale_equivariant = False, True

    def transform(self, rows, site):
        return rows * rows.abs() / rows.abs().sum(0).clamp_min(1e-300)


class OneLength(GramianTransform):
    """All rows as long as their mean; a row of zeros is none."""

    uses_values, scale_equivariant = False, True

    def weights(self, gramian, losses):
        lengths = gramian.diagonal().clamp_min(0).sqrt()
        some = lengths > 0
        return torch.where(some, lengths[some].mean() / lengths.clamp_min(1e-300), 0.0)


def prevailing(rows):
    return Prevailing().transform(rows, None).sum(0)


def one_length(rows):
    flat = rows.flatten(1)
    return torch.tensordot(OneLength().weights(flat @ flat.T, None), rows, 1)


METHODS = {"leaking": [GradDrop(leak=1.0)], "prevailing": [Prevailing()], "one length": [OneLength()]}
COMBINE = {"leaking": lambda rows: rows.sum(0), "prevailing": prevailing, "one length": one_length}
JUSTIFIED = ("share no", "share nothing", "never meet", "read different parts", "does not reach", "made nothing")


def run(model, transforms, at):
    """The gradients, or the refusal, after which nothing may have changed."""
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = MultiLossOptimizer(inner, transforms, at=at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3 if at == "activations" else 1):  # the first ones look at the whole graph
            model.zero_grad()
            losses = model()
            before = torch.get_rng_state()
            try:
                optimizer.backward(losses)
            except (RuntimeError, ValueError) as error:
                unchanged = all(p.grad is None for p in model.parameters())
                unchanged &= torch.equal(before, torch.get_rng_state())
                return f"{error}"[:150] if unchanged else f"something changed, and then: {error}"
    return [p.grad for p in model.parameters()]


def near(ours, expected, low):
    """Where a loss reads no number of a tensor, autograd has zeros and we have nothing."""
    zero = torch.zeros((), dtype=torch.float64)
    for a, b in zip(ours, expected, strict=True):
        a, b = (zero if a is None else a), (zero if b is None else b)
        size = float(b.abs().max()) + 1e-6
        if float((a - b).abs().max()) > (1e-3 if low else 1e-7) * size:
            return False
    return True


def expected(oracle, at, method, tapped):
    """What the oracle says; `None` where the losses share no place at which to decide."""
    combine = COMBINE[method]
    if len(oracle.roots) == 1:
        return oracle.plain()
    if at == "activations":
        return oracle.at_activations(combine)
    if at == "nested":
        return oracle.nested(combine)
    if at in ("parameters", "all parameters"):
        jointly = method == "one length"
        decided = oracle.at_all_parameters(combine) if jointly else oracle.at_parameters(combine)
        return decided if oracle.sharing() else None
    return oracle.at_edges(tapped, combine)


def fault(seed):
    """What is wrong with one program, or None."""
    model = Program(seed)
    losses = list(model())
    if not losses:
        return None
    oracle = Oracle(losses, list(model.parameters()))
    tapped = {edge_of(tensor) for tensor in model.tapped}
    readable = not oracle.reading_nothing()  # else an entry of a vector may be refused
    got = run(model, [], "activations")
    if readable if isinstance(got, str) else not near(got, oracle.plain(), model.low):
        return f"plain: {got}"
    for at in (*NAMED, model.tap):
        for method, transforms in METHODS.items():
            if at == "parameters" and method == "one length":
                continue  # which of the exclusive parameters count is the matter of tests/test_final_sites.py
            got, wanted = run(model, transforms, at), expected(oracle, at, method, tapped)
            unclear = model.by_example and "parameters" not in str(at)
            what = f"{at if isinstance(at, str) else 'module'}, {method}: "
            if isinstance(got, str):
                due = wanted is None or unclear or (at == "activations" and oracle.only_at_a_parameter())
                if not (due and any(word in got for word in JUSTIFIED)) and (readable or "require grad" not in got):
                    return what + got
            elif wanted is None and not unclear:
                return what + "not refused"
            elif not unclear and not near(got, wanted, model.low):
                return what + "wrong"
            elif method == "leaking" and not near(got, oracle.plain(), model.low):
                return what + "not the plain sum"
    return None


@pytest.mark.parametrize("start", range(FIRST, FIRST + PROGRAMS, CHUNK))
def test_random_programs_are_right_or_refused_at_every_site(start):
    faults = {seed: found for seed in range(start, min(start + CHUNK, FIRST + PROGRAMS)) if (found := fault(seed))}
    assert faults == {}
