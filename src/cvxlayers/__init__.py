"""Differentiable convex optimization layers.

``cvxlayers.CvxpyLayer`` answers in the framework of its arguments: NumPy, PyTorch, JAX or MLX.
Inside a PyTorch model, and where the framework is known, import its own layer, for instance
``from cvxlayers.torch import CvxpyLayer``. This module itself imports no framework, no solver and
not CVXPY, which loads JAX where that is installed.
"""

from typing import TYPE_CHECKING, Any

from cvxlayers.errors import (
    CvxlayersError,
    NotDPPError,
    ParameterTypeError,
    ParameterValueError,
    SolverError,
    SolverWarning,
    StorageError,
    UnsupportedProblemError,
)
from cvxlayers.info import Info
from cvxlayers.status import Status

if TYPE_CHECKING:
    from cvxlayers.layer import CvxpyLayer

__all__ = [
    "CvxlayersError",
    "CvxpyLayer",
    "Info",
    "NotDPPError",
    "ParameterTypeError",
    "ParameterValueError",
    "SolverError",
    "SolverWarning",
    "Status",
    "StorageError",
    "UnsupportedProblemError",
    "__version__",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "CvxpyLayer":
        from cvxlayers.layer import CvxpyLayer

        return CvxpyLayer
    raise AttributeError(f"module 'cvxlayers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
