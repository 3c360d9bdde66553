"""All that a conflict report found, as numbers. No words, no pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from torch import Tensor

from .._combine.conflict import Conflict
from .cost import Cost
from .places import Place
from .rows import ConflictAt


@dataclass(frozen=True, repr=False)
class Findings:
    """What `ConflictReport` documents."""

    losses: tuple[str, ...]
    modules: tuple[ConflictAt, ...]
    total: Conflict
    signals: Tensor
    meetings: tuple[ConflictAt, ...]
    best: Place
    clock: str
    plain_seconds: float
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    verdict: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain Python values that `json.dumps` takes; `None` for what is not finite."""
        return {
            "losses": list(self.losses),
            "modules": [module.to_dict() for module in self.modules],
            "total": self.total.to_dict(),
            "signals": [[None if isnan(s) else s for s in row] for row in self.signals.tolist()],
            "meetings": [meeting.to_dict() for meeting in self.meetings],
            "best": asdict(self.best),
            "clock": self.clock,
            "plain_seconds": self.plain_seconds,
            "costs": [asdict(cost) for cost in self.costs],
            "notes": list(self.notes),
            "verdict": list(self.verdict),
        }
