"""The smoothed projection onto the three-dimensional power cone, with μ = 1.

The barrier is −log ψ − β log x − α log y with ψ = G − z², G = x^2α y^2β, β = 1 − α. With c = G/ψ
the minimum of ½‖s − w‖² + φ(s) is at

    x² − w_x x − (2α c + β) = 0,   y² − w_y y − (2β c + α) = 0,   z = w_z/(1 + 2k),  k = c/G,

so that all is a function of d = c − 1 = z²/ψ > 0, which solves the equation z² = G d/(1 + d),

    L = log d − log(1 + d) + 2 log(G + 2c) − log G − 2 log|w_z| = 0.

With Γ = d log G/d log c in (0, 2), it is increasing in τ = log d:

    L' = 1/(1 + d) + (d/c) (Γ G + (4 − 2Γ) c)/(G + 2c).

From z (w_z − z) = 2d follows d <= w_z²/8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cvxlayers.cones.barrier import smooth_positive
from cvxlayers.cones.base import EPS, Array, at_least
from cvxlayers.cones.root_finding import CLOSE, find_root

__all__ = ["SmoothPoint", "find_smooth_point"]

# |w_z| below this is zero for all purposes.
FLAT = 1e-150


@dataclass(frozen=True)
class SmoothPoint:
    """s = Π₁(w) = (x, y, z), and d and k there, each of shape (..., c)."""

    x: Array
    y: Array
    z: Array
    d: Array
    k: Array

    def hessian(self, xp: Any, α: Array) -> tuple[Array, Array, Array, Array]:
        """∇²φ = diag + a aᵀ + b bᵀ: the diagonal, a, b and a x b, each of shape (..., 3).

        With X = α ẋ/x + β ẏ/y, Z = √k ż sign(z) and η = 2 (1 + d) √d/(1 + 2d), the second
        derivative of φ along (ẋ, ẏ, ż) is

            2 (1 + 2d) (Z − η X)² + e X² + 2 (1 + d) α β (ẋ/x − ẏ/y)² + β (ẋ/x)² + α (ẏ/y)²

        for e = 2 (1 + d)/(1 + 2d), and X² = α (ẋ/x)² + β (ẏ/y)² − α β (ẋ/x − ẏ/y)².
        """
        x, y, d = self.x, self.y, self.d
        β, zero = 1.0 - α, xp.zeros_like(x)
        e = 2.0 * (1.0 + d) / (1.0 + 2.0 * d)
        η, root = e * xp.sqrt(d), xp.sqrt(2.0 * (1.0 + 2.0 * d))
        side = xp.where(self.z < 0.0, -1.0, 1.0) * xp.sqrt(self.k)
        across = xp.sqrt(2.0 * α * β * d * e)
        diagonal = xp.stack([(β + e * α) / x**2, (α + e * β) / y**2, zero], axis=-1)
        a = root[..., None] * xp.stack([-η * α / x, -η * β / y, side], axis=-1)
        b = across[..., None] * xp.stack([1.0 / x, -1.0 / y, zero], axis=-1)
        cross = xp.stack([side / y, side / x, η / (x * y)], axis=-1)
        return diagonal, a, b, (root * across)[..., None] * cross


def find_smooth_point(xp: Any, w: Array, α: Array, near: Array | None = None) -> SmoothPoint:
    """Π₁(w).

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    w : array
        Shape (..., c, 3).
    α : array
        Exponents, shape (..., c).
    near : array, optional
        Guess of Π₁(w), shape (..., c, 3); it only saves iterations.
    """
    wx, wy, wz = w[..., 0], w[..., 1], w[..., 2]
    β = 1.0 - α
    log_height = xp.log(at_least(xp, xp.abs(wz), FLAT))

    def parts(d: Array) -> tuple[Array, Array, Array, Array, Array]:
        """x, y, log G and the two terms under the roots."""
        term_x, term_y = 2.0 * α * (1.0 + d) + β, 2.0 * β * (1.0 + d) + α
        x, y = smooth_positive(xp, wx, term_x)[0], smooth_positive(xp, wy, term_y)[0]
        return x, y, 2.0 * (α * xp.log(x) + β * xp.log(y)), term_x, term_y

    def evaluate(τ: Array) -> tuple[Array, tuple[Array], Array]:
        d = xp.exp(τ)
        x, y, log_G, term_x, term_y = parts(d)
        c, G = 1.0 + d, xp.exp(log_G)
        log_total = xp.log(G + 2.0 * c)
        value = τ - xp.log(c) + 2.0 * (log_total - log_height) - log_G
        Γ = 4.0 * c * (α * α / (x * x + term_x) + β * β / (y * y + term_y))
        slope = 1.0 / c + (d / c) * ((Γ * G + (4.0 - 2.0 * Γ) * c) / (G + 2.0 * c))
        step = -value / slope
        noise = 1.0 + xp.abs(τ) + 2.0 * xp.abs(log_total) + 2.0 * xp.abs(log_height)
        return value, (step,), (xp.abs(value) <= 4.0 * EPS * noise) | (xp.abs(step) <= CLOSE)

    upper = 2.0 * log_height - 2.0
    # G is between its values at the two ends.
    _, _, least, _, _ = parts(xp.zeros_like(wx))
    _, _, most, _, _ = parts(xp.exp(upper))
    largest = xp.log(xp.exp(most) + 2.0 + 2.0 * xp.exp(upper))
    lower = 2.0 * (log_height - largest) + least - 1.0
    guess = upper
    if near is not None:
        # d = z (w_z − z)/2.
        d = 0.5 * near[..., 2] * (wz - near[..., 2])
        guess = xp.where(d > 0.0, xp.log(xp.where(d > 0.0, d, 1.0)), upper)
    τ = find_root(xp, evaluate, lower, upper, guess)
    polished = τ + evaluate(τ)[1][0]
    d = xp.exp(xp.where(xp.abs(polished - τ) <= 1e-3, polished, τ))
    x, y, log_G, _, _ = parts(d)
    k = (1.0 + d) * xp.exp(-log_G)
    return SmoothPoint(x, y, wz / (1.0 + 2.0 * k), d, k)
