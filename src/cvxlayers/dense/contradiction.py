"""Equalities E x = b that contradict each other, found before the first iteration.

What of b no x reaches is its projection r onto the null space of Eᵀ. With r ≠ 0, z = −r/‖r‖² is a
certificate, Eᵀz = 0 and bᵀz = −1, whatever the other constraints are. It lies on the boundary of K*
there, where an interior-point method comes to it late or not at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvxlayers.arrays import largest

__all__ = ["contradiction"]

# δ beside rows of size one, and how often r ← δ (E Eᵀ + δ I)⁻¹ r, which keeps the null space of Eᵀ
# and shrinks a direction with singular value σ by δ/(σ² + δ).
DELTA, ROUNDS = 1e-10, 3
# What is smaller beside b may be its rounding, and is left to the iteration.
EVIDENT = 1e-5
# Of Eᵀz, for a gain of one.
ACCURATE = 1e-9


def contradiction(E: Tensor, b: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """z, shape (B, p), and where it proves that E x = b has no solution, shape (B,).

    Parameters
    ----------
    E : Tensor
        Shape (B or 1, p, n), equilibrated.
    b : Tensor
        Shape (B, p).
    d : Tensor
        Shape (B or 1, n): the scale of x, in whose units Eᵀz is small.
    """
    M = E @ E.mT
    diagonal = M.diagonal(dim1=1, dim2=2)
    diagonal += DELTA
    L = torch.linalg.cholesky_ex(M)[0].expand(len(b), -1, -1)
    r = b[..., None]
    for _ in range(ROUNDS):
        half = torch.linalg.solve_triangular(L, r, upper=False)
        r = DELTA * torch.linalg.solve_triangular(L.mT, half, upper=True)
    gain = (b * r[..., 0]).sum(1, keepdim=True)
    z = -r[..., 0] / gain
    left = torch.linalg.vector_norm((z[:, None, :] @ E)[:, 0] / d, dim=1)
    evident = largest(r[..., 0]) > EVIDENT * largest(b).clamp_min(1.0)
    return z, evident & (gain[:, 0] > 0.0) & (left < ACCURATE)
