"""A method that asks another one for weights. Decides nothing itself."""

from __future__ import annotations

from .._transform import GramianTransform, Losses


class Around(GramianTransform):
    """Takes what the other method takes. That method's state is part of its own."""

    def __init__(self, method: GramianTransform) -> None:
        self.method = method

    @property
    def scale_equivariant(self) -> bool:  # type: ignore[override]  # that of the method
        return self.method.scale_equivariant

    @property
    def uses_values(self) -> bool:  # type: ignore[override]
        return self.method.uses_values

    @property
    def reads_sizes(self) -> bool:  # type: ignore[override]
        return self.method.reads_sizes

    def check(self, losses: Losses) -> None:
        self.method.check(losses)

    def check_losses(self, losses: Losses) -> None:
        super().check_losses(losses)
        self.method.check_losses(losses)
