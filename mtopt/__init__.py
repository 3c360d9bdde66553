"""Train one network on several losses: a wrapper for any torch optimizer, with Gradient Sign Dropout."""

from .layer import MultiLossLayer
from .methods.base import GramianTransform, Losses, LossWeighting, RowTransform, Site, Transform
from .methods.graddrop import GradDrop
from .methods.uncertainty import UncertaintyWeighting
from .optimizer import MultiLossOptimizer
from .rows import per_loss_gradients
from .signs import sign_dropout, sign_purity

__all__ = [
    "GradDrop",
    "GramianTransform",
    "LossWeighting",
    "Losses",
    "MultiLossLayer",
    "MultiLossOptimizer",
    "RowTransform",
    "Site",
    "Transform",
    "UncertaintyWeighting",
    "per_loss_gradients",
    "sign_dropout",
    "sign_purity",
]
__version__ = "0.1.0"
