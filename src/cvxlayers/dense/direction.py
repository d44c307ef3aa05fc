"""The directions of one iteration, predictor and corrector: (dx, dz) = (x₁, z₁) + dτ (x₂, z₂) with
solutions of the linear system for the residuals and for (−q, b), and ds, dτ and dκ that follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvxlayers.dense.cones import ProductScaling
from cvxlayers.dense.data import Data
from cvxlayers.dense.products import product

__all__ = ["Directions", "Residuals", "Step"]


@dataclass
class Residuals:
    """Of an iterate: P x, r_x, r_z, r_τ, xᵀP x and μ."""

    Px: Tensor
    rx: Tensor
    rz: Tensor
    rt: Tensor
    xPx: Tensor
    mu: Tensor


@dataclass
class Step:
    """A direction."""

    x: Tensor
    z: Tensor
    s: Tensor
    tau: Tensor
    kappa: Tensor


class Directions:
    """What the directions at one point have in common.

    Parameters
    ----------
    data : Data
    scaling : ProductScaling
    r : Residuals
    tau, kappa : Tensor
        Shape (B,).
    constant : tuple of Tensor
        (x₂, ẑ₂), ẑ = W z: the solution for (−q, b).
    """

    def __init__(
        self,
        data: Data,
        scaling: ProductScaling,
        r: Residuals,
        tau: Tensor,
        kappa: Tensor,
        constant: tuple[Tensor, Tensor],
    ):
        self._data, self._scaling, self._r, self._kappa = data, scaling, r, kappa
        self._x2, self._z2_hat = constant
        self._z2 = scaling.inverse(self._z2_hat)
        self._over = over = 1.0 / tau
        self._slope = torch.addcmul(data.q, over[:, None], r.Px, value=2.0)
        self._below = over * (kappa + over * r.xPx) - self._along(self._x2, self._z2)

    def step(
        self, one: tuple[Tensor, Tensor], shift: Tensor, damp: Tensor, of_kappa: Tensor
    ) -> Step:
        """(dx, dz, ds, dτ, dκ) from (x₁, ẑ₁), with ξ = x/τ and

        dτ = (ρ r_τ − ρ_κ/τ + qᵀx₁ + bᵀz₁ + 2 ξᵀP x₁)
             / (κ/τ − qᵀx₂ − bᵀz₂ + ξᵀP ξ − 2 ξᵀP x₂).

        Parameters
        ----------
        one : tuple of Tensor
        shift : Tensor
            W⁻ᵀ of that in ds = −(H dz + shift), shape (B, m).
        damp, of_kappa : Tensor
            ρ, and ρ_κ in τ dκ + κ dτ = −ρ_κ, shape (B,).
        """
        r, over, (x1, z1_hat) = self._r, self._over, one
        z1 = self._scaling.inverse(z1_hat)
        dtau = (damp * r.rt - of_kappa * over + self._along(x1, z1)) / self._below
        along = dtau[:, None]
        dx, dz = torch.addcmul(x1, along, self._x2), torch.addcmul(z1, along, self._z2)
        scaled = torch.addcmul(z1_hat, along, self._z2_hat) + shift
        ds = self._scaling.slack_step(scaled, lambda: self._primal(dx, along, damp))
        return Step(dx, dz, ds, dtau, -(of_kappa + self._kappa * dtau) * over)

    def _along(self, x: Tensor, z: Tensor) -> Tensor:
        return (self._slope * x).sum(1) + (self._data.b * z).sum(1)

    def _primal(self, dx: Tensor, along: Tensor, damp: Tensor) -> Tensor:
        """ds as the primal equation has it."""
        right = torch.addcmul(along * self._data.b, damp[:, None], self._r.rz, value=-1.0)
        return right - product(self._data.A, dx)
