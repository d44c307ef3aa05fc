"""The zero cone."""

from __future__ import annotations

from array_api_compat import array_namespace

from cvxlayers.cones.base import Array
from cvxlayers.cones.second_derivative import broadcast_zeros

__all__ = ["Zero"]


class Zero:
    """K = {0}, the cone of equality constraints; its dual is the whole space.

    Examples
    --------
    >>> import numpy as np
    >>> Zero().project(np.array([[3.0], [-1.0]]))
    array([[0.],
           [0.]])
    """

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Π(w) = 0."""
        return array_namespace(w).zeros_like(w)

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, None]:
        """DΠ(w) = 0."""
        return array_namespace(w).zeros_like(w), None

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Π_μ(w) = 0: an equation has no barrier."""
        return array_namespace(w).zeros_like(w)

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, None]:
        """DΠ_μ(w) = 0."""
        return array_namespace(w).zeros_like(w), None

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] = 0."""
        return broadcast_zeros(array_namespace(w, h, k), w, h, k)
