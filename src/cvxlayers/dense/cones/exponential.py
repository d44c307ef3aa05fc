"""The exponential cone K = closure{(x, y, z) : y > 0, y exp(x/y) <= z}.

K* = closure{(x, y, z) : x < 0, z > 0, y − x − x log(−z/x) >= 0}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvxlayers.dense.cones.nonsymmetric import (
    Barrier,
    Factor,
    Level,
    NonsymmetricCone,
    third_of_logarithm,
)

__all__ = ["Exponential"]

_CENTRAL_POINT = (-1.051383945322714, 0.556409619469370, 1.258967884768947)


class Exponential(NonsymmetricCone):
    """Exponential cones."""

    def __init__(self, count: int, device: torch.device):
        super().__init__(count)
        point = torch.tensor(_CENTRAL_POINT, dtype=torch.float64, device="cpu").to(device)
        self._unit = point.expand(count, 3)

    def unit(self) -> Tensor:
        return self._unit

    def barrier(self, z: Tensor) -> ExponentialBarrier:
        return ExponentialBarrier(z)

    def shadow(self, s: Tensor) -> Tensor:
        """With p = log(s₂/s₁) − s₀/s₁ > 0 and d + log(1 + d) = p it is

        z̃ = (−1, 2 d + s₀/s₁ − 1, (1 + d) s₁/s₂)/(d s₁)

        (Dahl & Andersen 2022, §6, in terms of ω = 1 + d).
        """
        s0, s1, s2 = s.unbind(-1)
        slope = s0 / s1
        d = wright_minus_one((s2 / s1).log() - slope)
        parts = (-torch.ones_like(d), 2.0 * d + slope - 1.0, (1.0 + d) * (s1 / s2))
        return torch.stack(parts, dim=-1) / (d * s1)[..., None]

    def is_inside(self, s: Tensor, z: Tensor) -> Tensor:
        a0, a1, a2 = s.unbind(-1)
        b0, b1, b2 = z.unbind(-1)
        # A logarithm of what is not positive is NaN or infinite, and fails one of the comparisons.
        primal = a1 * (a2 / a1).log() - a0
        dual = b1 - b0 - b0 * (-b2 / b0).log()
        in_primal = (a1 > 0.0) & (a2 > 0.0) & (primal > 0.0)
        return in_primal & (b0 < 0.0) & (b2 > 0.0) & (dual > 0.0)


class ExponentialBarrier(Barrier):
    """f*(z) = −log ψ − log(−z₀) − log z₂ with ψ = z₁ − z₀ − z₀ l, l = log(−z₂/z₀).

    With a = ∇ψ/ψ = (−l, 1, −z₀/z₂)/ψ, q = −z₀/ψ > 0 and t = (1/z₀, 0, −1/z₂), ∇²ψ = z₀ t tᵀ and

    ∇f* = −a − (1/z₀, 0, 1/z₂),   ∇²f* = a aᵀ + q t tᵀ + diag(1/z₀², 0, 1/z₂²).
    """

    def __init__(self, z: Tensor):
        self.z = z
        z0, z1, z2 = z.unbind(-1)
        self.log_ratio = (-z2 / z0).log()
        self.over_level = 1.0 / (z1 - z0 - z0 * self.log_ratio)
        slope = torch.stack([-self.log_ratio, torch.ones_like(z0), -z0 / z2], dim=-1)
        self.slope, self.a = slope, slope * self.over_level[..., None]
        self.q = -z0 * self.over_level
        # 1/z₀, 0, 1/z₂
        self.over = torch.stack([1.0 / z0, torch.zeros_like(z0), 1.0 / z2], dim=-1)

    def gradient(self) -> Tensor:
        return -self.a - self.over

    def factor(self) -> Factor:
        """What is left beside a aᵀ is D (I + q (1, −1)(1, −1)ᵀ) D for D = diag(1/z₀, 1/z₂), whose
        Cholesky factor has l₀ = √(1 + q), l₁ = −q/l₀, l₂ = √(1 + 2q)/l₀: nothing cancels, however
        close z is to the boundary."""
        z0, _, z2 = self.z.unbind(-1)
        a0, a1, a2 = self.a.unbind(-1)
        l0 = (1.0 + self.q).sqrt()
        l1, l2 = -self.q / l0, (1.0 + 2.0 * self.q).sqrt() / l0
        zero = torch.zeros_like(l0)
        c0, c2, d2 = l0 / z0, l1 / z2, l2 / z2
        # [a₀ c₀ 0; a₁ 0 0; a₂ c₂ d₂] and its inverse.
        matrix = torch.stack([a0, c0, zero, a1, zero, zero, a2, c2, d2], dim=-1)
        over_a1, over_c0, over_d2 = 1.0 / a1, 1.0 / c0, 1.0 / d2
        first = -a0 * over_a1 * over_c0
        rows = [zero, over_a1, zero, over_c0, first, zero]
        rows += [-c2 * over_c0 * over_d2, -(a2 * over_a1 + c2 * first) * over_d2, over_d2]
        inverse = torch.stack(rows, dim=-1)
        return Factor(matrix.unflatten(-1, (3, 3)), inverse.unflatten(-1, (3, 3)))

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        ru, rv = u * self.over, v * self.over
        u0, _, u2 = ru.unbind(-1)
        v0, _, v2 = rv.unbind(-1)
        turn_u, turn_v = u0 - u2, v0 - v2  # <t, u>, <t, v>
        ratio = self.z[..., 0] * self.over[..., 2]
        zero = torch.zeros_like(ratio)
        bend0 = turn_u * turn_v - v0 * turn_u - u0 * turn_v
        bend2 = ratio * (u2 * turn_v + v2 * turn_u)
        level = Level(
            self.over_level,
            self.slope,
            torch.stack([turn_u, zero, -ratio * turn_u], dim=-1),
            torch.stack([turn_v, zero, -ratio * turn_v], dim=-1),
            torch.stack([bend0, zero, bend2], dim=-1),
        )
        return third_of_logarithm(level, u, v) - 2.0 * self.over * ru * rv


def wright_minus_one(p: Tensor) -> Tensor:
    """The root d > 0 of d + log(1 + d) = p for p > 0: ω(1 + p) − 1 with Wright's function ω.

    d = p − log(1 + p/2) leaves a residual below log 2; then two steps of Fritsch, Shafer & Crowley
    (Algorithm 443, 1973), of fourth order: the first leaves 1e-7.
    """
    d = p - torch.log1p(0.5 * p)
    for _ in range(2):
        residual = p - d - torch.log1p(d)
        one_more = 2.0 + d
        t = one_more * (one_more + 2.0 / 3.0 * residual)
        relative = residual * (t - 0.5 * residual) / (one_more * (t - residual))
        d = d + (1.0 + d) * relative
    return d
