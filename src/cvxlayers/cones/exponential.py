"""The exponential cone, with the notation and the derivation of `exponential_slope`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from cvxlayers.cones.barrier import barrier_level, spectrum_of_hessian
from cvxlayers.cones.base import Array, at_least, at_most, frame_of_ray, rescale, within
from cvxlayers.cones.exponential_barrier import SmoothPoint, find_smooth_point
from cvxlayers.cones.exponential_slope import FARTHEST, TINY, find_slope, weights
from cvxlayers.cones.second_derivative import in_frame, on_units

__all__ = ["Exponential"]


class Exponential:
    """K = closure{(x, y, z) : y > 0, y exp(x/y) <= z}, three rows in the order of CVXPY.

    Examples
    --------
    >>> import numpy as np
    >>> Exponential().project(np.array([[1.0, 0.0, 1.0]])).round(4)
    array([[0.39  , 0.2703, 1.1441]])
    """

    def project(self, w: Array, near: Array | None = None) -> Array:
        """Π(w) by one scalar equation in the slope ρ.

        References
        ----------
        H. A. Friberg, Projection onto the exponential cone: a univariate root-finding problem,
        2021.
        """
        xp = array_namespace(w)
        scale, part = _split(xp, w, near)
        y, ρ, decay = part.y, part.slope, part.decay
        s = scale * xp.stack([ρ * y, y, part.z], axis=-1)
        face = xp.stack([w[..., 0], xp.zeros_like(decay), at_least(xp, w[..., 2], 0.0)], axis=-1)
        s = xp.where(part.face[..., None], face, s)
        return xp.where(part.inside[..., None], w, xp.where(part.polar[..., None], 0.0, s))

    def spectrum(self, w: Array, near: Array | None = None) -> tuple[Array, Array]:
        """Eigenvalues 0, 1 and y/(y + μ κ²), for the normal, the ray and their cross product.

        s = w - ν ∇g(s) with g = y e^(x/y) - z and ν = μ e^-ρ. On the tangent plane
        DΠ = (I + ν ∇²g)^-1, and ν ∇²g = (μ/y) v vᵀ with v = (1, -ρ, 0) orthogonal to the ray. With
        N = (1, 1 - ρ, -e^-ρ), R = (ρ, 1, e^ρ), t = N x R/(‖N‖ ‖R‖): v·t = κ = e^-ρ ‖R‖/‖N‖.

        On the face w_x, w_y <= 0 they are diag(w_x < 0, 0, w_z > 0).
        """
        xp = array_namespace(w)
        _, part = _split(xp, w, near)
        frame = _frame(xp, part)
        zero, one = xp.zeros_like(frame.lam), xp.ones_like(frame.lam)
        lam = xp.stack([zero, one, frame.lam], axis=-1)

        positive = xp.astype(w > 0.0, w.dtype)
        negative = xp.astype(w < 0.0, w.dtype)
        on_face = xp.stack([negative[..., 0], zero, positive[..., 2]], axis=-1)
        axes = xp.eye(3, dtype=w.dtype, device=device(w))
        lam = xp.where(part.face[..., None], on_face, lam)
        lam = xp.where(part.inside[..., None], 1.0, xp.where(part.polar[..., None], 0.0, lam))
        return lam, xp.where(part.face[..., None, None], axes, frame.U)

    def smooth(self, w: Array, mu: Array | float, near: Array | None = None) -> Array:
        """Π_μ(w) by Newton's method, see `exponential_barrier`."""
        xp = array_namespace(w)
        width, point = self._smooth(xp, w, mu, near)
        return width * xp.stack([point.x, point.y, point.z], axis=-1)

    def smooth_spectrum(
        self, w: Array, mu: Array | float, near: Array | None = None
    ) -> tuple[Array, Array]:
        """Eigenvalues and eigenvectors of (I + μ ∇²φ(s))⁻¹ for s = Π_μ(w)."""
        xp = array_namespace(w)
        return spectrum_of_hessian(xp, *self._smooth(xp, w, mu, near)[1].hessian(xp))

    def _smooth(
        self, xp: Any, w: Array, mu: Array | float, near: Array | None
    ) -> tuple[Array, SmoothPoint]:
        """√μ and Π₁(w/√μ)."""
        width = xp.sqrt(barrier_level(xp, w, mu))
        unit = w / width
        margin = 1.0 / (1.0 + xp.max(xp.abs(unit), axis=-1))
        guess = self.project(unit) if near is None else near / width
        # A guess is positive; the projection may lie on the boundary.
        y, z = (at_least(xp, guess[..., i], 0.0) for i in (1, 2))
        if near is None:
            y, z = y + margin, z + margin
        else:
            y, z = xp.where(y > 0.0, y, margin), xp.where(z > 0.0, z, margin)
        return width, find_smooth_point(xp, unit, y, z)

    def second(self, w: Array, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k] = (h⊥·k⊥) v + (v·h) k⊥ + (v·k) h⊥ (see `second_derivative`).

        In the notation of `spectrum`, |s| = y ‖R‖ and |p| = μ ‖N‖. With Y = y + μ κ², λ = y/Y,

            T(r, t, t) = (1 - λ)/(Y ‖R‖),   T(n, t, t) = -λ κ²/(Y ‖N‖).

        Along t, s and p keep their lengths, and s changes by λ t, so with R' = (1, 0, e^ρ)

            ẏ/y = -ρ̇ (log ‖R‖)',   μ̇/μ = -ρ̇ (log ‖N‖)',   λ = y ρ̇ (R'·t) = y ρ̇/κ,

        and λ = 1/(1 + μ κ²/y) with κ = e^-ρ ‖R‖/‖N‖ changes by

            T(t, t, t) = -λ (1 - λ) (κ/Y) (3 (log ‖R‖)' - 3 (log ‖N‖)' - 2).

        It is zero on the face w_x, w_y <= 0, too.
        """
        xp = array_namespace(w, h, k)
        return on_units(xp, lambda w, h, k: _second(xp, w, h, k), w, h, k)


def _second(xp: Any, w: Array, h: Array, k: Array) -> Array:
    _, part = _split(xp, w, None)
    f = _frame(xp, part)
    ρ, λ, Y, κ = part.slope, f.lam, f.total, f.stretch
    # μ, or the factor of N, vanishes before κ² overflows.
    rest = part.mu * κ * κ / Y
    dlog_R = (ρ * f.shrink**2 + f.grow**2) / f.ray_length**2
    dlog_N = ((ρ - 1.0) * f.grow**2 - f.shrink**2) / f.normal_length**2
    n_tt = -λ * (f.grow / f.normal_length * κ * κ / Y)
    r_tt = rest * (f.shrink / f.ray_length) / Y
    t_tt = -λ * (rest * κ / Y) * (3.0 * dlog_R - 3.0 * dlog_N - 2.0)
    linear = part.inside | part.polar | part.face
    n_tt, r_tt, t_tt = (xp.where(linear, 0.0, a) for a in (n_tt, r_tt, t_tt))
    return in_frame(xp, f.U, (n_tt, r_tt, t_tt), h, k)


@dataclass(frozen=True)
class _Frame:
    """The columns (n, r, t); the factors `grow` of N and `shrink` of R that keep e^|ρ| out, and
    the lengths of N and R with them; κ, which is the same with them; Y = y + μ κ²; λ = y/Y."""

    U: Array
    grow: Array
    shrink: Array
    normal_length: Array
    ray_length: Array
    stretch: Array
    total: Array
    lam: Array


def _frame(xp: Any, part: _Split) -> _Frame:
    ρ, decay = part.slope, part.decay
    right = ρ >= 0.0
    grow, shrink = xp.where(right, 1.0, decay), xp.where(right, decay, 1.0)
    normal = xp.stack([grow, (1.0 - ρ) * grow, -shrink], axis=-1)
    ray = xp.stack([ρ * shrink, shrink, grow], axis=-1)
    U, normal_length, ray_length = frame_of_ray(xp, normal, ray)
    κ = ray_length / normal_length
    Y = at_least(xp, part.y + part.mu * κ * κ, TINY)
    return _Frame(U, grow, shrink, normal_length, ray_length, κ, Y, part.y / Y)


@dataclass(frozen=True)
class _Split:
    """Where w lies, and for w on neither cone nor face its two parts, each of shape (..., c)."""

    inside: Array
    polar: Array
    face: Array
    slope: Array
    decay: Array
    y: Array
    z: Array
    mu: Array


def _split(xp: Any, w: Array, near: Array | None) -> tuple[Array, _Split]:
    scale, unit = rescale(xp, w)
    wx, wy, wz = unit[..., 0], unit[..., 1], unit[..., 2]
    inside, polar, face = _regions(xp, wx, wy, wz)

    # Any point on the smooth part serves where there is nothing to solve.
    smooth = ~(inside | polar | face)
    wx, wy, wz = (xp.where(smooth, a, b) for a, b in ((wx, 1.0), (wy, 1.0), (wz, 0.0)))
    slope = None
    if near is not None:
        known = near[..., 1] > TINY * (1.0 + xp.abs(near[..., 0]))
        slope = xp.where(known, near[..., 0] / xp.where(known, near[..., 1], 1.0), xp.inf)
    ρ = find_slope(xp, wx, wy, wz, slope)

    # y (μ) is tiny and cancels where e^ρ (e^-ρ) is large, so take it from the third row there.
    right = ρ >= 0.0
    decay = xp.exp(-xp.abs(ρ))
    y, mu = weights(wx, wy, ρ)
    z = xp.where(right, wz + mu * decay, y * decay)
    z = at_least(xp, z, 0.0)
    y = xp.where(right, z * decay, at_least(xp, y, 0.0))
    mu = at_least(xp, xp.where(right, mu, decay * (z - wz)), 0.0)
    return scale, _Split(inside, polar, face, ρ, decay, y, z, mu)


def _regions(xp: Any, wx: Array, wy: Array, wz: Array) -> tuple[Array, Array, Array]:
    """Masks: strictly inside K; in the polar cone; w_x, w_y <= 0 and neither."""
    # K: w_y e^a < w_z with a = w_x/w_y.  K°: w_x e^b <= -w_z with b = w_y/w_x - 1.
    a = within(xp, wx / xp.where(wy > 0.0, wy, 1.0), -FARTHEST, FARTHEST)
    b = within(xp, wy / xp.where(wx > 0.0, wx, 1.0) - 1.0, -FARTHEST, FARTHEST)
    up, down = xp.exp(at_most(xp, a, 0.0)), xp.exp(-at_least(xp, a, 0.0))
    inside = (wy > 0.0) & (wy * up < wz * down)
    up, down = xp.exp(at_most(xp, b, 0.0)), xp.exp(-at_least(xp, b, 0.0))
    corner = (wx <= 0.0) & (wy <= 0.0)
    polar = (wx > 0.0) & (wx * up <= -wz * down)
    polar = polar | ((wx == 0.0) & (wy <= 0.0) & (wz <= 0.0))
    return inside, polar, corner & ~polar
