"""What a Monitor saw in one step. No gradients, no pictures."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Record:
    """What was seen in one step.

    Attributes:
        step: Its number, from 0.
        numbers: Each under a name such as `site0/norm/seg`.
        losses: What each loss that was present is called.
        purity: For each site, how many coordinates have a purity in each of 20 equal parts of [0, 1].
        cosines: For each site, those of each two losses' gradients, `(T, T)` in the order of `losses`.
    """

    step: int
    numbers: dict[str, float] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    purity: dict[str, list[float]] = field(default_factory=dict)
    cosines: dict[str, list[list[float]]] = field(default_factory=dict)
