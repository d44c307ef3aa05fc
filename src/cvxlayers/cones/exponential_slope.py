"""The scalar equation behind the projection onto the exponential cone.

Boundary points of K and of its polar cone that belong together (Friberg 2021) are

    s = y (ρ, 1, e^ρ),   w - s = μ (1, 1 - ρ, -e^-ρ),   y, μ >= 0,

orthogonal for every slope ρ = s_x / s_y. Adding them and solving the first two rows,

    y(ρ) = (w_y + (ρ - 1) w_x)/δ,   μ(ρ) = (w_x - ρ w_y)/δ,   δ = ρ² - ρ + 1,

leaves one equation, h(ρ) = y e^ρ - μ e^-ρ - w_z = 0. h increases on the interval where y and μ
are positive, so its sign brackets the root. Two equations with the sign of h are used:

    L(ρ) = ρ - log E,  E > 0 the root of y E² - w_z E - μ = 0: nearly straight in the middle;
    H(ρ) = h(ρ) e^-|ρ|: bounded, and smooth where y or μ vanishes at the ends.
"""

from __future__ import annotations

from typing import Any

from cvxlayers.cones.base import Array, at_least, within
from cvxlayers.cones.root_finding import CLOSE, find_root

__all__ = ["FARTHEST", "TINY", "find_slope", "weights"]

# With entries in [1e-200, 2], y e^ρ = μ e^-ρ + w_z cannot hold for |ρ| beyond 1100, except within
# rounding of the end of the interval; e^-1100 = 0 in float64.
FAR = 1100.0
# Keeps ρ² finite.
FARTHEST = 1e90
TINY = 1e-300


def find_slope(xp: Any, wx: Array, wy: Array, wz: Array, near: Array | None = None) -> Array:
    """Root ρ of h, to rounding.

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    wx, wy, wz : array
        One shape; entries 0 or of size 1e-200 to 2, outside K, its polar cone and the face
        w_x, w_y <= 0.
    near : array, optional
        Guess of ρ; it only saves iterations.

    Returns
    -------
    array
        The same shape.
    """
    lower, upper = _bracket(xp, wx, wy)
    start = xp.where(wy > 0.0, upper, lower + 1.0)
    start = xp.where(wx > 0.0, start, upper - 1.0)
    start = xp.where((wx > 0.0) & (wy > 0.0), 0.5 * (lower + upper), start)
    if near is not None:
        start = xp.where((near > lower) & (near < upper), near, start)

    def evaluate(ρ: Array) -> tuple[Array, tuple[Array, Array], Array]:
        parts = _parts(wx, wy, ρ)
        value, log_step = _log_equation(xp, wz, ρ, *parts)
        smooth_step = _bounded_equation_step(xp, wz, ρ, *parts)
        converged = xp.abs(smooth_step) <= CLOSE * (1.0 + xp.abs(ρ))
        return value, (log_step, smooth_step), converged

    ρ = find_root(xp, evaluate, lower, upper, start)
    polish = _bounded_equation_step(xp, wz, ρ, *_parts(wx, wy, ρ))
    ρ = ρ + xp.where(xp.abs(polish) <= 1e-6 * (1.0 + xp.abs(ρ)), polish, 0.0)
    return within(xp, ρ, lower, upper)


def _bracket(xp: Any, wx: Array, wy: Array) -> tuple[Array, Array]:
    """Interval where y(ρ) and μ(ρ) are positive, cut to where the root can be."""
    ratio = wy / xp.where(wx > 0.0, wx, 1.0)
    lower = within(xp, 1.0 - ratio, -FAR, FARTHEST)
    ratio = wx / xp.where(wy > 0.0, wy, 1.0)
    upper = within(xp, ratio, -FARTHEST, FAR)
    far = xp.full_like(wx, FAR)
    bounded_below = xp.where(wx > 0.0, lower, xp.minimum(-far, upper))
    bounded_above = xp.where(wy > 0.0, upper, xp.maximum(far, lower))
    return bounded_below, bounded_above


def weights(wx: Array, wy: Array, ρ: Array) -> tuple[Array, Array]:
    """y(ρ) and μ(ρ)."""
    δ = ρ * ρ - ρ + 1.0
    return (wy + (ρ - 1.0) * wx) / δ, (wx - ρ * wy) / δ


def _parts(wx: Array, wy: Array, ρ: Array) -> tuple[Array, Array, Array, Array]:
    """y, μ and their derivatives: δ y' = w_x - δ' y, δ μ' = -w_y - δ' μ."""
    y, mu = weights(wx, wy, ρ)
    δ = ρ * ρ - ρ + 1.0
    dδ = 2.0 * ρ - 1.0
    return y, mu, (wx - dδ * y) / δ, (-wy - dδ * mu) / δ


def _log_equation(
    xp: Any, wz: Array, ρ: Array, y: Array, mu: Array, dy: Array, dmu: Array
) -> tuple[Array, Array]:
    """L(ρ) and its Newton step.

    With d = √(w_z² + 4 y μ) and k = w_z/d, L' = 1 + ½ (1 + k) y'/y - ½ (1 - k) μ'/μ.
    """
    y, mu = at_least(xp, y, TINY), at_least(xp, mu, TINY)
    up = wz >= 0.0
    d = at_least(xp, xp.sqrt(wz * wz + 4.0 * y * mu), TINY)
    total = d + xp.abs(wz)
    log_root = xp.where(up, xp.log(total) - xp.log(2.0 * y), xp.log(2.0 * mu) - xp.log(total))
    large = total / d
    small = 4.0 * (y / total) * (mu / d)
    slope = (
        1.0
        + 0.5 * xp.where(up, large, small) * (dy / y)
        - 0.5 * xp.where(up, small, large) * (dmu / mu)
    )
    value = ρ - log_root
    return value, -value / xp.where(slope > TINY, slope, 1.0)


def _bounded_equation_step(
    xp: Any, wz: Array, ρ: Array, y: Array, mu: Array, dy: Array, dmu: Array
) -> Array:
    """Newton step -H/H'; the equation is mirrored, (y, μ, w_z) to (μ, y, -w_z), where ρ < 0."""
    right = ρ >= 0.0
    E = xp.exp(-xp.abs(ρ))
    main, other = xp.where(right, y, mu), xp.where(right, mu, y)
    third = xp.where(right, wz, -wz)
    sign = xp.where(right, 1.0, -1.0)
    d_main = sign * xp.where(right, dy, dmu)
    d_other = sign * xp.where(right, dmu, dy)
    # In σ = |ρ|: main - (third + other E) E with E = e^-σ.
    value = main - (third + other * E) * E
    slope = d_main + third * E + (2.0 * other - d_other) * E * E
    return -sign * value / xp.where(xp.abs(slope) > TINY, slope, 1.0)
