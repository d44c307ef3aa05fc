"""The second-order cone {(t, x): ‖x‖ <= t}; J = diag(1, −I), e = (1, 0).

W = η [w₀ w₁ᵀ; w₁ I + w₁w₁ᵀ/(1 + w₀)] with wᵀJ w = 1, so that W⁻¹ = W(J w)/η²
(L. Vandenberghe, The CVXOPT linear and quadratic cone program solvers, 2010, section 4.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvxlayers.dense.cones.base import SymmetricCone, SymmetricScaling

__all__ = ["SecondOrder"]

TINY = 1e-300


def _residual(v: Tensor) -> Tensor:
    """vᵀJ v without cancellation, shape (B, count)."""
    length = torch.linalg.vector_norm(v[..., 1:], dim=-1)
    return (v[..., 0] - length) * (v[..., 0] + length)


def _tail(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., 1:] * b[..., 1:]).sum(-1, keepdim=True)


class SecondOrder(SymmetricCone):
    """Second-order cones of one length."""

    def __init__(self, count: int, size: int, device: torch.device):
        super().__init__(count, size, count)
        self._unit = torch.zeros((count, size), dtype=torch.float64, device=device)
        self._unit[:, 0] = 1.0

    def unit(self) -> Tensor:
        return self._unit

    def scale(self, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor) -> SecondOrderScaling:
        return SecondOrderScaling(s, z)

    def eigenvalues(self, v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v[..., 1:], dim=-1)
        # One number stands for both in `degree`; the sum of the positive ones is what matters.
        return torch.cat([v[..., 0] - length, v[..., 0] + length], dim=-1)


class SecondOrderScaling(SymmetricScaling):
    """With s̄ = s/√(sᵀJ s), z̄ likewise, γ = √((1 + s̄ᵀz̄)/2):

    w = (s̄ + J z̄)/(2γ),   η⁴ = sᵀJ s / zᵀJ z,
    λ = ⁴√(sᵀJ s zᵀJ z) (γ, ((γ + z̄₀) s̄₁ + (γ + s̄₀) z̄₁)/(s̄₀ + z̄₀ + 2γ)).
    """

    def __init__(self, s: Tensor, z: Tensor):
        self.s, self.z = s, z
        size_s = _residual(s).clamp_min(TINY).sqrt()[..., None]
        size_z = _residual(z).clamp_min(TINY).sqrt()[..., None]
        s_bar, z_bar = s / size_s, z / size_z
        s0, z0 = s_bar[..., :1], z_bar[..., :1]
        w = torch.cat([s0 + z0, s_bar[..., 1:] - z_bar[..., 1:]], dim=-1)
        two_gamma = _residual(w).clamp_min(TINY).sqrt()[..., None]
        self.w1 = w[..., 1:] / two_gamma
        self.w0 = (1.0 + (self.w1 * self.w1).sum(-1, keepdim=True)).sqrt()
        self.eta = (size_s / size_z).sqrt()
        gamma = 0.5 * two_gamma
        tail = (gamma + z0) * s_bar[..., 1:] + (gamma + s0) * z_bar[..., 1:]
        tail = tail / (s0 + z0 + two_gamma)
        self.point = (size_s * size_z).sqrt() * torch.cat([gamma, tail], dim=-1)

    def inverse_transposed(self, v: Tensor) -> Tensor:
        w0, w1, eta = self.w0[..., None], self.w1[..., None], self.eta[..., None]
        first, rest = v[..., :1, :], v[..., 1:, :]
        along = w1.mT @ rest
        top = (w0 * first - along) / eta
        return torch.cat([top, (rest + w1 * (along / (1.0 + w0) - first)) / eta], dim=-2)

    def inverse(self, v: Tensor) -> Tensor:
        along = (self.w1 * v[..., 1:]).sum(-1, keepdim=True)
        top = self.w0 * v[..., :1] - along
        rest = v[..., 1:] + self.w1 * (along / (1.0 + self.w0) - v[..., :1])
        return torch.cat([top, rest], dim=-1) / self.eta

    def _apply(self, v: Tensor) -> Tensor:
        along = (self.w1 * v[..., 1:]).sum(-1, keepdim=True)
        top = self.w0 * v[..., :1] + along
        rest = v[..., 1:] + self.w1 * (along / (1.0 + self.w0) + v[..., :1])
        return self.eta * torch.cat([top, rest], dim=-1)

    def affine_shift(self) -> Tensor:
        return self.point

    def combined_shift(self, ds: Tensor, dz: Tensor, sigma_mu: Tensor, second: Tensor) -> Tensor:
        """λ + v with λ∘v = r = second (W⁻¹ds)∘(W dz) − σμ e, that is, by the inverse of the arrow
        matrix of λ,

        v = (c, (r₁ − c λ₁)/λ₀),   c = (λ₀ r₀ − λ₁ᵀr₁)/λᵀJ λ.
        """
        a, b = self.inverse(ds), self._apply(dz)
        weight = second[:, None, None]
        r0 = weight * (a * b).sum(-1, keepdim=True) - sigma_mu[:, None, None]
        r1 = weight * (a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:])
        first, rest = self.point[..., :1], self.point[..., 1:]
        c = (first * r0 - (rest * r1).sum(-1, keepdim=True)) / _residual(self.point)[..., None]
        return self.point + torch.cat([c, (r1 - c * rest) / first], dim=-1)

    def longest_step(self, ds: Tensor, dz: Tensor) -> Tensor:
        return torch.minimum(_to_boundary(self.s, ds), _to_boundary(self.z, dz))


def _to_boundary(x: Tensor, y: Tensor) -> Tensor:
    """The least positive root of (x + α y)ᵀJ (x + α y) = a α² + b α + c, at most that of
    x₀ + α y₀, the least of all blocks; shape (B,)."""
    never = torch.inf
    x0, y0 = x[..., 0], y[..., 0]
    a, c = _residual(y), _residual(x).clamp_min(0.0)
    b = 2.0 * (x0 * y0 - _tail(x, y)[..., 0])
    apex = torch.where(y0 < 0.0, -x0 / y0, never)
    square = b * b - 4.0 * a * c
    root = square.clamp_min(0.0).sqrt()
    t = torch.where(b < 0.0, root - b, -(b + root))
    first, other = 2.0 * c / t, t / (2.0 * a)
    # NaN where a or t is zero: there is no such root.
    first = torch.where(first >= 0.0, first, never)
    other = torch.where(other >= 0.0, other, never)
    away = ((a > 0.0) & (b > 0.0)) | (square < 0.0)
    reach = torch.where(away, never, torch.minimum(first, other))
    return torch.minimum(reach, apex).amin(-1)
