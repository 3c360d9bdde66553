"""Train one network on several losses: a wrapper for any torch optimizer, with Gradient Sign Dropout."""

from .comparison.compare import Comparison, compare
from .layer import MultiLossLayer
from .methods.aligned_mtl import AlignedMTL
from .methods.base import GramianTransform, Losses, LossWeighting, RowTransform, Site, Transform
from .methods.cagrad import CAGrad
from .methods.conflict_free import ConFIG
from .methods.constant import ConstantWeights
from .methods.dual_proj import DualProj
from .methods.dwa import DWA
from .methods.fairgrad import FairGrad
from .methods.famo import FAMO
from .methods.geometric_mean import GeometricMean
from .methods.graddrop import GradDrop
from .methods.gradnorm import GradNorm
from .methods.gradvac import GradVac
from .methods.imtl_g import IMTLG
from .methods.imtl_l import IMTLL
from .methods.mgda import MGDA
from .methods.nash_mtl import NashMTL
from .methods.pcgrad import PCGrad
from .methods.relobralo import ReLoBRaLo
from .methods.rlw import RLW
from .methods.soft_adapt import SoftAdapt
from .methods.stch import STCH
from .methods.uncertainty import UncertaintyWeighting
from .methods.upgrad import UPGrad
from .monitor import Monitor, Record
from .optimizer import MultiLossOptimizer
from .rows import per_loss_gradients
from .signs import sign_dropout, sign_purity
from .survey.report import ConflictReport, conflict_report

__all__ = [
    "DWA",
    "FAMO",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "RLW",
    "STCH",
    "AlignedMTL",
    "CAGrad",
    "Comparison",
    "ConFIG",
    "ConflictReport",
    "ConstantWeights",
    "DualProj",
    "FairGrad",
    "GeometricMean",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GramianTransform",
    "LossWeighting",
    "Losses",
    "Monitor",
    "MultiLossLayer",
    "MultiLossOptimizer",
    "NashMTL",
    "PCGrad",
    "ReLoBRaLo",
    "Record",
    "RowTransform",
    "Site",
    "SoftAdapt",
    "Transform",
    "UPGrad",
    "UncertaintyWeighting",
    "compare",
    "conflict_report",
    "per_loss_gradients",
    "sign_dropout",
    "sign_purity",
]
__version__ = "0.1.0"
