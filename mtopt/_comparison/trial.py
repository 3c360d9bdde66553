"""A first batch, and one step of each method on it, to find mistakes before a long study. No results are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from .._transform import LossesLike
from .batches import Batches
from .randomness import RandomStream
from .returned import losses_by_name, new_model
from .runs import RunRecord, train
from .study import Study


def try_out(study: Study) -> None:
    """Take one step with each method, and the metrics once; whatever a function of the study raises is raised."""
    seed = study.seeds[0]
    one_step = replace(study, batches=[first_batch(study, seed)], epochs=1, seconds=None)
    earlier: list[RunRecord] = []
    for method in study.methods:
        try:
            earlier.append(train(one_step, method, seed, earlier, lambda share: None))
        except Exception as error:
            error.add_note(f"In a first step of {method!r}, to try it out. Nothing is trained yet.")
            raise
        one_step = replace(one_step, make_metrics=None)


def first_losses(study: Study) -> tuple[LossesLike, nn.Module]:
    """The losses of the first batch, by a new model; and the model."""
    seed = study.seeds[0]
    with RandomStream(seed):
        model = new_model(study)
        losses = study.make_losses(model, first_batch(study, seed))
    losses_by_name(losses)  # raises where there are none
    return losses, model


def first_batch(study: Study, seed: int) -> Any:
    batches = Batches(study.batches, seed)
    with batches.seeded():
        return next(batches.epoch())
