"""JAX frontend.

>>> from cvxlayers.jax import CvxpyLayer
"""

from cvxlayers.jax.layer import CvxpyLayer

__all__ = ["CvxpyLayer"]
