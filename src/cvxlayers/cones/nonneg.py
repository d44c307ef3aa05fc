"""The nonnegative orthant."""

from __future__ import annotations

from array_api_compat import array_namespace

from cvxlayers.cones.barrier import barrier_level, below_one, smooth_positive
from cvxlayers.cones.base import Array, at_least
from cvxlayers.cones.second_derivative import broadcast_zeros

__all__ = ["NonNegative"]


class NonNegative:
    """K = {w : w >= 0}, entry by entry; self-dual.

    Examples
    --------
    >>> import numpy as np
    >>> NonNegative().project(np.array([[3.0], [-1.0]]))
    array([[3.],
           [0.]])
    """

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Π(w) = max(w, 0)."""
        return at_least(array_namespace(w), w, 0.0)

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, None]:
        """DΠ(w) = diag(w > 0)."""
        return array_namespace(w).astype(w > 0.0, w.dtype), None

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Π_μ(w) = ½ (w + √(w² + 4μ))."""
        xp = array_namespace(w)
        return smooth_positive(xp, w, barrier_level(xp, w, mu))[0]

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, None]:
        """DΠ_μ(w) = diag(s/√(w² + 4μ)) for s = Π_μ(w)."""
        xp = array_namespace(w)
        s, root = smooth_positive(xp, w, barrier_level(xp, w, mu))
        return below_one(xp, s / root), None

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] = 0, on the kinks too."""
        return broadcast_zeros(array_namespace(w, h, k), w, h, k)
