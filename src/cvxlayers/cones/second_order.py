"""The second-order (Lorentz) cone."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from cvxlayers.cones.barrier import barrier_level, below_one, smooth_positive
from cvxlayers.cones.base import Array, rescale
from cvxlayers.cones.second_derivative import broadcast_zeros, on_units, symmetric_product

__all__ = ["AxisRotation", "SecondOrder"]

# From this length on the eigenvectors are a reflection and not a matrix: q numbers, not q².
LONG = 100


class AxisRotation:
    """The eigenvectors U of DΠ for second-order cones with the axis u = w₁/‖w₁‖.

    The columns of U are the normal (1, -u)/√2, the ray (1, u)/√2 and (0, H e_k) for k > 1, with
    H = I - v vᵀ/(1 + |u₁|), v = u ± e₁, the Householder reflection that takes the first axis to
    ±u. The sign avoids cancellation.

    Parameters
    ----------
    axis : array
        u, shape (..., c, q - 1), of length one.

    References
    ----------
    G. H. Golub, C. F. Van Loan, Matrix Computations, Section 5.1.
    """

    def __init__(self, axis: Array) -> None:
        self.axis = axis

    def __getitem__(self, index: Any) -> AxisRotation:
        return AxisRotation(self.axis[index])

    @property
    def normal(self) -> Array:
        """(1, -u)/√2, shape (..., c, q)."""
        return self._edge(-self.axis)

    @property
    def ray(self) -> Array:
        """(1, u)/√2, shape (..., c, q)."""
        return self._edge(self.axis)

    def matrix(self) -> Array:
        """U itself, shape (..., c, q, q)."""
        xp = array_namespace(self.axis)
        q = self.axis.shape[-1] + 1
        return self.multiply(xp.eye(q, dtype=self.axis.dtype, device=device(self.axis)))

    def multiply(self, X: Array, transpose: bool = False) -> Array:
        """U X or Uᵀ X for X of shape (..., c, q, n)."""
        xp = array_namespace(self.axis, X)
        u = self.axis[..., None]
        root_half = 0.5**0.5
        first, rest = X[..., :1, :], X[..., 1:, :]
        if transpose:
            along = xp.sum(u * rest, axis=-2, keepdims=True)
            reflected = self._reflect(xp, rest)[..., 1:, :]
            top = [root_half * (first - along), root_half * (first + along)]
            return xp.concat([*top, reflected], axis=-2)
        second, tangent = rest[..., :1, :], rest[..., 1:, :]
        padded = xp.concat([xp.zeros_like(second), tangent], axis=-2)
        below = root_half * (second - first) * u + self._reflect(xp, padded)
        above = root_half * (first + second)
        shape = (*below.shape[:-2], 1, below.shape[-1])
        return xp.concat([xp.broadcast_to(above, shape), below], axis=-2)

    def _edge(self, axis: Array) -> Array:
        xp = array_namespace(axis)
        return 0.5**0.5 * xp.concat([xp.ones_like(axis[..., :1]), axis], axis=-1)

    def _reflect(self, xp: Any, X: Array) -> Array:
        first = self.axis[..., :1]
        e1 = xp.eye(1, self.axis.shape[-1], dtype=self.axis.dtype, device=device(self.axis))[0]
        v = (self.axis + xp.where(first >= 0.0, 1.0, -1.0) * e1)[..., None]
        weight = xp.sum(v * X, axis=-2, keepdims=True) / (1.0 + xp.abs(first)[..., None])
        return X - weight * v


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

    def spectrum(
        self, w: Array, near: Array | None = None
    ) -> tuple[Array, Array | AxisRotation | None]:
        """Eigenvalues 0, 1 and (1 + w₀/‖w₁‖)/2 (q - 2 times) between K and its polar cone.

        The eigenvectors are those of `AxisRotation`, with the first axis for u where w₁ = 0.

        References
        ----------
        E. Busseti, W. M. Moursi, S. Boyd, Solution refinement at regular points of conic
        problems (2019).
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

        rotation = AxisRotation(axis)
        return lam, rotation if self.q >= LONG else rotation.matrix()

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Π_μ(w) = ½ s₊ (1, u) + ½ s₋ (1, −u), u = w₁/‖w₁‖, s± = ½ (w± + √(w±² + 8μ)).

        w± = w₀ ± ‖w₁‖ and s± are eigenvalues, of which the barrier is −log s₊ − log s₋; the
        squared norm is half the sum of their squares. The half-line q = 1 has the barrier
        −log s.
        """
        xp = array_namespace(w)
        if self.q == 1:
            return smooth_positive(xp, w, barrier_level(xp, w, mu))[0]
        s, root, _ = _smooth_parts(xp, w, mu)
        # s₊ − s₋ from the divided difference.
        tangent = (s[0] + s[1]) / (root[0] + root[1])
        return xp.concat([0.5 * (s[0] + s[1]), tangent * w[..., 1:]], axis=-1)

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, Array | AxisRotation | None]:
        """Eigenvalues s₋/r₋, s₊/r₊ and (s₊ + s₋)/(r₊ + r₋) (q - 2 times), r± = √(w±² + 8μ).

        The eigenvectors are those of `spectrum`.
        """
        xp = array_namespace(w)
        if self.q == 1:
            s, root = smooth_positive(xp, w, barrier_level(xp, w, mu))
            return below_one(xp, s / root), None
        (s, t), (root, other), axis = _smooth_parts(xp, w, mu)
        tangent = (s + t) / (root + other)
        repeated = xp.broadcast_to(tangent, (*tangent.shape[:-1], self.q - 2))
        lam = below_one(xp, xp.concat([s / root, t / other, repeated], axis=-1))
        rotation = AxisRotation(axis)
        return lam, rotation if self.q >= LONG else rotation.matrix()

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] = (h⊥·k⊥) v + (v·h) k⊥ + (v·k) h⊥, in a number of operations O(q).

        See `second_derivative`, with the ray (1, u)/√2, the normal (-1, u)/√2 and, for ϱ = ‖w₁‖,
        λ = (1 + w₀/ϱ)/2, |s| = (ϱ + w₀)/√2, |p| = (ϱ - w₀)/√2: between K and its polar cone

            h⊥ = (0, h₁ - (u·h₁) u),   v = (1, -(w₀/ϱ) u)/(2ϱ).
        """
        xp = array_namespace(w, h, k)
        if self.q == 1:
            return broadcast_zeros(xp, w, h, k)
        return on_units(xp, lambda w, h, k: _second(xp, w, h, k), w, h, k)


