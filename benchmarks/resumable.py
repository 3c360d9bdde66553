"""What benchmarks that go on where they were stopped share: their file of finished runs, and the next rate to try."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


def read_runs(path: Path, kind: type[R]) -> dict[R, dict[str, Any]]:
    """Finished runs, one JSON object in a line, by what each is made of; none, if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [field.name for field in fields(kind)]
    return {kind(*(line[name] for name in names)): line for line in map(json.loads, lines)}


def beside(options: Sequence[float], best: float, tried: Collection[float]) -> float:
    """The next option where the best is the lowest or the highest that was tried; else, or where there is none, the
    best."""
    place = options.index(best) + (best == max(tried)) - (best == min(tried))
    return options[min(max(place, 0), len(options) - 1)]
