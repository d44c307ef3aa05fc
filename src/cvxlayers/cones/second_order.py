"""The second-order (Lorentz) cone."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from cvxlayers.cones.base import Array, rescale

__all__ = ["SecondOrder"]


class SecondOrder:
    """K = {(w₀, w₁) : ‖w₁‖ <= w₀} in R^q, the bound first; self-dual.

    Parameters
    ----------
    q : int
        Rows of a block, at least 1; q = 1 is the nonnegative half-line.

    Raises
    ------
    ValueError
        If q < 1.

    Examples
    --------
    >>> import numpy as np
    >>> SecondOrder(3).project(np.array([[0.0, 3.0, 4.0]]))
    array([[2.5, 1.5, 2. ]])
    """

    def __init__(self, q: int) -> None:
        if q < 1:
            raise ValueError(f"a second-order cone has at least one row, got q = {q}")
        self.q = q

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Π(w) = ½ (w₀ + ‖w₁‖) (1, w₁/‖w₁‖) between K and its polar cone.

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

        References
        ----------
        N. Parikh, S. Boyd, Proximal Algorithms (2014), Section 6.3.2.
        """
        xp = array_namespace(w)
        scale, unit = rescale(xp, w)
        w0, length, axis = _polar_form(xp, unit)
        half = 0.5 * (w0 + length)
        between = scale * xp.concat([half, half * axis], axis=-1)
        return xp.where(w0 >= length, w, xp.where(w0 <= -length, 0.0, between))

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, Array | None]:
        """Eigenvalues 0, 1 and (1 + w₀/‖w₁‖)/2 (q - 2 times) between K and its polar cone.

        The eigenvectors are (1, -u)/√2 and (1, u)/√2 with u = w₁/‖w₁‖ (the first axis where
        w₁ = 0), and (0, v) with v orthogonal to u: the columns but the first of the Householder
        reflection that takes the first axis to ±u.

        Parameters
        ----------
        w : array
            Shape (..., c, q).
        near : array, optional
            Not needed.

        Returns
        -------
        lam : array
            Shape (..., c, q): all 1 where w₀ > ‖w₁‖, all 0 where w₀ <= -‖w₁‖ (the apex too).
        U : array or None
            Shape (..., c, q, q), orthonormal columns; None, the identity, where q = 1.

        References
        ----------
        E. Busseti, W. M. Moursi, S. Boyd, Solution refinement at regular points of conic
        problems (2019), for the derivative; G. H. Golub, C. F. Van Loan, Matrix Computations,
        Section 5.1, for the reflection.
        """
        xp = array_namespace(w)
        if self.q == 1:
            return xp.astype(w > 0.0, w.dtype), None
        _, unit = rescale(xp, w)
        w0, length, axis = _polar_form(xp, unit)

        tangent = 0.5 * (w0 + length) / xp.where(length > 0.0, length, 1.0)
        zero, one = xp.zeros_like(w0), xp.ones_like(w0)
        repeated = xp.broadcast_to(tangent, (*tangent.shape[:-1], self.q - 2))
        lam = xp.concat([zero, one, repeated], axis=-1)
        lam = xp.where(w0 > length, 1.0, xp.where(w0 <= -length, 0.0, lam))

        # H = I - v vᵀ / (1 + |u₁|) with v = u ± e₁, the sign that avoids cancellation.
        identity = xp.eye(self.q - 1, dtype=w.dtype, device=device(w))
        first = axis[..., :1]
        v = axis + xp.where(first >= 0.0, 1.0, -1.0) * identity[0]
        reflection = identity - v[..., :, None] * (v / (1.0 + xp.abs(first)))[..., None, :]
        root_half = 0.5**0.5
        column = root_half * axis[..., None]
        top = xp.concat([root_half * one, root_half * one, xp.zeros_like(repeated)], axis=-1)
        below = xp.concat([-column, column, reflection[..., 1:]], axis=-1)
        return lam, xp.concat([top[..., None, :], below], axis=-2)


def _polar_form(xp: Any, w: Array) -> tuple[Array, Array, Array]:
    """Split w into w₀ (..., 1), ‖w₁‖ (..., 1) and u = w₁/‖w₁‖ (..., q - 1)."""
    w0, w1 = w[..., :1], w[..., 1:]
    length = xp.linalg.vector_norm(w1, axis=-1, keepdims=True)
    if w1.shape[-1] == 0:
        return w0, length, w1
    first_axis = xp.eye(1, w1.shape[-1], dtype=w.dtype, device=device(w))[0]
    axis = xp.where(length > 0.0, w1 / xp.where(length > 0.0, length, 1.0), first_axis)
    return w0, length, axis
