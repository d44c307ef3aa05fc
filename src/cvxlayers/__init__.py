"""Differentiable convex optimization layers.

Import the layer of your framework: ``from cvxlayers.torch import CvxpyLayer``. This module itself
holds what all have in common, and imports no framework and no solver.
"""

from cvxlayers.errors import (
    CvxlayersError,
    NotDPPError,
    ParameterTypeError,
    ParameterValueError,
    SolverError,
    UnsupportedProblemError,
)
from cvxlayers.status import Status

__all__ = [
    "CvxlayersError",
    "NotDPPError",
    "ParameterTypeError",
    "ParameterValueError",
    "SolverError",
    "Status",
    "UnsupportedProblemError",
    "__version__",
]

__version__ = "0.1.0"