def _second(xp: Any, w: Array, h: Array, k: Array) -> Array:
    w0, length, axis = _polar_form(xp, w)
    between = (w0 <= length) & (w0 > -length)
    safe = xp.where(between, length, 1.0)
    v = xp.concat([xp.ones_like(w0), -(w0 / safe) * axis], axis=-1) / (2.0 * safe)

    def across(h: Array) -> Array:
        rest = h[..., 1:]
        part = rest - xp.sum(axis * rest, axis=-1, keepdims=True) * axis
        return xp.concat([xp.zeros_like(part[..., :1]), part], axis=-1)

    return symmetric_product(xp, xp.where(between, v, 0.0), h, k, across(h), across(k))


def _smooth_parts(xp: Any, w: Array, mu: Array | float) -> tuple[list[Array], list[Array], Array]:
    """(s₋, s₊), the roots (r₋, r₊) and u."""
    w0, length, axis = _polar_form(xp, w)
    level = 2.0 * barrier_level(xp, w, mu)
    pairs = [smooth_positive(xp, value, level) for value in (w0 - length, w0 + length)]
    return [s for s, _ in pairs], [root for _, root in pairs], axis


def _polar_form(xp: Any, w: Array) -> tuple[Array, Array, Array]:
    """Split w into w₀ (..., 1), ‖w₁‖ (..., 1) and u = w₁/‖w₁‖ (..., q - 1)."""
    w0, w1 = w[..., :1], w[..., 1:]
    length = xp.linalg.vector_norm(w1, axis=-1, keepdims=True)
    if w1.shape[-1] == 0:
        return w0, length, w1
    first_axis = xp.eye(1, w1.shape[-1], dtype=w.dtype, device=device(w))[0]
    axis = xp.where(length > 0.0, w1 / xp.where(length > 0.0, length, 1.0), first_axis)
    return w0, length, axis
