"""The cone of positive semidefinite matrices of order k, by svec: the upper triangle by columns,
√2 off the diagonal, so that ⟨svec X, svec Y⟩ = tr XY.

W: Z → RᵀZ R with Rᵀ Z R = R⁻¹ S R⁻ᵀ = diag(λ). With S = L_s L_sᵀ, Z = L_z L_zᵀ and
L_zᵀ L_s = U diag(λ) Vᵀ (L. Vandenberghe, The CVXOPT linear and quadratic cone program solvers,
2010, section 4.3):

    R = L_s V diag(λ)^-½,   R⁻¹ = diag(λ)^-½ Uᵀ L_zᵀ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cvxlayers.cones.psd import triangle
from cvxlayers.dense.cones.base import SymmetricCone, SymmetricScaling

__all__ = ["PSD"]


class PSD(SymmetricCone):
    """Semidefinite matrices of one order."""

    def __init__(self, count: int, order: int, device: torch.device):
        super().__init__(count, order * (order + 1) // 2, count * order)
        self.order = order
        i, j = (torch.from_numpy(index).to(device) for index in triangle(order))
        size = torch.arange(self.size, device=device)
        self._entries = i * order + j
        self._position = torch.empty((order, order), dtype=torch.long, device=device)
        self._position[i, j] = self._position[j, i] = size
        self._position = self._position.reshape(-1)
        diagonal = i == j
        stretch = torch.ones(self.size, dtype=torch.float64, device=device)
        self._stretch = torch.where(diagonal, stretch, math.sqrt(2.0) * stretch)
        self._unit = diagonal.to(torch.float64).expand(count, -1)

    def unit(self) -> Tensor:
        return self._unit

    def smat(self, v: Tensor) -> Tensor:
        """Matrices from their svec, the last axis."""
        entries = (v / self._stretch)[..., self._position]
        return entries.unflatten(-1, (self.order, self.order))

    def svec(self, X: Tensor) -> Tensor:
        """The svec of matrices, the last two axes."""
        return X.flatten(-2)[..., self._entries] * self._stretch

    def scale(self, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor) -> PSDScaling:
        return PSDScaling(self, s, z)

    def eigenvalues(self, v: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(finite(self.smat(v))).flatten(1)


class PSDScaling(SymmetricScaling):
    """R, R⁻¹ and λ of every block. NaN where s or z is not inside the cone."""

    def __init__(self, cone: PSD, s: Tensor, z: Tensor):
        self.cone = cone
        factors, info = torch.linalg.cholesky_ex(finite(cone.smat(torch.stack([s, z]))))
        inside = (info == 0).all(0)[..., None]
        L_s, L_z = factors
        U, point, Vt = torch.linalg.svd(finite(L_z.mT @ L_s))
        self.point = torch.where(inside, point, torch.nan)
        self.root = self.point.rsqrt()
        self.R = (L_s @ Vt.mT) * self.root[..., None, :]
        self.R_inverse = self.root[..., :, None] * (U.mT @ L_z.mT)

    def inverse_transposed(self, v: Tensor) -> Tensor:
        R = self.R_inverse[:, :, None]
        return self.cone.svec(R @ self.cone.smat(v.mT) @ R.mT).mT

    def inverse(self, v: Tensor) -> Tensor:
        R = self.R_inverse
        return self.cone.svec(R.mT @ self.cone.smat(v) @ R)

    def _scaled(self, ds: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        """R⁻¹ dS R⁻ᵀ and Rᵀ dZ R."""
        dS, dZ = self.cone.smat(ds), self.cone.smat(dz)
        return self.R_inverse @ dS @ self.R_inverse.mT, self.R.mT @ dZ @ self.R

    def affine_shift(self) -> Tensor:
        return self.cone.svec(torch.diag_embed(self.point))

    def combined_shift(self, ds: Tensor, dz: Tensor, sigma_mu: Tensor, second: Tensor) -> Tensor:
        """Λ + C, (λᵢ + λⱼ) Cᵢⱼ = second (AB + BA)ᵢⱼ − 2 σμ [i = j], A = R⁻¹ dS R⁻ᵀ, B = Rᵀ dZ R."""
        A, B = self._scaled(ds, dz)
        product = second[:, None, None, None] * (A @ B)
        target = torch.diag_embed(sigma_mu[:, None, None].expand_as(self.point))
        total = self.point[..., :, None] + self.point[..., None, :]
        C = (product + product.mT - 2.0 * target) / total
        return self.cone.svec(torch.diag_embed(self.point) + C)

    def longest_step(self, ds: Tensor, dz: Tensor) -> Tensor:
        """S + α dS is semidefinite while I + α Λ^-½ R⁻¹ dS R⁻ᵀ Λ^-½ is, and Z + α dZ likewise."""
        directions = torch.stack(self._scaled(ds, dz))
        relative = self.root[..., :, None] * directions * self.root[..., None, :]
        least = torch.linalg.eigvalsh(finite(relative))[..., 0].amin((0, 2))
        return (-least).clamp_min(0.0).reciprocal()


def finite(X: Tensor) -> Tensor:
    """X without NaN and infinity, for which LAPACK would raise an error."""
    return torch.nan_to_num(X, nan=0.0, posinf=1e150, neginf=-1e150)
