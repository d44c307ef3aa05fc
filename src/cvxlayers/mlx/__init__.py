"""MLX frontend.

>>> from cvxlayers.mlx import CvxpyLayer
"""

from cvxlayers.mlx.layer import CvxpyLayer
from cvxlayers.mlx.tracing import vmap

__all__ = ["CvxpyLayer", "vmap"]
