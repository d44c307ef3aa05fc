"""The linear system of an iteration.

A step solves, with the zero cone's rows E of A and the others scaled, F = W⁻ᵀA,

    P dx + Eᵀy + Fᵀẑ = r₁,   E dx = r_E,   F dx − ẑ = W⁻ᵀ r₂,   dz = (y, W⁻¹ẑ).

Without ẑ and with Eᵀ times the second equation added, which changes nothing,

    (P + GᵀG) dx + Eᵀy = r₁ + Gᵀ(r_E, W⁻ᵀ r₂),   E dx = r_E,   G = (E, F).

P + GᵀG = L Lᵀ is positive definite wherever the system is regular. With Y = L⁻¹Eᵀ, y comes from
the Schur complement YᵀY, which has no large entries: P + GᵀG is at least EᵀE. Equalities that are
repeated make it singular, but consistent: it is regularised, and the solution refined. What
contradicts itself sends y to infinity, towards a certificate.

Everything is Cholesky's factorisation and triangular solves: PyTorch's batched LU on a CPU chooses
wrong pivots when several threads are at work (pytorch/pytorch#141358, #142815).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ScaledSystem", "columns", "times", "transposed_times"]

# Added to P + GᵀG: a number, and a multiple of its diagonal that covers the rounding of the
# factorisation.
ABSOLUTE, ROUNDING = 1e-8, 4.0 * torch.finfo(torch.float64).eps
# The same for the Schur complement; a row without entries has a zero there.
SCHUR_RELATIVE, SCHUR_ABSOLUTE = 1e-10, 1e-12


class ScaledSystem:
    """The factors for every instance.

    Parameters
    ----------
    P : Tensor
        Shape (B or 1, n, n).
    c : Tensor
        Shape (B,): the system's P is c P.
    G : Tensor
        Shape (B, m, n).
    zero : int
        How many rows of G are those of the zero cone; they come first.
    boost : Tensor
        Shape (B,): by how much more than usual P + GᵀG is regularised.

    Attributes
    ----------
    is_factored : Tensor of bool
        Shape (B,). Where it is not, solutions may be anything.
    """

    def __init__(self, P: Tensor, c: Tensor, G: Tensor, zero: int, boost: Tensor):
        self.P, self.c, self.G, self.zero = P, c, G, zero
        H = G.mT @ G
        H = torch.addcmul(H, c[:, None, None], P)
        diagonal = H.diagonal(dim1=1, dim2=2)
        relative = ROUNDING * H.shape[1] * boost
        diagonal += relative[:, None] * diagonal + ABSOLUTE
        self.L, info = torch.linalg.cholesky_ex(H)
        self.is_factored = info == 0
        if zero:
            self.Y = torch.linalg.solve_triangular(self.L, G[:, :zero].mT, upper=False)
            schur = self.Y.mT @ self.Y
            diagonal = schur.diagonal(dim1=1, dim2=2)
            diagonal += SCHUR_RELATIVE * diagonal + SCHUR_ABSOLUTE
            self.L_schur, info = torch.linalg.cholesky_ex(schur)
            self.is_factored &= info == 0

    def solve(self, r1: Tensor, r2: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
        """dx and (y, ẑ) for k right-hand sides, refined against the system as it is.

        Parameters
        ----------
        r1 : Tensor
            Shape (B, n, k).
        r2 : Tensor
            Shape (B, m, k): r_E and W⁻ᵀ r₂.
        rounds : int
            Of refinement; a column of an instance keeps what it has where a round does not help.
        """
        x, y = torch.zeros_like(r1), torch.zeros_like(r2[:, : self.zero])
        z = torch.cat([y, -r2[:, self.zero :]], dim=1)
        error = r1 - transposed_times(self.G, z), r2[:, : self.zero]
        height = None
        for _ in range(1 + rounds):
            change_x, change_y = self._solve(*error)
            new_x, new_y = x + change_x, y + change_y
            beyond = times(self.G, new_x) - r2
            again = self._errors(r1, r2, new_x, new_y, beyond)
            lower = torch.linalg.vector_norm(torch.cat(again, 1), torch.inf, 1, keepdim=True)
            if height is None:
                x, y, z, error, height = new_x, new_y, beyond, again, lower
                continue
            better = lower < height
            x, y = torch.where(better, new_x, x), torch.where(better, new_y, y)
            z = torch.where(better, beyond, z)
            error = (
                torch.where(better, again[0], error[0]),
                torch.where(better, again[1], error[1]),
            )
            height = torch.minimum(height, lower)
        return x, torch.cat([y, z[:, self.zero :]], dim=1)

    def _errors(
        self, r1: Tensor, r2: Tensor, x: Tensor, y: Tensor, beyond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What is missing in the first equation and in E x = r_E, `beyond` = G x − r₂, of which
        the other rows are ẑ: their equation holds."""
        z = torch.cat([y, beyond[:, self.zero :]], dim=1)
        Px = self.c[:, None, None] * times(self.P, x)
        return r1 - Px - transposed_times(self.G, z), -beyond[:, : self.zero]

    def _solve(self, r1: Tensor, r_E: Tensor) -> tuple[Tensor, Tensor]:
        """(dx, y) of the regularised system with W⁻ᵀ r₂ = 0."""
        if self.zero:
            r1 = r1 + transposed_times(self.G[:, : self.zero], r_E)
        u = torch.linalg.solve_triangular(self.L, r1, upper=False)
        y = r_E
        if self.zero:
            y = _both(self.L_schur, transposed_times(self.Y, u) - r_E)
            u = u - times(self.Y, y)
        return torch.linalg.solve_triangular(self.L.mT, u, upper=True), y


def _both(L: Tensor, r: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ r."""
    half = torch.linalg.solve_triangular(L, r, upper=False)
    return torch.linalg.solve_triangular(L.mT, half, upper=True)


def columns(*vectors: Tensor) -> Tensor:
    """Vectors of shape (B, n) as the columns of a tensor of shape (B, n, k)."""
    return torch.stack(vectors, dim=-1)


def times(M: Tensor, v: Tensor) -> Tensor:
    """M v, for M of shape (B or 1, m, n) and v of shape (B, n, k); a matrix that the batch shares
    is multiplied with all of v at once."""
    # From the left: with few columns the other product takes up to seven times as long on a CPU.
    return (v.mT @ (M[0].mT if len(M) == 1 else M.mT)).mT


def transposed_times(M: Tensor, v: Tensor) -> Tensor:
    """Mᵀ v, likewise."""
    return times(M.mT, v)
