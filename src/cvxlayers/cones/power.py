"""The three-dimensional power cone.

Away from K, its polar cone and the plane w_z = 0, Hien (2015), Proposition 2.2, writes the
projection through r = |s_z| in (0, |w_z|) alone: with ν = |w_z| - r,

    x = ½ (w_x + √(w_x² + 4 α r ν)),   y = ½ (w_y + √(w_y² + 4 (1 - α) r ν)),   x^α y^(1-α) = r.

Both r and ν may be tiny, so the unknown is τ = log(r/ν). The residual

    L(τ) = log r - α log x - (1 - α) log y

crosses zero once, upwards. It is nearly straight in τ where x or y stays put or is proportional
to ν, and in r or ν where it levels off; a Newton step in r is one in τ, transformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import ArrayLike

from cvxlayers.cones.base import Array, at_least, frame_of_ray, rescale
from cvxlayers.cones.root_finding import CLOSE, EPS, find_root

__all__ = ["ThreeDimPower"]

# r or ν below e^-100 |w_z| is zero for all purposes, and so is |w_z| below 1e-100 of the rest.
FAR = 100.0
FLAT = 1e-100


class ThreeDimPower:
    """K = {(x, y, z) : x^α y^(1-α) >= |z|, x, y >= 0}, three rows in the order of CVXPY.

    Parameters
    ----------
    alpha : array_like
        Exponents in (0, 1), shape (c,): one for each block.

    Raises
    ------
    ValueError
        If an exponent is not strictly between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> ThreeDimPower([0.5]).project(np.array([[1.0, 1.0, 4.0]]))
    array([[2., 2., 2.]])
    """

    def __init__(self, alpha: ArrayLike) -> None:
        self.alpha = np.atleast_1d(np.asarray(alpha, dtype=np.float64))
        if not np.all((self.alpha > 0.0) & (self.alpha < 1.0)):
            raise ValueError(f"exponents must lie strictly between 0 and 1, got {alpha!r}")

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Π(w) by one scalar equation in τ = log(r/ν).

        Parameters
        ----------
        w : array
            Shape (..., c, 3).
        near : array, optional
            Guess of Π(w), shape (..., c, 3); it only saves iterations.

        Returns
        -------
        array
            Shape (..., c, 3).

        References
        ----------
        L. T. K. Hien, Differential properties of Euclidean projection onto power cone, Math.
        Methods Oper. Res. 82 (2015) 265-284.
        """
        xp = array_namespace(w)
        scale, part = _split(xp, w, self.alpha, near)
        sign = xp.where(w[..., 2] < 0.0, -1.0, 1.0)
        s = scale * xp.stack([part.x, part.y, sign * part.r], axis=-1)
        plane = xp.stack([at_least(xp, w[..., 0], 0.0), at_least(xp, w[..., 1], 0.0)], axis=-1)
        plane = xp.concat([plane, xp.zeros_like(plane[..., :1])], axis=-1)
        s = xp.where(part.flat[..., None], plane, s)
        return xp.where(part.inside[..., None], w, xp.where(part.polar[..., None], 0.0, s))

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, Array]:
        """Eigenvalues 0, 1 and 1/(1 + ν κ²), for the normal, the ray and their cross product.

        s = w - ν ∇g(s) with g = |z| - x^α y^(1-α). On the tangent plane DΠ = (I + ν ∇²g)^-1, and
        ∇²g = α (1-α) r v vᵀ with v = (1/x, -1/y, 0) orthogonal to the ray. With R = (x, y, ±r),
        N = (-α r y, -(1-α) r x, ±x y), t = N x R/(‖N‖ ‖R‖): |v·t| = ‖R‖/‖N‖, so
        κ² = α (1-α) r ‖R‖²/‖N‖².

        Parameters
        ----------
        w : array
            Shape (..., c, 3).
        near : array, optional
            Guess of Π(w), shape (..., c, 3); it only saves iterations.

        Returns
        -------
        lam : array
            Shape (..., c, 3): all 1 strictly inside K, all 0 on the polar cone. Where w_z = 0,
            diag(w_x > 0, w_y > 0, λ): with β the exponent of the positive entry p, and m >= 0
            minus the other, λ is 0 for β < ½, 1 for β > ½ and p/(p + 2m) for β = ½.
        U : array
            Shape (..., c, 3, 3), orthonormal columns.
        """
        xp = array_namespace(w)
        α = _exponents(xp, self.alpha, w)
        _, part = _split(xp, w, self.alpha, near)
        sign = xp.where(w[..., 2] < 0.0, -1.0, 1.0)

        # Everything below is homogeneous in s: divide by its larger entry, and N by its own.
        size = xp.maximum(part.x, part.y)
        x, y, r = part.x / size, part.y / size, part.r / size
        ray = xp.stack([x, y, sign * r], axis=-1)
        normal = xp.stack([-α * r * y, -(1.0 - α) * r * x, sign * x * y], axis=-1)
        normal_size = xp.max(xp.abs(normal), axis=-1)
        U, n, R = frame_of_ray(xp, normal / normal_size[..., None], ray)

        flatness = size * normal_size * n * n
        curvature = part.nu * α * (1.0 - α) * (r / normal_size) * R * R
        zero, one = xp.zeros_like(x), xp.ones_like(x)
        lam = xp.stack([zero, one, flatness / (flatness + curvature)], axis=-1)

        flat_lam = _spectrum_in_plane(xp, w, α)
        axes = xp.eye(3, dtype=w.dtype, device=device(w))
        lam = xp.where(part.flat[..., None], flat_lam, lam)
        lam = xp.where(part.inside[..., None], 1.0, xp.where(part.polar[..., None], 0.0, lam))
        return lam, xp.where(part.flat[..., None, None], axes, U)


