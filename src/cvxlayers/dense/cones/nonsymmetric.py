"""What the exponential and the power cone have in common: three rows, no symmetry.

Both have a dual barrier f*(z) = −log ψ(z) − Σ c_i log |z_i|, and with it a `Barrier` at a point z
strictly inside K*. Their scaling is that of Dahl & Andersen (A primal-dual interior-point algorithm
for nonsymmetric exponential-cone optimization, 2022), as a factor of H = WᵀW.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from cvxlayers.dense.cones.base import Cone, Scaling

__all__ = ["Barrier", "Level", "NonsymmetricCone", "lower", "third_of_logarithm"]

# Distance from the central path, <δs, δz>/<s, z>, up to which μ ∇²f*(z) is the scaling.
CENTRAL = 1.4901161193847656e-08


class Factor(NamedTuple):
    """V and V⁻¹ of a matrix V Vᵀ, shapes (…, 3, 3)."""

    matrix: Tensor
    inverse: Tensor


class Level(NamedTuple):
    """ψ and its derivatives at z, and along two directions u and v; each of shape (…, 3) but for
    `inverse`, 1/ψ, of shape (…)."""

    inverse: Tensor
    gradient: Tensor
    second_u: Tensor
    second_v: Tensor
    third: Tensor


class Barrier(ABC):
    """f* at z, shape (B, count, 3)."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """∇f*(z)."""

    @abstractmethod
    def factor(self) -> Factor:
        """V Vᵀ = ∇²f*(z)."""

    @abstractmethod
    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """∇³f*(z)[u, v]."""


class NonsymmetricCone(Cone):
    """Blocks of three rows each with a three times self-concordant barrier of degree three."""

    symmetric = False

    def __init__(self, count: int):
        super().__init__(count, 3, 3 * count)

    @abstractmethod
    def barrier(self, z: Tensor) -> Barrier:
        """f* at z."""

    @abstractmethod
    def shadow(self, s: Tensor) -> Tensor:
        """z̃ = −∇f(s), the solution of ∇f*(z̃) = −s."""

    @abstractmethod
    def is_inside(self, s: Tensor, z: Tensor) -> Tensor:
        """Whether s and z, shape (…, count, 3), are strictly inside K and K*; shape (…, count)."""

    def scale(self, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor) -> NonsymmetricScaling:
        return NonsymmetricScaling(self, s, z, mu, dual)


class NonsymmetricScaling(Scaling):
    """With shadow points s̃ = −∇f*(z) and z̃ = −∇f(s), μ = <s, z>/3, δs = s − μ s̃ and
    δz = z − μ z̃, H is the scaling of Tunçel (2001)

        H = s sᵀ/<s, z> + δs δsᵀ/<δs, δz> + t x xᵀ,   x ⟂ z, z̃,

    so that H z = s and H z̃ = s̃; with the t of the BFGS update of μ ∇²f*(z), of which in three
    dimensions a remainder of rank one is left: t = μ/<x, ∇²f*(z)⁻¹ x>.

    Its factor Wᵀ is read off: s/√<s, z>, δs/√<δs, δz> and √t x are its columns, and, because
    <z, δs> = <δz, s> = 0, z/√<s, z>, δz/√<δs, δz> and s × δs/(√t <s × δs, x>) the rows of its
    inverse. H, whose eigenvalues are of very different size near the boundary, is not formed.

    Where (s, z) is as good as central (s̃ and s, z̃ and z are parallel) H is μ ∇²f*(z), and in the
    instances `dual` it is mu ∇²f*(z).
    """

    def __init__(self, cone: NonsymmetricCone, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor):
        self.s = s
        self.barrier = cone.barrier(z)
        self.gradient = self.barrier.gradient()
        self.hessian = self.barrier.factor()
        product = (s * z).sum(-1)
        local_mu = product / 3.0
        delta_s = s + local_mu[..., None] * self.gradient
        delta_z = z - local_mu[..., None] * cone.shadow(s)
        x = torch.linalg.cross(z, delta_z)
        y = torch.linalg.cross(s, delta_s)
        distance = (delta_s * delta_z).sum(-1)
        square = (self.hessian.inverse @ x[..., None]).square().sum((-1, -2))
        usable = (product > 0.0) & (square > 0.0) & (distance > CENTRAL * product)
        usable = (usable & ~dual[:, None])[..., None, None]

        along, off, across = product.rsqrt(), distance.rsqrt(), (local_mu / square).sqrt()
        x = across[..., None] * x
        lengths = torch.stack([along, off], dim=-1)
        matrix = torch.stack([s, delta_s], dim=-1) * lengths[..., None, :]
        inverse = torch.stack([z, delta_z], dim=-2) * lengths[..., :, None]
        y = y / (x * y).sum(-1, keepdim=True)
        matrix = torch.cat([matrix, x[..., :, None]], dim=-1)
        inverse = torch.cat([inverse, y[..., None, :]], dim=-2)

        root = torch.where(dual[:, None], mu[:, None], local_mu).sqrt()[..., None, None]
        self.matrix = torch.where(usable, matrix, root * self.hessian.matrix)
        self.matrix_inverse = torch.where(usable, inverse, self.hessian.inverse / root)

    def inverse_transposed(self, v: Tensor) -> Tensor:
        return self.matrix_inverse @ v

    def inverse(self, v: Tensor) -> Tensor:
        return (self.matrix_inverse.mT @ v[..., None])[..., 0]

    def affine_shift(self) -> Tensor:
        return (self.matrix_inverse @ self.s[..., None])[..., 0]

    def combined_shift(self, ds: Tensor, dz: Tensor, sigma_mu: Tensor, second: Tensor) -> Tensor:
        """W⁻ᵀ (s + σμ ∇f*(z) − ½ ∇³f*(z)[second dz, ∇²f*(z)⁻¹ ds]), Dahl & Andersen (2022), §4.
        It is Mehrotra's correction ds ∘ dz/z for f* = −log z."""
        inverse = self.hessian.inverse
        u = (inverse.mT @ (inverse @ ds[..., None]))[..., 0]
        third = self.barrier.third(u, second[:, None, None] * dz)
        # Close to the boundary of K* its terms may overflow: better no correction than no step.
        known = (third.abs().sum(-1, keepdim=True)) < 1e300
        correction = torch.where(known, third, 0.0)
        shift = self.s + sigma_mu[:, None, None] * self.gradient - 0.5 * correction
        return (self.matrix_inverse @ shift[..., None])[..., 0]


