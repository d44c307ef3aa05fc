"""What the interior-point method asks of a cone.

A `Cone` is `count` blocks of `size` rows each, so that one operation serves all of them. Points are
tensors of shape (B, count, size). At a point (s, z) strictly inside K and K* it gives a `Scaling`:
a matrix W for every block, with which ds = −(WᵀW dz + shift).

W is never multiplied out. The linear system is formed from W⁻ᵀA, whose entries are of moderate size
however close to the boundary the point is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

__all__ = ["Cone", "Scaling", "SymmetricCone", "SymmetricScaling"]


class Scaling(ABC):
    """W of all blocks, at one point of each instance."""

    @abstractmethod
    def inverse_transposed(self, v: Tensor) -> Tensor:
        """W⁻ᵀ v for each of k columns: shape (B or 1, count, size, k) to (B, count, size, k)."""

    @abstractmethod
    def inverse(self, v: Tensor) -> Tensor:
        """W⁻¹ v, shape (B, count, size)."""

    @abstractmethod
    def affine_shift(self) -> Tensor:
        """W⁻ᵀ s, the scaled shift of the affine step, shape (B, count, size)."""

    @abstractmethod
    def combined_shift(self, ds: Tensor, dz: Tensor, sigma_mu: Tensor, second: Tensor) -> Tensor:
        """W⁻ᵀ shift of the combined step.

        Parameters
        ----------
        ds, dz : Tensor
            The affine step, shape (B, count, size).
        sigma_mu : Tensor
            The target of the combined step, shape (B,).
        second : Tensor
            Weight (0 to 1) of the second-order correction, shape (B,).
        """


class SymmetricScaling(Scaling):
    """The scaling of Nesterov and Todd."""

    @abstractmethod
    def longest_step(self, ds: Tensor, dz: Tensor) -> Tensor:
        """Shape (B,): how far along (ds, dz) the boundary of a cone is; infinity if nowhere."""


class Cone(ABC):
    """Blocks of equal size.

    Attributes
    ----------
    count, size : int
        Blocks, and rows of each.
    degree : int
        Of the logarithmic barrier of all blocks together.
    symmetric : bool
    """

    symmetric: ClassVar[bool] = True

    def __init__(self, count: int, size: int, degree: int):
        self.count, self.size, self.degree = count, size, degree

    @abstractmethod
    def unit(self) -> Tensor:
        """Shape (count, size): the point, both s and z, on the central path at μ = 1. That of a
        symmetric cone is the identity of its Jordan algebra."""

    @abstractmethod
    def scale(self, s: Tensor, z: Tensor, mu: Tensor, dual: Tensor) -> Scaling:
        """The scaling at (s, z).

        Parameters
        ----------
        s, z : Tensor
        mu : Tensor
            Shape (B,).
        dual : Tensor of bool
            Shape (B,): where μ ∇²f*(z) is the scaling of a cone that is not symmetric.
        """


class SymmetricCone(Cone):
    """A self-dual, homogeneous cone."""

    @abstractmethod
    def eigenvalues(self, v: Tensor) -> Tensor:
        """Shape (B, degree): those of v in the Jordan algebra, of all blocks."""
