"""What a backward did, in words. Holds no tensor and no graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class SiteReport:
    """One place where rows were combined."""

    kind: str
    shape: tuple[int, ...]
    losses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}: losses {', '.join(self.losses)}"


@dataclass
class Report:
    """One backward: the engine and why, what to do if it is slow, the sites, the parameters' owners."""

    engine: str
    reason: str
    slow: str
    sites: list[SiteReport] = field(default_factory=list)
    shared: int = 0
    exclusive: int = 0
    batching: str = ""
    ranks: int = 1

    def __str__(self) -> str:
        lines = [f"engine: {self.engine}"]
        if self.batching:
            lines.append(f"per-loss gradients: {self.batching}")
        if self.ranks > 1:
            lines.append(f"ranks: {self.ranks}, in agreement")
        lines.append(f"parameters: {self.shared} shared by several losses, {self.exclusive} exclusive to one")
        if self.sites:
            numbers = sum(math.prod(site.shape) for site in self.sites)
            lines.append(f"sites: {len(self.sites)}, {numbers:,} coordinates in all")
            lines += [f"  {site}" for site in self.sites[:SHOWN]]
            if len(self.sites) > SHOWN:
                lines.append(f"  ... and {len(self.sites) - SHOWN} more")
        lines += [f"why: {self.reason}", f"if it is slow: {self.slow}"]
        return "\n".join(lines)


SHOWN = 8
