"""The nonnegative orthant."""

from __future__ import annotations

from array_api_compat import array_namespace

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
        """Π(w) = max(w, 0).

        Parameters
        ----------
        w : array
            Shape (..., c, q).
        near : array, optional
            Not needed.

        Returns
        -------
        array
            Shape (..., c, q).
        """
        return at_least(array_namespace(w), w, 0.0)

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, None]:
        """DΠ(w) = diag(w > 0).

        Parameters
        ----------
        w : array
            Shape (..., c, q).
        near : array, optional
            Not needed.

        Returns
        -------
        lam : array
            Shape (..., c, q): 1 where w > 0, else 0.
        U : None
            The identity.
        """
        return array_namespace(w).astype(w > 0.0, w.dtype), None

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] = 0, on the kinks too.

        Parameters
        ----------
        w, h, k : array
            Shapes (..., c, q) that broadcast.

        Returns
        -------
        array
            Shape (..., c, q), all 0.
        """
        return broadcast_zeros(array_namespace(w, h, k), w, h, k)
