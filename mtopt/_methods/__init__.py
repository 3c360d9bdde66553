"""Every method, by its public name: a new one is named here, and nowhere else in the package. No code."""

from .aligned_mtl import AlignedMTL
from .annealing import Annealing
from .cagrad import CAGrad
from .causal import CausalWeights
from .conflict_free import ConFIG
from .constant import ConstantWeights
from .cr_mogm import CRMOGM
from .db_mtl import DBMTL
from .dcgd import DCGD
from .dual_proj import DualProj
from .dwa import DWA
from .every import Every
from .fairgrad import FairGrad
from .famo import FAMO
from .geometric_mean import GeometricMean
from .graddrop import GradDrop
from .gradient_norms import GradientNorms
from .gradnorm import GradNorm
from .gradvac import GradVac
from .imtl_g import IMTLG
from .imtl_l import IMTLL
from .krum import Krum
from .mgda import MGDA
from .moco import MoCo
from .momentum import Momentum
from .nash_mtl import NashMTL
from .pcgrad import PCGrad
from .relobralo import ReLoBRaLo
from .rlw import RLW
from .soft_adapt import SoftAdapt
from .stch import STCH
from .trimmed_mean import TrimmedMean
from .uncertainty import UncertaintyWeighting
from .upgrad import UPGrad
from .whitening import Whitening

__all__ = [
    "CRMOGM",
    "DBMTL",
    "DCGD",
    "DWA",
    "FAMO",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "RLW",
    "STCH",
    "AlignedMTL",
    "Annealing",
    "CAGrad",
    "CausalWeights",
    "ConFIG",
    "ConstantWeights",
    "DualProj",
    "Every",
    "FairGrad",
    "GeometricMean",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientNorms",
    "Krum",
    "MoCo",
    "Momentum",
    "NashMTL",
    "PCGrad",
    "ReLoBRaLo",
    "SoftAdapt",
    "TrimmedMean",
    "UPGrad",
    "UncertaintyWeighting",
    "Whitening",
]
