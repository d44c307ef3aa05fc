"""The derivative of the solution map, by direct factorisation of the KKT system.

At a solution, with w = s − z, s = Π(w), z = Π(w) − w, D = DΠ(w) = U diag(λ) Uᵀ and Ã = Uᵀ A:

    [ P   Ãᵀ ] [u]   [r₁]        M = diag(λ/(1−λ)),  rows with λ = 1 dropped
    [ Ã   −M ] [v̄] = [r₂]

One symmetric system serves the gradient (`ImplicitDerivative.vjp`), the directional derivative
(`jvp`) and the Newton steps that polish the solution (`polish`). Derivation: docs/how_it_works.
Where there is an engine (`cvxlayers.lanes`) the same system is solved in lanes (`LaneSystem`), and
`factor` is for singular ones.
"""

from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.implicit import ImplicitDerivative
from cvxlayers.derivative.lpgd import LpgdDerivative
from cvxlayers.derivative.polish import Polished, polish, residuals
from cvxlayers.derivative.quality import Quality, quality
from cvxlayers.derivative.smoothing import SmoothedDerivative, central_point
from cvxlayers.derivative.system import System, memory_of_factor

__all__ = [
    "Geometry",
    "ImplicitDerivative",
    "LpgdDerivative",
    "Polished",
    "Quality",
    "SmoothedDerivative",
    "System",
    "central_point",
    "memory_of_factor",
    "polish",
    "quality",
    "residuals",
]
