"""The nonnegative orthant, one block per row: w = √(s/z), λ = √(s z)."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxlayers.dense.cones.base import SymmetricCone, SymmetricScaling

__all__ = ["Nonneg"]


class Nonneg(SymmetricCone):
    """Rows v >= 0."""

    def __init__(self, count: int, device: torch.device):
        super().__init__(count, 1, count)
        self._unit = torch.ones((count, 1), dtype=torch.float64, device=device)

    def unit(self) -> Tensor:
        return self._unit

    def scale(self, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor) -> NonnegScaling:
        return NonnegScaling(s, z)

    def eigenvalues(self, v: Tensor) -> Tensor:
        return v[..., 0]


class NonnegScaling(SymmetricScaling):
    """W = diag(w)."""

    def __init__(self, s: Tensor, z: Tensor):
        self.s, self.z = s, z
        self.w, self.point = (s / z).sqrt(), (s * z).sqrt()

    def inverse_transposed(self, v: Tensor) -> Tensor:
        return v / self.w[..., None]

    def inverse(self, v: Tensor) -> Tensor:
        return v / self.w

    def transposed(self, v: Tensor) -> Tensor:
        """Wᵀ v, shape (B, count, 1)."""
        return self.w * v

    def affine_shift(self) -> Tensor:
        return self.point

    def combined_shift(self, ds: Tensor, dz: Tensor, sigma_mu: Tensor, second: Tensor) -> Tensor:
        # (s z + second ds dz − σμ)/(z w)
        correction = second[:, None, None] * ds * dz - sigma_mu[:, None, None]
        return self.point + correction / self.point

    def longest_step(self, ds: Tensor, dz: Tensor) -> Tensor:
        slope = torch.minimum((ds / self.s).amin((1, 2)), (dz / self.z).amin((1, 2)))
        return (-slope).clamp_min(0.0).reciprocal()
