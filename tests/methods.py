"""Every method of the library, ready for three losses, with its random numbers fixed."""

from __future__ import annotations

import mtopt

WEIGHTINGS = {
    "CausalWeights": lambda: mtopt.CausalWeights(eps=0.5),
    "ConstantWeights": lambda: mtopt.ConstantWeights([2.0, 0.5, 1.5]),
    "DWA": mtopt.DWA,
    "FAMO": mtopt.FAMO,
    "GeometricMean": mtopt.GeometricMean,
    "IMTLL": lambda: mtopt.IMTLL(lr=0.1),
    "RLW": lambda: mtopt.RLW(seed=5),
    "ReLoBRaLo": lambda: mtopt.ReLoBRaLo(seed=5, beta=0.5),
    "STCH": lambda: mtopt.STCH(warmup_epochs=1),
    "SoftAdapt": mtopt.SoftAdapt,
    "UncertaintyWeighting": lambda: mtopt.UncertaintyWeighting(lr=0.1),
}
GRAMIAN = {
    "AlignedMTL": mtopt.AlignedMTL,
    "CAGrad": mtopt.CAGrad,
    "ConFIG": mtopt.ConFIG,
    "CRMOGM": lambda: mtopt.CRMOGM(mtopt.UPGrad(), average=0.5),
    "DBMTL": mtopt.DBMTL,
    "DCGD": mtopt.DCGD,
    "DualProj": mtopt.DualProj,
    "FairGrad": lambda: mtopt.FairGrad(alpha=2.0),
    "GradNorm": lambda: mtopt.GradNorm(lr=0.1),
    "GradVac": lambda: mtopt.GradVac(seed=5),
    "GradientNorms": lambda: mtopt.GradientNorms(average=0.5, period=2),
    "GradientNorms, of norms": lambda: mtopt.GradientNorms(average=0.5, of="norms"),
    "IMTLG": mtopt.IMTLG,
    "Krum": lambda: mtopt.Krum(n_byzantine=0),
    "MGDA": mtopt.MGDA,
    "MGDA, loss": lambda: mtopt.MGDA(normalize="loss+"),
    "MoCo": mtopt.MoCo,
    "NashMTL": mtopt.NashMTL,
    "PCGrad": lambda: mtopt.PCGrad(seed=5),
    "UPGrad": mtopt.UPGrad,
}
ROWS = {"GradDrop": lambda: mtopt.GradDrop(seed=5), "TrimmedMean": mtopt.TrimmedMean}
SIZES = {"Annealing": lambda: mtopt.Annealing(average=0.5, period=2)}  # by more than the Gramian
METHODS = {**WEIGHTINGS, **GRAMIAN, **SIZES, **ROWS}


def after_step(transforms, losses):
    """What some methods are to be told after a step: its losses again, and that an epoch is over."""
    for transform in transforms:
        if isinstance(transform, mtopt.FAMO):
            transform.observe([loss.detach() for loss in losses])
        if isinstance(transform, (mtopt.DWA, mtopt.STCH)):
            transform.epoch_end()
