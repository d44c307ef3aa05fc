"""The three-dimensional power cone, with the notation of `power_equation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import ArrayLike

from cvxlayers.arrays import held
from cvxlayers.cones.barrier import barrier_level, spectrum_of_hessian
from cvxlayers.cones.base import Array, at_least, frame_of_ray, rescale
from cvxlayers.cones.power_barrier import SmoothPoint, find_smooth_point
from cvxlayers.cones.power_equation import find_parts
from cvxlayers.cones.second_derivative import in_frame, on_units

__all__ = ["ThreeDimPower"]

# |w_z| below 1e-100 of the rest is zero for all purposes.
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

        Where w_z = 0 they are diag(w_x > 0, w_y > 0, λ): with β the exponent of the positive entry
        p, and m >= 0 minus the other, λ is 0 for β < ½, 1 for β > ½ and p/(p + 2m) for β = ½.
        """
        xp = array_namespace(w)
        α = _exponents(xp, self.alpha, w)
        _, part = _split(xp, w, self.alpha, near)
        frame = _frame(xp, part, α, xp.where(w[..., 2] < 0.0, -1.0, 1.0))
        tangent = frame.flatness / (frame.flatness + part.nu * frame.curvature)
        zero, one = xp.zeros_like(tangent), xp.ones_like(tangent)
        lam = xp.stack([zero, one, tangent], axis=-1)

        flat_lam = _spectrum_in_plane(xp, w, α)
        axes = xp.eye(3, dtype=w.dtype, device=device(w))
        lam = xp.where(part.flat[..., None], flat_lam, lam)
        lam = xp.where(part.inside[..., None], 1.0, xp.where(part.polar[..., None], 0.0, lam))
        return lam, xp.where(part.flat[..., None, None], axes, frame.U)

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Π_μ(w) by one scalar equation, see `power_barrier`."""
        xp = array_namespace(w)
        width, point = self._smooth(xp, w, mu, near)
        return width * xp.stack([point.x, point.y, point.z], axis=-1)

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, Array]:
        """Eigenvalues and eigenvectors of (I + μ ∇²φ(s))⁻¹ for s = Π_μ(w)."""
        xp = array_namespace(w)
        _, point = self._smooth(xp, w, mu, near)
        α = _exponents(xp, self.alpha, w)
        return spectrum_of_hessian(xp, *point.hessian(xp, α))

    def _smooth(
        self, xp: Any, w: Array, mu: Array | float, near: Array | None
    ) -> tuple[Array, SmoothPoint]:
        """√μ and Π₁(w/√μ)."""
        width = xp.sqrt(barrier_level(xp, w, mu))
        α = _exponents(xp, self.alpha, w)
        return width, find_smooth_point(xp, w / width, α, None if near is None else near / width)

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] = (h⊥·k⊥) v + (v·h) k⊥ + (v·k) h⊥ (see `second_derivative`).

        In the notation of `spectrum`, with M = N/(x y), |s| = ‖R‖, |p| = ν ‖M‖ and
        λ = 1/(1 + ν κ²), ν κ² = α (1-α) |p| r ‖R‖²/(x² y² ‖M‖³). Along t, s and p keep their
        lengths, and s changes by λ t. With σ = ±1 the sign of w_z,

            (log x)˙ = (y² + (1-α) r²) λ γ,   (log y)˙ = -(x² + α r²) λ γ,   γ = -σ/(‖N‖ ‖R‖),
            (log r)˙ = α (log x)˙ + (1-α) (log y)˙,
            (log ‖M‖)˙ = α (1-α) ((log y)˙ - (log x)˙) (α r²/x² - (1-α) r²/y²)/‖M‖²,
            T(t, t, t) = -λ (1-λ) ((log r)˙ - 2 (log x)˙ - 2 (log y)˙ - 3 (log ‖M‖)˙).

        Sorted by monomials, which cancels nothing where x ≪ y or y ≪ x, this is
        σ λ² (1-λ) E/(‖N‖³ ‖R‖) with

            E = (1-2α) (y² N_x² + x² N_y² - (4 + 2 α (1-α)) r² N_z²)
                + ((1+α) x² - (2-α) y²) N_z² + r² ((1+α) N_x² - (2-α) N_y²).

        Where w_z = 0 it is the limit for α = ½ and 0 otherwise: with β the exponent of the positive
        entry, that is the limit for β < 1/3 and β > 2/3, and else T(z, z, z) has none.
        """
        xp = array_namespace(w, h, k)
        return on_units(xp, lambda w, h, k: _second(xp, self.alpha, w, h, k), w, h, k)


