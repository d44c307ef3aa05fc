"""Projections onto cones and the spectra of their derivatives, over any array namespace."""

from cvxlayers.cones.base import Cone
from cvxlayers.cones.exponential import Exponential
from cvxlayers.cones.nonneg import NonNegative
from cvxlayers.cones.power import ThreeDimPower
from cvxlayers.cones.product import ProductCone
from cvxlayers.cones.psd import PSD, smat, svec
from cvxlayers.cones.second_order import AxisRotation, SecondOrder
from cvxlayers.cones.spectrum import Group, Spectrum
from cvxlayers.cones.zero import Zero

__all__ = [
    "PSD",
    "AxisRotation",
    "Cone",
    "Exponential",
    "Group",
    "NonNegative",
    "ProductCone",
    "SecondOrder",
    "Spectrum",
    "ThreeDimPower",
    "Zero",
    "smat",
    "svec",
]
