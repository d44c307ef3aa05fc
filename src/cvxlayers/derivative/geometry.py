"""What is computed once per structure: the cone product and the index arrays of the products
P x, A x and Aᵀ z over a batch of values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.cones import ProductCone
from cvxlayers.lanes import Engine, engine_for
from cvxlayers.program import Pattern, ProblemStructure

__all__ = ["Geometry"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


# Bytes: beyond, pieces of a batch are no faster together than after each other.
MOST_MEMORY = 1e9


class _Gather:
    """y_i = Σ_j V_ij x_j with V given by stored values, over a batch.

    `entry` are positions among the stored values, ordered by output row; `source` the entry of x
    that each of them multiplies.
    """

    def __init__(self, rows: NDArray[Any], source: NDArray[Any], entry: NDArray[Any], size: int):
        order = np.argsort(rows, kind="stable")
        self.source, self.entry, self.size = source[order], entry[order], size
        counts = np.bincount(rows, minlength=size)
        self.targets = np.flatnonzero(counts)
        self.starts = np.concatenate([[0], np.cumsum(counts[self.targets])])[:-1].astype(np.intp)
        self.is_full = len(self.targets) == size

    def __call__(self, values: Array, x: Array) -> Array:
        if not len(self.entry):
            return np.zeros((len(x), self.size))
        products = values[:, self.entry] * x[:, self.source]
        sums = np.add.reduceat(products, self.starts, axis=1)
        if self.is_full:
            return sums
        y = np.zeros((len(sums), self.size))
        y[:, self.targets] = sums
        return y


class Geometry:
    """Cones and index arrays of one `ProblemStructure`.

    Attributes
    ----------
    cone : ProductCone
    nonneg : ndarray of int
        The nonnegative rows.
    P_full : Pattern
        Pattern of both triangles of P.
    P_entry : ndarray of int
        For every entry of `P_full`, its position among the stored upper triangle.
    memory : float
        Bytes that factored systems may take at once, where there is a choice.
    """

    def __init__(self, structure: ProblemStructure, memory: float = math.inf):
        self.structure, self.memory = structure, min(memory, MOST_MEMORY)
        dims = structure.dims
        self.cone = ProductCone(
            zero=dims.zero,
            nonneg=dims.nonneg,
            soc=dims.soc,
            psd=dims.psd,
            exp=dims.exp,
            pow=dims.pow,
        )
        self.nonneg = np.arange(dims.zero, dims.zero + dims.nonneg)
        self.P_full, self.P_entry = _both_triangles(structure.P)
        A, entries = structure.A, np.arange(structure.A.nnz)
        P = self.P_full
        self.apply_P = _Gather(P.rows, P.cols, self.P_entry, structure.n)
        self.apply_A = _Gather(A.rows, A.cols, entries, structure.m)
        self.apply_At = _Gather(A.cols, A.rows, entries, structure.n)
        # Kept here by the sparse system when it first needs it.
        self.sparse_assembly: Any = None

    @property
    def engine(self) -> Engine | None:
        """What solves many instances at once, if there is one for this structure."""
        return engine_for(self.structure)

    def dense_A(self, values: Array) -> Array:
        """A as a dense array, shape (len(values), m, n)."""
        return _dense(self.structure.A, values)

    def dense_P(self, values: Array) -> Array:
        """P as a dense array, shape (len(values), n, n)."""
        return _dense(self.P_full, values[:, self.P_entry])


def _both_triangles(upper: Pattern) -> tuple[Pattern, Index]:
    off = np.flatnonzero(upper.rows != upper.cols)
    rows = np.concatenate([upper.rows, upper.cols[off]])
    cols = np.concatenate([upper.cols, upper.rows[off]])
    entry = np.concatenate([np.arange(upper.nnz), off])
    order = np.lexsort((rows, cols))
    counts = np.bincount(cols, minlength=upper.shape[1])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Pattern(upper.shape, rows[order].astype(np.int32), indptr), entry[order]


def _dense(pattern: Pattern, values: Array) -> Array:
    m, n = pattern.shape
    flat = np.zeros((len(values), m * n))
    flat[:, pattern.rows * np.intp(n) + pattern.cols] = values
    return flat.reshape(-1, m, n)