def _second(xp: Any, alpha: Array, w: Array, h: Array, k: Array) -> Array:
    α = _exponents(xp, alpha, w)
    _, part = _split(xp, w, alpha, None)
    sign = xp.where(w[..., 2] < 0.0, -1.0, 1.0)
    f = _frame(xp, part, α, sign)
    β = 1.0 - α
    x2, y2, r2 = f.x**2, f.y**2, f.r**2
    Nx2, Ny2, Nz2 = (f.normal[..., i] ** 2 for i in range(3))
    E = (β - α) * (y2 * Nx2 + x2 * Ny2 - (4.0 + 2.0 * α * β) * r2 * Nz2)
    E = E + ((1.0 + α) * x2 - (1.0 + β) * y2) * Nz2 + r2 * ((1.0 + α) * Nx2 - (1.0 + β) * Ny2)

    n, R = f.normal_length, f.ray_length
    total = f.flatness + part.nu * f.curvature
    λ, rest = f.flatness / total, part.nu * f.curvature / total
    n_tt = -λ * (f.curvature / total) * (xp.abs(f.normal[..., 2]) / n)
    r_tt = rest * (f.normal_size * n * n / R / total)
    t_tt = sign * λ * rest * (E / n / R / total)

    # Where r or ν is below what `find_parts` resolves, they do not belong to x and y: a kink, too.
    residual = α * xp.log(f.x) + β * xp.log(f.y) - xp.log(f.r)
    linear = part.inside | part.polar | (xp.abs(residual) > 1e-6)
    flat = _second_in_plane(xp, w, α)
    n_tt, r_tt, t_tt = (
        xp.where(part.flat, b, xp.where(linear, 0.0, a))
        for a, b in zip((n_tt, r_tt, t_tt), flat, strict=True)
    )
    axes = xp.eye(3, dtype=w.dtype, device=device(w))
    U = xp.where(part.flat[..., None, None], axes, f.U)
    return in_frame(xp, U, (n_tt, r_tt, t_tt), h, k)


def _second_in_plane(xp: Any, w: Array, α: Array) -> tuple[Array, Array, Array]:
    """T(x, z, z), T(y, z, z) and T(z, z, z) where w_z = 0 outside K and K°, not zero for α = ½.

    There λ = p/(p + 2m), |s| = p, |p| = m, and the normal is minus the axis of m.
    """
    above, below = (at_least(xp, a, 0.0) for a in (w[..., :2], -w[..., :2]))
    p, m = xp.max(above, axis=-1), xp.max(below, axis=-1)
    total = xp.where(p > 0.0, p + 2.0 * m, 1.0)
    weight = xp.where(α == 0.5, 2.0 / total, 0.0)
    on_x, zero = above[..., 0] >= above[..., 1], xp.zeros_like(p)
    along, across = weight * (m / total), weight * (p / total)
    return xp.where(on_x, along, across), xp.where(on_x, across, along), zero


def _exponents(xp: Any, alpha: Array, w: Array) -> Array:
    return xp.broadcast_to(held(alpha, w), w.shape[:-1])


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
class _Frame:
    """x, y, r divided by the larger of x and y, N by their powers and `normal_size`; the frame
    (n, r, t) and the lengths of these N and R; λ = flatness/(flatness + ν curvature)."""

    U: Array
    x: Array
    y: Array
    r: Array
    normal: Array
    normal_size: Array
    normal_length: Array
    ray_length: Array
    flatness: Array
    curvature: Array


def _frame(xp: Any, part: _Split, α: Array, sign: Array) -> _Frame:
    # All is homogeneous in s.
    size = xp.maximum(part.x, part.y)
    x, y, r = part.x / size, part.y / size, part.r / size
    ray = xp.stack([x, y, sign * r], axis=-1)
    normal = xp.stack([-α * r * y, -(1.0 - α) * r * x, sign * x * y], axis=-1)
    normal_size = xp.max(xp.abs(normal), axis=-1)
    normal = normal / normal_size[..., None]
    U, n, R = frame_of_ray(xp, normal, ray)
    flatness = size * normal_size * n * n
    curvature = α * (1.0 - α) * (r / normal_size) * R * R
    return _Frame(U, x, y, r, normal, normal_size, n, R, flatness, curvature)


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

    guess = None if near is None else xp.abs(near[..., 2]) / scale[..., 0]
    return scale, _Split(inside, polar, flat, *find_parts(xp, wx, wy, height, α, guess))
