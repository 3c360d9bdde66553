"""What the user's functions return, checked. No training."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .._optimizer import MultiLossOptimizer
from .study import Study


def new_model(study: Study) -> nn.Module:
    model = study.make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"`make_model` must return a torch.nn.Module, but it returned {type(model).__name__}.")
    return model


def new_optimizer(study: Study, model: nn.Module) -> Optimizer:
    parameters = list(model.parameters())
    if study.make_optimizer is None:
        return torch.optim.Adam(parameters, lr=1e-3)
    inner = study.make_optimizer(parameters)
    if not isinstance(inner, Optimizer) or isinstance(inner, MultiLossOptimizer):
        raise TypeError(
            f"`make_optimizer` must return a plain torch.optim.Optimizer, but it returned {type(inner).__name__}."
        )
    return inner


def described(inner: Optimizer) -> str:
    """An optimizer's settings on one line."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(inner).split()))


def weights_digest(model: nn.Module) -> str:
    """A digest of all parameters and buffers, bit for bit."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        digest.update(name.encode())
        if not is_lazy(tensor) and tensor.layout == torch.strided:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def losses_by_name(losses: object) -> dict[str, Tensor | None]:
    """The losses by their names, or their indices in a list."""
    if isinstance(losses, Mapping):
        entries = dict(losses)
    elif isinstance(losses, Sequence) or (isinstance(losses, Tensor) and losses.ndim == 1):
        entries = {str(i): loss for i, loss in enumerate(losses)}
    elif losses is None:
        entries = {}
    else:
        what = f"a tensor of shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(f"`make_losses` must return a list or a dict of losses, but it returned {what}.")
    if all(loss is None for loss in entries.values()):
        raise ValueError(
            f"`make_losses` returned no losses: {losses!r}. Return a list or a dict with at least one for each batch."
        )
    return entries


def value_of(loss: object) -> float:
    """0 for what is no scalar: the optimizer refuses that, and says why."""
    return float(loss.detach()) if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex() else 0.0


def numbers_by_name(metrics: object, before: Mapping[str, object] | None) -> dict[str, float | None]:
    """The metrics, in the order of those `before`; `None` for one that is not finite."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"`make_metrics` must return a dict of numbers, but it returned {type(metrics).__name__}.")
    numbers = {str(name): _number(name, metric) for name, metric in metrics.items()}
    names = list(numbers if before is None else before)
    if set(numbers) != set(names):
        raise ValueError(f"`make_metrics` returned {list(numbers)}, but {names} before. Return the same in each call.")
    return {name: numbers[name] for name in names}


def _number(name: object, metric: object) -> float | None:
    if isinstance(metric, Tensor) and metric.numel() == 1:
        metric = metric.item()
    try:
        number = float(metric)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"`make_metrics` must return numbers, but {name!r} is {type(metric).__name__}.") from None
    return number if math.isfinite(number) else None
