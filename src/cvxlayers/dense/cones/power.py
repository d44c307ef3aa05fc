"""The power cone K = {(x, y, z) : x^α y^(1−α) >= |z|, x, y >= 0}, with β = 1 − α throughout.

K* = {(x, y, z) : (x/α)^α (y/β)^β >= |z|, x, y >= 0}.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvxlayers.dense.cones.nonsymmetric import (
    Barrier,
    Factor,
    Level,
    NonsymmetricCone,
    lower,
    third_of_logarithm,
)

__all__ = ["Power"]

# Keeps ψ, which is computed otherwise, positive where a step ends.
MARGIN = 1e-14
# From e^−300 of the rest on, s₂ is zero for the barrier.
FLAT = 600.0
SHADOW_ROUNDS = 3


class Power(NonsymmetricCone):
    """Power cones; every block has an exponent of its own."""

    def __init__(self, exponents: Sequence[float], device: torch.device):
        super().__init__(len(exponents))
        first = torch.tensor(exponents, dtype=torch.float64, device="cpu").to(device)
        #: α and β, shape (count, 2).
        self.alpha = torch.stack([first, 1.0 - first], dim=-1)
        tail = torch.zeros_like(first)
        self._unit = torch.stack([(1.0 + first).sqrt(), (2.0 - first).sqrt(), tail], dim=-1)

    def unit(self) -> Tensor:
        return self._unit

    def barrier(self, z: Tensor) -> PowerBarrier:
        return PowerBarrier(z, self.alpha)

    def _log_ratio(self, v: Tensor, stretch: Tensor | float = 1.0) -> Tensor:
        """α log(v₀/|v₂|) + β log(v₁/|v₂|); large where v₂ = 0."""
        tail = v[..., 2:].abs().clamp_min(1e-300)
        return (self.alpha * (v[..., :2] * stretch / tail).log()).sum(-1)

    def shadow(self, s: Tensor) -> Tensor:
        """In terms of d = p − 1 its rows say

        z̃ = ((1 + α + 2αd)/s₀, (1 + β + 2βd)/s₁, −2d/s₂),

        and G = 4 d (1 + d)/s₂², from p = G/(G − z₂²), leaves one equation: with
        C = 2α log(s₀/|s₂|) + 2β log(s₁/|s₂|) > 0,

        F(d) = log(4 d (1 + d)) − 2α log((1 + α)/α + 2d) − 2β log((1 + β)/β + 2d) + C = 0.

        F increases, is straight in log d where d is small, and tends to C − 2/d where it is large.
        So does the equation d/(d + 2) = e^−C, whose root is within a factor 2.3, exact for large d;
        from there Halley's iteration, of third order, reaches rounding in 3 rounds whatever C and
        α are.
        """
        alpha = self.alpha
        full = 2.0 * self._log_ratio(s)
        C = full.clamp(torch.finfo(s.dtype).eps, FLAT)
        d = 2.0 * torch.exp(-C) / -torch.expm1(-C)
        start = (1.0 + alpha) / alpha
        for _ in range(SHADOW_ROUNDS):
            over = 1.0 / (start + 2.0 * d[..., None])
            rest = 1.0 / (1.0 + d)
            four = (4.0 * d * (1.0 + d))[..., None]
            value = (alpha * (four * over * over).log()).sum(-1) + C
            # d F' and d² F''.
            slope = 2.0 * (1.0 + alpha) * over
            first = slope.sum(-1) - rest
            second = d * (rest * rest - (2.0 * slope * over).sum(-1)) - first
            newton = value / first
            d = d - d * newton / (1.0 - 0.5 * newton * second / first)
        head = (1.0 + alpha + 2.0 * alpha * d[..., None]) / s[..., :2]
        flat = full >= FLAT
        tail = torch.where(flat, 0.0, -2.0 * d / torch.where(flat, 1.0, s[..., 2]))
        return torch.cat([head, tail[..., None]], dim=-1)

    def is_inside(self, s: Tensor, z: Tensor) -> Tensor:
        # A logarithm of what is not positive is NaN or infinite, and fails one of the comparisons.
        positive = (s[..., :2] > 0.0).all(-1) & (z[..., :2] > 0.0).all(-1)
        primal, dual = self._log_ratio(s), self._log_ratio(z, 1.0 / self.alpha)
        return positive & (primal > MARGIN) & (dual > MARGIN)


class PowerBarrier(Barrier):
    """f*(z) = −log ψ − β log z₀ − α log z₁ with ψ = G − z₂², G = (z₀/α)^2α (z₁/β)^2β.

    With p = G/ψ, c = (2α/z₀, 2β/z₁) and h = (2α/z₀², 2β/z₁²), ∇²G = G (c cᵀ − diag h) and

    ∇f* = (−(2αp + β)/z₀, −(2βp + α)/z₁, 2z₂/ψ),
    ∇²f* = [ p (p − 1) c cᵀ + diag((2αp + β)/z₀², (2βp + α)/z₁²)    −(2 z₂ p/ψ) c          ]
           [ −(2 z₂ p/ψ) cᵀ                                         2 (G + z₂²)/ψ²         ].
    """

    def __init__(self, z: Tensor, alpha: Tensor):
        self.head, self.tail, self.alpha = z[..., :2], z[..., 2], alpha
        height = (alpha * (self.head / alpha).log()).sum(-1).exp()
        size = self.tail.abs()
        self.product = height * height
        self.over_level = 1.0 / ((height - size) * (height + size))
        self.over = 1.0 / self.head

    def gradient(self) -> Tensor:
        p = (self.product * self.over_level)[..., None]
        first = -(2.0 * self.alpha * p + self.alpha.flip(-1)) * self.over
        return torch.cat([first, (2.0 * self.tail * self.over_level)[..., None]], dim=-1)

    def factor(self) -> Factor:
        """Eliminating the last row leaves, in the scale z₀, z₁, with e = 2G/(G + z₂²) and
        k = 2pαβ,

        e (α, β)(α, β)ᵀ + k (1, −1)(1, −1)ᵀ + diag(β, α)

        of determinant αβ + e (α³ + β³) + k (1 + e): nothing cancels, however close z is to the
        boundary."""
        alpha, beta = self.alpha.unbind(-1)
        over_sum = 1.0 / (self.product + self.tail * self.tail)
        e = 2.0 * self.product * over_sum
        k = 2.0 * alpha * beta * self.product * self.over_level
        corner = e * alpha * alpha + k + beta
        determinant = alpha * beta + e * (alpha**3 + beta**3) + k * (1.0 + e)
        root = corner.sqrt()
        head = lower(root, (e * alpha * beta - k) / root, (determinant / corner).sqrt())

        # V = [D M, g; 0, r] with D = diag(1/z₀, 1/z₁), r² = 2 (G + z₂²)/ψ² and g r the last column.
        r = (2.0 / over_sum).sqrt() * self.over_level.abs()
        coupled = -(e * self.tail)[..., None] * self.alpha  # z g/r
        g = coupled * self.over * r[..., None]
        zero = torch.zeros_like(g)
        matrix = _bordered(self.over[..., :, None] * head.matrix, g, zero, r)
        inverse_head = head.inverse * self.head[..., None, :]
        # V⁻¹ = [M⁻¹ D⁻¹, −M⁻¹ D⁻¹ g/r; 0, 1/r].
        right = -(head.inverse @ coupled[..., None])[..., 0]
        return Factor(matrix, _bordered(inverse_head, right, zero, 1.0 / r))

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        over, G = self.over, self.product[..., None]
        c = 2.0 * self.alpha * over
        h = c * over
        hu, hv = h * u[..., :2], h * v[..., :2]
        slope_u = (c * u[..., :2]).sum(-1, keepdim=True)
        slope_v = (c * v[..., :2]).sum(-1, keepdim=True)
        bend = slope_u * slope_v - (hu * v[..., :2]).sum(-1, keepdim=True)
        turn = 2.0 * hu * v[..., :2] * over - hv * slope_u - hu * slope_v
        zero = torch.zeros_like(G)
        level = Level(
            self.over_level,
            torch.cat([G * c, -2.0 * self.tail[..., None]], dim=-1),
            torch.cat([G * (c * slope_u - hu), -2.0 * u[..., 2:]], dim=-1),
            torch.cat([G * (c * slope_v - hv), -2.0 * v[..., 2:]], dim=-1),
            torch.cat([G * (c * bend + turn), zero], dim=-1),
        )
        rest = 2.0 * self.alpha.flip(-1) * over**3 * u[..., :2] * v[..., :2]
        return third_of_logarithm(level, u, v) - torch.cat([rest, zero], dim=-1)


def _bordered(head: Tensor, right: Tensor, below: Tensor, corner: Tensor) -> Tensor:
    """[head, right; belowᵀ, corner] of shape (…, 3, 3)."""
    top = torch.cat([head, right[..., :, None]], dim=-1)
    last = torch.cat([below, corner[..., None]], dim=-1)
    return torch.cat([top, last[..., None, :]], dim=-2)
