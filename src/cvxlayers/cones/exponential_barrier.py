"""The smoothed projection onto the exponential cone, with μ = 1.

The barrier is −log ψ − log y − log z with ψ = y r − x, r = log(z/y). In x alone the minimum of
½‖s − w‖² + φ(s) is at x = w_x − k for the positive root k = 1/ψ of

    k² + (y r − w_x) k − 1 = 0,

and what is left is a self-concordant function of (y, z), y, z > 0 (Nesterov & Nemirovskii 1994,
Proposition 5.1.5), whose gradient and Hessian are, with ρ = y/z, κ = k²/(1 + k²),

    (y − w_y − k (r − 1) − 1/y,   z − w_z − k ρ − 1/z),
    diag(1 + 1/y², 1 + 1/z²) + κ v vᵀ + (k/y) t tᵀ,   v = (r − 1, ρ),  t = (1, −ρ).

Newton's method with steps 1/(1 + δ), δ the Newton decrement, converges from everywhere. Its
determinant is a sum of positive terms, for v x t = −r ρ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cvxlayers.cones.barrier import smooth_positive
from cvxlayers.cones.base import EPS, Array, at_least

__all__ = ["SmoothPoint", "find_smooth_point"]

# From this decrement one more step is at rounding level.
CLOSE = 1e-7
# Below this one full steps converge quadratically.
QUADRATIC = 0.25
# About 40 are taken where w is of size 1e8.
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class SmoothPoint:
    """s = Π₁(w) = (x, y, z), and k = 1/ψ, r and ρ there, each of shape (..., c)."""

    x: Array
    y: Array
    z: Array
    k: Array
    r: Array
    ρ: Array

    def hessian(self, xp: Any) -> tuple[Array, Array, Array, Array]:
        """∇²φ = diag + a aᵀ + b bᵀ: the diagonal, a, b and a x b, each of shape (..., 3)."""
        k, r, ρ = self.k, self.r, self.ρ
        zero, one = xp.zeros_like(k), xp.ones_like(k)
        diagonal = xp.stack([zero, self.y**-2.0, self.z**-2.0], axis=-1)
        a = k[..., None] * xp.stack([one, 1.0 - r, -ρ], axis=-1)
        root = xp.sqrt(k / self.y)
        b = root[..., None] * xp.stack([zero, one, -ρ], axis=-1)
        return diagonal, a, b, (k * root)[..., None] * xp.stack([r * ρ, ρ, one], axis=-1)


def find_smooth_point(xp: Any, w: Array, y: Array, z: Array) -> SmoothPoint:
    """Π₁(w).

    Parameters
    ----------
    xp : namespace
        Array namespace of the arrays.
    w : array
        Shape (..., c, 3).
    y, z : array
        Positive guess of s_y and s_z, shape (..., c).
    """
    wx, wy, wz = w[..., 0], w[..., 1], w[..., 2]
    # What rounding leaves of the decrement.
    enough = CLOSE + 16.0 * EPS * xp.max(xp.abs(w), axis=-1)
    going = xp.ones_like(y) > 0.0
    for _ in range(MAX_ITERATIONS):
        k, r, ρ = _parts(xp, wx, y, z)
        gy = y - wy - k * (r - 1.0) - 1.0 / y
        gz = z - wz - k * ρ - 1.0 / z
        κ, kt = k * (k / (1.0 + k * k)), k / y
        dy, dz = 1.0 + y**-2.0, 1.0 + z**-2.0
        Hyy = dy + κ * (r - 1.0) ** 2 + kt
        Hyz = (κ * (r - 1.0) - kt) * ρ
        Hzz = dz + (κ + kt) * ρ**2
        det = dy * Hzz + dz * (Hyy - dy) + κ * kt * (r * ρ) ** 2
        step_y, step_z = (Hyz * gz - Hzz * gy) / det, (Hyz * gy - Hyy * gz) / det
        δ = xp.sqrt(at_least(xp, -(gy * step_y + gz * step_z), 0.0))
        t = xp.where(δ <= QUADRATIC, 1.0, 1.0 / (1.0 + δ))
        y, z = xp.where(going, y + t * step_y, y), xp.where(going, z + t * step_z, z)
        # A block goes its own way, whatever the others need. NaN ends, too.
        going = going & (δ > enough)
        if not bool(xp.any(going)):
            break
    k, r, ρ = _parts(xp, wx, y, z)
    # Of two ways to write x, that with the smaller terms.
    x = xp.where(k > 1.0, y * r - 1.0 / k, wx - k)
    return SmoothPoint(x, y, z, k, r, ρ)


def _parts(xp: Any, wx: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    r = xp.log(z / y)
    return smooth_positive(xp, wx - y * r, xp.ones_like(wx))[0], r, y / z
