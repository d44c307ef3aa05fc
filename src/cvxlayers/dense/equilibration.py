"""Scaling of the data: P̂ = c D P D, Â = E A D, q̂ = c D q, b̂ = E b."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxlayers.arrays import largest
from cvxlayers.dense.cones import Product

__all__ = ["cost_scale", "equilibrate", "unit_of_data"]

ROUNDS = 10
LEAST, LARGEST = 1e-4, 1e4
# Data below this size are scaled up: tolerances are absolute below one.
TINY = 1e-2


def equilibrate(P: Tensor, A: Tensor, cones: Product) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D P D, E A D and the diagonals d, e, for [P Aᵀ; A 0] (Ruiz, A scaling algorithm to
    equilibrate both rows and columns norms in matrices, 2001), one number for all rows of a curved
    block.

    Parameters
    ----------
    P, A : Tensor
        Shapes (B or 1, n, n) and (B or 1, m, n), rows in the order of `cones`. Where both are
        shared by the batch, so is all that is returned.
    cones : Product
    """
    batch, m, n = max(len(P), len(A)), A.shape[1], A.shape[2]
    d, e = P.new_ones((batch, n)), P.new_ones((batch, m))
    of_P, of_A = P.abs().expand(batch, -1, -1).clone(), A.abs().expand(batch, -1, -1).clone()
    for _ in range(ROUNDS):
        column, row = of_P.amax(1), of_A.new_zeros((batch, m))
        if m:
            column, row = torch.maximum(column, of_A.amax(1)), of_A.amax(2)
        column, row = _correction(column, d), _correction(row, e)
        d, e = d * column, e * row
        of_P *= column[:, :, None] * column[:, None, :]
        of_A *= row[:, :, None]
        of_A *= column[:, None, :]
    e = cones.mean_over_blocks(e)
    return d[:, :, None] * P * d[:, None, :], e[:, :, None] * A * d[:, None, :], d, e


def _correction(size: Tensor, scale: Tensor) -> Tensor:
    root = torch.where(size > 0.0, size, 1.0).rsqrt()
    return (scale * root).clamp(LEAST, LARGEST) / scale


def unit_of_data(q: Tensor, b: Tensor) -> Tensor:
    """Shape (B,): the power of two by which q and b are divided where they are small."""
    size = torch.maximum(largest(q), largest(b))
    _, exponent = torch.frexp(size)
    tiny = (size < TINY) & (size > 1e-290)
    return torch.ldexp(torch.ones_like(size), torch.where(tiny, exponent, 0))


def cost_scale(P: Tensor, q: Tensor) -> Tensor:
    """Shape (B,): c = 1/max(mean of the largest entries of the columns of P, ‖q‖∞), P and q already
    in the scale d; one where either is zero."""
    mean, height = P.abs().amax(1).mean(1), largest(q)
    bounded = torch.maximum(mean, height).reciprocal().clamp(LEAST, LARGEST)
    return torch.where((mean > 0.0) & (height > 0.0), bounded, 1.0)
