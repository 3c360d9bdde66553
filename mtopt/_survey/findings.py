"""All that a conflict report found, as numbers. No words, no pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
    meetings: tuple[ConflictAt, ...]
    best: Place
    plain_seconds: float
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain Python values that `json.dumps` takes; `None` for what is not finite."""
        return {
            "losses": list(self.losses),
            "modules": [module.to_dict() for module in self.modules],
            "total": self.total.to_dict(),
            "meetings": [meeting.to_dict() for meeting in self.meetings],
            "best": asdict(self.best),
            "plain_seconds": self.plain_seconds,
            "costs": [asdict(cost) for cost in self.costs],
            "notes": list(self.notes),
        }
