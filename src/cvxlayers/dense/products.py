"""Products of a batch of matrices, some of which the batch shares, with vectors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["columns", "product", "times", "transposed_times"]


def columns(*vectors: Tensor) -> Tensor:
    """Vectors of shape (B, n) as the columns of a tensor of shape (B, n, k)."""
    return torch.stack(vectors, dim=-1)


def times(M: Tensor, v: Tensor) -> Tensor:
    """M v, for M of shape (B or 1, m, n) and v of shape (B, n, k); a matrix that the batch shares
    is multiplied with all of v at once."""
    # From the left: with few columns the other product takes up to seven times as long on a CPU.
    is_shared = len(M) < len(v)  # one instance is multiplied as in a batch, to the last bit
    return (v.mT @ (M[0].mT if is_shared else M.mT)).mT


def transposed_times(M: Tensor, v: Tensor) -> Tensor:
    """Mᵀ v, likewise."""
    return times(M.mT, v)


def product(M: Tensor, v: Tensor) -> Tensor:
    """M v, shape (B, m), for v of shape (B, n)."""
    return times(M, columns(v))[..., 0]