def third_of_logarithm(level: Level, u: Tensor, v: Tensor) -> Tensor:
    """Third derivative of −log ψ, from ψ_u = <∇ψ, u> and so on:

    (ψ_uv/ψ² − 2 ψ_u ψ_v/ψ³) ∇ψ + (ψ_v/ψ²) ∇²ψ u + (ψ_u/ψ²) ∇²ψ v − ∇³ψ[u, v]/ψ.
    """
    over = level.inverse[..., None]
    along_u = (level.gradient * u).sum(-1, keepdim=True) * over
    along_v = (level.gradient * v).sum(-1, keepdim=True) * over
    both = (level.second_u * v).sum(-1, keepdim=True) * over
    bend = along_v * level.second_u + along_u * level.second_v - level.third
    return over * ((both - 2.0 * along_u * along_v) * level.gradient + bend)


def lower(a: Tensor, b: Tensor, c: Tensor) -> Factor:
    """The matrices [a 0; b c], entries of shape (…), and their inverses, shape (…, 2, 2)."""
    zero = torch.zeros_like(a)
    matrix = torch.stack([a, zero, b, c], dim=-1).unflatten(-1, (2, 2))
    over_a, over_c = 1.0 / a, 1.0 / c
    inverse = torch.stack([over_a, zero, -b * over_a * over_c, over_c], dim=-1)
    return Factor(matrix, inverse.unflatten(-1, (2, 2)))