def _exponents(xp: Any, alpha: Array, w: Array) -> Array:
    shared = xp.asarray(alpha, dtype=w.dtype, device=device(w))
    return xp.broadcast_to(shared, w.shape[:-1])


def _spectrum_in_plane(xp: Any, w: Array, α: Array) -> Array:
    """Eigenvalues along the axes where w_z = 0 outside K and K°: s is on an edge of the quadrant.

    Near the edge p = 1 K is {d >= |z|^(1/(1-β))}: its curvature is infinite, 2 or 0.
    """
    w2 = w[..., :2]
    above = xp.astype(w2 > 0.0, w.dtype)
    p = xp.max(at_least(xp, w2, 0.0), axis=-1)
    m = xp.max(at_least(xp, -w2, 0.0), axis=-1)
    β = xp.where(w2[..., 0] > 0.0, α, 1.0 - α)
    balanced = p / xp.where(p > 0.0, p + 2.0 * m, 1.0)
    across = xp.where(β < 0.5, 0.0, xp.where(β > 0.5, 1.0, balanced))
    return xp.concat([above, across[..., None]], axis=-1)


@dataclass(frozen=True)
class _Split:
    """Where w lies, and the projection where w is on neither cone nor plane, shapes (..., c)."""

    inside: Array
    polar: Array
    flat: Array
    x: Array
    y: Array
    r: Array
    nu: Array


def _split(xp: Any, w: Array, alpha: Array, near: Array | None) -> tuple[Array, _Split]:
    α = _exponents(xp, alpha, w)
    scale, unit = rescale(xp, w)
    wx, wy, height = unit[..., 0], unit[..., 1], xp.abs(unit[..., 2])
    px, py = at_least(xp, wx, 0.0), at_least(xp, wy, 0.0)
    inside = (wx > 0.0) & (wy > 0.0) & (px**α * py ** (1.0 - α) > height)
    mx, my = at_least(xp, -wx, 0.0), at_least(xp, -wy, 0.0)
    dual = (mx / α) ** α * (my / (1.0 - α)) ** (1.0 - α)
    polar = (wx <= 0.0) & (wy <= 0.0) & (dual >= height)
    flat = ~(inside | polar) & (height <= FLAT)

    # Any point on the smooth part serves where there is nothing to solve.
    smooth = ~(inside | polar | flat)
    wx, wy, height = (xp.where(smooth, a, b) for a, b in ((wx, 0.0), (wy, 0.0), (height, 1.0)))

    def parts(τ: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
        """The parts r, ν of |w_z|, the two square roots, x and y."""
        ratio = xp.exp(-xp.abs(τ))
        small, large = height * ratio / (1.0 + ratio), height / (1.0 + ratio)
        r, nu = xp.where(τ < 0.0, small, large), xp.where(τ < 0.0, large, small)
        root_x, x = _positive_root(xp, wx, α * r * nu)
        root_y, y = _positive_root(xp, wy, (1.0 - α) * r * nu)
        return r, nu, root_x, root_y, x, y

    def evaluate(τ: Array) -> tuple[Array, tuple[Array, Array], Array]:
        r, nu, root_x, root_y, x, y = parts(τ)
        log_x, log_y = α * xp.log(x / r), (1.0 - α) * xp.log(y / r)
        value = -(log_x + log_y)
        # dx/dr = α (ν - r)/root_x, and dr/dτ = r ν/|w_z|.
        inner = α / root_x * (α / x) + (1.0 - α) / root_y * ((1.0 - α) / y)
        slope = (1.0 - r * inner * (nu - r)) * (nu / height)
        straight = -value / xp.where(slope > 0.0, slope, 1.0)
        noise = 1.0 + xp.abs(log_x) + xp.abs(log_y)
        converged = (xp.abs(value) <= 4.0 * EPS * noise) | (xp.abs(straight) <= CLOSE)
        # A step Δ in r is Δ = straight · r ν/|w_z|; then τ + step = log((r + Δ)/(ν - Δ)).
        more, less = 1.0 + straight * (nu / height), 1.0 - straight * (r / height)
        valid = (more > 0.0) & (less > 0.0)
        levelling = xp.log(xp.where(valid, more, 1.0)) - xp.log(xp.where(valid, less, 1.0))
        levelling = xp.where(valid, levelling, straight)
        return value, (levelling, straight), converged

    guess = xp.zeros_like(height)
    if near is not None:
        r = xp.abs(near[..., 2]) / scale[..., 0]
        known = (r > 0.0) & (r < height)
        r = xp.where(known, r, 0.5 * height)
        guess = xp.log(r) - xp.log(height - r)
    far = xp.full_like(height, FAR)
    τ = find_root(xp, evaluate, -far, far, guess)
    polished = τ + evaluate(τ)[1][1]
    r, nu, _, _, x, y = parts(xp.where(xp.abs(polished - τ) <= 1e-3, polished, τ))
    return scale, _Split(inside, polar, flat, x, y, r, nu)


def _positive_root(xp: Any, b: Array, c: Array) -> tuple[Array, Array]:
    """√(b² + 4c) and the positive root of t² - b t - c = 0, without cancellation."""
    root = xp.sqrt(b * b + 4.0 * c)
    far = 0.5 * (xp.abs(b) + root)
    return root, xp.where(b >= 0.0, far, c / far)
