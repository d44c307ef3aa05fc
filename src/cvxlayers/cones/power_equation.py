"""The scalar equation behind the projection onto the three-dimensional power cone.

Away from K, its polar cone and the plane w_z = 0, Hien (2015), Proposition 2.2, writes the
projection through r = |s_z| in (0, |w_z|) alone: with ν = |w_z| - r,

    x = ½ (w_x + √(w_x² + 4 α r ν)),   y = ½ (w_y + √(w_y² + 4 (1 - α) r ν)),   x^α y^(1-α) = r.

Both r and ν may be tiny, so the unknown is τ = log(r/ν). The residual

    L(τ) = log r - α log x - (1 - α) log y

crosses zero once, upwards. It is nearly straight in τ where x or y stays put or is proportional
to ν, and in r or ν where it levels off; a Newton step in r is one in τ, transformed.

Close to the polar cone L has levelled off where it crosses zero. Its slope there is all that is
left of 1 - α (log x)' r - (1 - α) (log y)' r, with ' = d/dr. But x² - w_x x - α r ν = 0 yields
√(w_x² + 4 α r ν) = 2 x - w_x = (x² + α r ν)/x, so that

    r (log x)' = α r (ν - r)/(x² + α r ν),   1 - r (log x)' = (x² + α r²)/(x² + α r ν),

likewise for y, and with α + (1 - α) = 1 and dr/dτ = r ν/|w_z| nothing cancels in

    dL/dτ = (ν/|w_z|) (α (x² + α r²)/(x² + α r ν) + (1 - α) (y² + (1 - α) r²)/(y² + (1 - α) r ν)).
"""

from __future__ import annotations

from typing import Any

from cvxlayers.cones.base import EPS, Array
from cvxlayers.cones.root_finding import CLOSE, find_root

__all__ = ["find_parts"]

# r or ν below e^-100 |w_z| is zero for all purposes.
FAR = 100.0


def find_parts(
    xp: Any, wx: Array, wy: Array, height: Array, α: Array, near: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    """x, y, r and ν.

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    wx, wy, height : array
        w_x, w_y and |w_z| > 0, of one shape.
    α : array
        Exponents, of the same shape.
    near : array, optional
        Guess of r; it only saves iterations.
    """

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
        over_x, over_y = x / r, y / r
        log_x, log_y = α * xp.log(over_x), (1.0 - α) * xp.log(over_y)
        value = -(log_x + log_y)
        # x² + α r ν = x √(w_x² + 4 α r ν); over r, because squares may underflow.
        slope_x = α * (x * over_x + α * r) / (root_x * over_x)
        slope_y = (1.0 - α) * (y * over_y + (1.0 - α) * r) / (root_y * over_y)
        straight = -value / ((slope_x + slope_y) * (nu / height))
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
        known = (near > 0.0) & (near < height)
        r = xp.where(known, near, 0.5 * height)
        guess = xp.log(r) - xp.log(height - r)
    far = xp.full_like(height, FAR)
    τ = find_root(xp, evaluate, -far, far, guess)
    polished = τ + evaluate(τ)[1][1]
    r, nu, _, _, x, y = parts(xp.where(xp.abs(polished - τ) <= 1e-3, polished, τ))
    return x, y, r, nu


def _positive_root(xp: Any, b: Array, c: Array) -> tuple[Array, Array]:
    """√(b² + 4c) and the positive root of t² - b t - c = 0, without cancellation."""
    root = xp.sqrt(b * b + 4.0 * c)
    far = 0.5 * (xp.abs(b) + root)
    return root, xp.where(b >= 0.0, far, c / far)
