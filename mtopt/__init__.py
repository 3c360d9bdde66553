"""Train one network on several losses: a wrapper for any torch optimizer, with Gradient Sign Dropout."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import _methods
from ._graph.rows import per_loss_gradients
from ._layer import MultiLossLayer
from ._methods import *  # noqa: F403  (its names are listed there, once)
from ._monitor import Monitor
from ._optimizer import MultiLossOptimizer
from ._record import Record
from ._signs import sign_dropout, sign_purity
from ._total import total
from ._transform import GramianTransform, Losses, LossWeighting, RowTransform, Site, Transform
from ._version import __version__

if _TYPE_CHECKING:
    from ._comparison.compare import Comparison, compare
    from ._survey.report import ConflictReport, conflict_report

__all__ = [
    "Comparison",
    "ConflictReport",
    "GramianTransform",
    "LossWeighting",
    "Losses",
    "Monitor",
    "MultiLossLayer",
    "MultiLossOptimizer",
    "Record",
    "RowTransform",
    "Site",
    "Transform",
    "__version__",
    "compare",
    "conflict_report",
    "per_loss_gradients",
    "sign_dropout",
    "sign_purity",
    "total",
]
__all__ += _methods.__all__

# What people look at with takes time to load, so it is loaded when it is first asked for.
_LOADED_LATER = {
    "Comparison": "._comparison.compare",
    "ConflictReport": "._survey.report",
    "compare": "._comparison.compare",
    "conflict_report": "._survey.report",
}


def __getattr__(name: str) -> _Any:
    if name not in _LOADED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(_LOADED_LATER[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
