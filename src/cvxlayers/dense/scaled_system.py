"""The linear system of an iteration.

A step solves, with the zero cone's rows E of A and the others scaled, F = W⁻ᵀA,

    P dx + Eᵀy + Fᵀẑ = r₁,   E dx = r_E,   F dx − ẑ = W⁻ᵀ r₂,   dz = (y, W⁻¹ẑ).

Without ẑ and with Eᵀ times the second equation added, which changes nothing,

    (P + GᵀG) dx + Eᵀy = r₁ + Gᵀ(r_E, W⁻ᵀ r₂),   E dx = r_E,   G = (E, F).

P + GᵀG = L Lᵀ is positive definite wherever the system is regular. With Y = L⁻¹Eᵀ, y comes from
the Schur complement YᵀY = S Sᵀ, which has no large entries: P + GᵀG is at least EᵀE. Equalities
that are repeated make it singular, but consistent: it is regularised, and the solution refined.
What contradicts itself sends y to infinity, towards a certificate.

With Z = S⁻¹YᵀL⁻¹ and e₁, e_E for the right-hand sides once ẑ is satisfied, both unknowns are

    (dx, y) = [ L⁻ᵀ  −Zᵀ  ] [ L⁻¹    Y         ] (e₁, e_E).
              [ 0     S⁻ᵀ ] [ Z    Z Eᵀ − S⁻¹  ]

These inverses of triangles are made once: a triangular solve goes from row to row, and for one or
two columns takes a GPU many times as long as a product. Refinement is against the system itself.

Everything is Cholesky's factorisation and triangular solves: PyTorch's batched LU on a CPU chooses
wrong pivots when several threads are at work (pytorch/pytorch#141358, #142815).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvxlayers.dense.products import times, transposed_times

__all__ = ["ScaledSystem"]

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
        self.P, self.c, self.G, self.zero = P, c[:, None, None], G, zero
        H = torch.addcmul(G.mT @ G, self.c, P)
        diagonal = H.diagonal(dim1=1, dim2=2)
        relative = ROUNDING * H.shape[1] * boost
        diagonal += relative[:, None] * diagonal + ABSOLUTE
        inner, self.is_factored = _inverse_root(H)
        outer = inner
        if zero:
            E = G[:, :zero]
            Y = inner @ E.mT
            schur = Y.mT @ Y
            diagonal = schur.diagonal(dim1=1, dim2=2)
            diagonal += SCHUR_RELATIVE * diagonal + SCHUR_ABSOLUTE
            root, is_factored = _inverse_root(schur)
            self.is_factored &= is_factored
            Z = root @ Y.mT @ inner
            outer = _blocks(inner, torch.zeros_like(Y), -Z, root)
            inner = _blocks(inner, Y, Z, Z @ E.mT - root)
        self._inner, self._outer = inner, outer.mT

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
        z = _above(torch.zeros_like(r2[:, : self.zero]), -r2[:, self.zero :])
        error = _above(r1 - transposed_times(self.G, z), r2[:, : self.zero])
        w = self._solve(error)
        z, error = self._left(r1, r2, w)
        height = torch.linalg.vector_norm(error, torch.inf, 1, keepdim=True)
        for _ in range(rounds):
            new_w = w + self._solve(error)
            new_z, again = self._left(r1, r2, new_w)
            lower = torch.linalg.vector_norm(again, torch.inf, 1, keepdim=True)
            better = lower < height
            w, z = torch.where(better, new_w, w), torch.where(better, new_z, z)
            error = torch.where(better, again, error)
            height = torch.minimum(height, lower)
        return w[:, : r1.shape[1]], z

    def _solve(self, error: Tensor) -> Tensor:
        """(dx, y) of the regularised system."""
        return times(self._outer, times(self._inner, error))

    def _left(self, r1: Tensor, r2: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(y, ẑ), with which the equation of ẑ holds, and what is left of the other two."""
        n = r1.shape[1]
        x, beyond = w[:, :n], times(self.G, w[:, :n]) - r2
        z = _above(w[:, n:], beyond[:, self.zero :])
        first = r1 - self.c * times(self.P, x) - transposed_times(self.G, z)
        return z, _above(first, -beyond[:, : self.zero])


def _inverse_root(M: Tensor) -> tuple[Tensor, Tensor]:
    """L⁻¹ for M = L Lᵀ, and where there is one, shape (B,)."""
    L, info = torch.linalg.cholesky_ex(M)
    one = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    return torch.linalg.solve_triangular(L, one.expand_as(L), upper=False), info == 0


def _above(top: Tensor, bottom: Tensor) -> Tensor:
    """The rows of both; nothing is copied where one has none."""
    if not top.shape[1]:
        return bottom
    return torch.cat([top, bottom], dim=1) if bottom.shape[1] else top


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)
