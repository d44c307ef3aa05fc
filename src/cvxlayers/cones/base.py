"""What all cones share: the protocol, exact rescaling and the frame of a ray on a surface."""

from __future__ import annotations

from typing import Any, Protocol

from cvxlayers.arrays import Array

__all__ = ["EPS", "Array", "Cone", "at_least", "at_most", "frame_of_ray", "rescale", "within"]

# From 1 to the next float64.
EPS = 2.0**-52


class Cone(Protocol):
    """A closed convex cone K, evaluated on c equal blocks of q rows at once.

    On a kink of Π_K every cone gives the smaller element of the generalised derivative: an
    eigenvalue is 1 in the normal direction only strictly inside K, and all are 0 on the closed
    polar cone, the apex w = 0 included. A weakly active constraint thus counts as active.
    """

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Euclidean projection Π_K(w).

        Parameters
        ----------
        w : array
            Shape (..., c, q).
        near : array, optional
            Guess of Π_K(w), of the shape of `w`. It only saves iterations, where there are any.

        Returns
        -------
        array
            Shape (..., c, q).
        """
        ...

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, Any]:
        """Eigenvalues and eigenvectors of DΠ_K(w).

        Parameters
        ----------
        w, near : array
            As for `project`.

        Returns
        -------
        lam : array
            Shape (..., c, q), between 0 and 1.
        U : array or AxisRotation or None
            Orthonormal columns, shape (..., c, q, q); None stands for the identity, and a long
            second-order cone has an `AxisRotation`.
        """
        ...

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """Second derivative D²Π_K(w)[h, k].

        It is bilinear, and ⟨D²Π[h, k], l⟩ is symmetric in all three. Exactly zero where Π is
        linear. Where `spectrum` counts a weakly active constraint as active, this is the limit
        from that side; what has no limit is zero.

        Parameters
        ----------
        w, h, k : array
            Shapes (..., c, q) that broadcast.

        Returns
        -------
        array
            Of the shape to which the three broadcast.
        """
        ...

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Smoothed projection Π_μ(w), strictly inside K (see `barrier`).

        Parameters
        ----------
        w : array
            Shape (..., c, q).
        mu : array or float
            Positive; broadcasts with (..., c, 1).
        near : array, optional
            Guess of Π_μ(w), of the shape of `w`. It only saves iterations, where there are any.

        Returns
        -------
        array
            Shape (..., c, q).
        """
        ...

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, Any]:
        """As `spectrum`, of DΠ_μ(w): eigenvalues strictly between 0 and 1.

        Parameters
        ----------
        w, mu, near : array
            As for `smooth`.

        Returns
        -------
        lam, U
            As of `spectrum`.
        """
        ...


# array-api-compat's clip costs NumPy ten times as much as these; NaN stays NaN in all three.


def at_least(xp: Any, x: Array, bound: Array | float) -> Array:
    """max(x, bound)."""
    return xp.where(x < bound, bound, x)


def at_most(xp: Any, x: Array, bound: Array | float) -> Array:
    """min(x, bound)."""
    return xp.where(x > bound, bound, x)


def within(xp: Any, x: Array, lower: Array | float, upper: Array | float) -> Array:
    """The point of [lower, upper] nearest to x."""
    return at_most(xp, at_least(xp, x, lower), upper)


def rescale(xp: Any, w: Array) -> tuple[Array, Array]:
    """Split every block into a power of two and a block whose largest entry is in [1, 2).

    A power of two keeps ties exact (a point on the boundary stays on it) and squares and ratios
    of the entries clear of overflow. Entries below 1e-200 of the largest are dropped.
    """
    largest = xp.max(xp.abs(w), axis=-1, keepdims=True)
    exponent = xp.floor(xp.log2(xp.where(largest > 0.0, largest, 1.0)))
    # 2^1024 overflows although 2^1023.9 does not.
    scale = 2.0 ** at_most(xp, exponent, 1023.0)
    unit = w / scale
    return scale, xp.where(xp.abs(unit) <= 1e-200, 0.0, unit)


def frame_of_ray(xp: Any, normal: Array, ray: Array) -> tuple[Array, Array, Array]:
    """Orthonormal columns (n, r, n x r) from an orthogonal pair in R^3, and the two lengths.

    Parameters
    ----------
    normal, ray : array
        Shape (..., 3), orthogonal in exact arithmetic, neither of them zero.
    """
    normal_length = xp.linalg.vector_norm(normal, axis=-1)
    ray_length = xp.linalg.vector_norm(ray, axis=-1)
    n = normal / normal_length[..., None]
    r = ray / ray_length[..., None]
    n0, n1, n2 = n[..., 0], n[..., 1], n[..., 2]
    r0, r1, r2 = r[..., 0], r[..., 1], r[..., 2]
    t = xp.stack([n1 * r2 - n2 * r1, n2 * r0 - n0 * r2, n0 * r1 - n1 * r0], axis=-1)
    return xp.stack([n, r, t], axis=-1), normal_length, ray_length
