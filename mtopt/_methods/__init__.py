"""Every method, by its public name: a new one is named here, and nowhere else in the package. No code."""

from .aligned_mtl import AlignedMTL
from .cagrad import CAGrad
from .conflict_free import ConFIG
from .constant import ConstantWeights
from .dual_proj import DualProj
from .dwa import DWA
from .every import Every
from .fairgrad import FairGrad
from .famo import FAMO
from .geometric_mean import GeometricMean
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .gradvac import GradVac
from .imtl_g import IMTLG
from .imtl_l import IMTLL
from .mgda import MGDA
from .momentum import Momentum
from .nash_mtl import NashMTL
from .pcgrad import PCGrad
from .relobralo import ReLoBRaLo
from .rlw import RLW
from .soft_adapt import SoftAdapt
from .stch import STCH
from .uncertainty import UncertaintyWeighting
from .upgrad import UPGrad
from .whitening import Whitening

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
    "ConFIG",
    "ConstantWeights",
    "DualProj",
    "Every",
    "FairGrad",
    "GeometricMean",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "Momentum",
    "NashMTL",
    "PCGrad",
    "ReLoBRaLo",
    "SoftAdapt",
    "UPGrad",
    "UncertaintyWeighting",
    "Whitening",
]
