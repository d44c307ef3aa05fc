"""What is computed once per structure: the cone product and the index arrays of the products
P x, A x and Aᵀ z over a batch of values."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.arrays import Array, held, held_matrix, is_host, zeros
from cvxlayers.cones import ProductCone, Spectrum
from cvxlayers.definitions import definitions
from cvxlayers.derivative.inverse import Pairs
from cvxlayers.lanes import Engine, engine_for
from cvxlayers.program import Pattern, ProblemStructure

__all__ = ["Geometry"]

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
            return zeros((len(x), self.size), x)
        products = values[:, held(self.entry, x)] * x[:, held(self.source, x)]
        if not is_host(x):
            return (held_matrix(self._sums, x) @ products.T).T
        sums = np.add.reduceat(products, self.starts, axis=1)
        if self.is_full:
            return sums
        y = np.zeros((len(sums), self.size))
        y[:, self.targets] = sums
        return y

    @cached_property
    def _sums(self) -> sp.csr_array:
        """The matrix that adds what belongs to one output row."""
        counts = np.zeros(self.size, dtype=np.int64)
        counts[self.targets] = np.diff(self.starts, append=len(self.entry))
        indptr = np.concatenate([[0], np.cumsum(counts)])
        ones, places = np.ones(len(self.entry)), np.arange(len(self.entry))
        return sp.csr_array((ones, places, indptr), shape=(self.size, len(self.entry)))


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
        self._curved_rows: dict[int, Index] = {}
        entries = definitions(structure)
        self._pairs = (
            A.cols[entries].astype(np.intp),
            structure.n + A.rows[entries].astype(np.intp),
        )
        self._pairs_of: dict[int, Pairs] = {}

    def engine_for(self, values: Array) -> Engine | None:
        """What solves many instances with such values at once, if there is one for this
        structure."""
        return engine_for(self.structure) if is_host(values) else None

    def pairs(self, k: int) -> Pairs | None:
        """The variables that a row defines, and the rows, in a system of n variables and k rows of
        which those of the zero cone come first."""
        if not len(self._pairs[0]):
            return None
        # The same arrays each time: see `held`.
        if k not in self._pairs_of:
            others = np.setdiff1d(np.arange(self.structure.n + k), np.concatenate(self._pairs))
            self._pairs_of[k] = Pairs(*self._pairs, others)
        return self._pairs_of[k]

    def curved_rows(self, spectrum: Spectrum) -> Index:
        """The rows of all blocks of a spectrum of this geometry, in order."""
        # Smoothed, nonnegative rows are blocks, too. The same array each time: see `held`.
        count = len(spectrum.blocks)
        if count not in self._curved_rows:
            rows = np.concatenate([group.flat for group, _ in spectrum.blocks])
            self._curved_rows[count] = np.sort(rows)
        return self._curved_rows[count]


def _both_triangles(upper: Pattern) -> tuple[Pattern, Index]:
    off = np.flatnonzero(upper.rows != upper.cols)
    rows = np.concatenate([upper.rows, upper.cols[off]])
    cols = np.concatenate([upper.cols, upper.rows[off]])
    entry = np.concatenate([np.arange(upper.nnz), off])
    order = np.lexsort((rows, cols))
    counts = np.bincount(cols, minlength=upper.shape[1])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Pattern(upper.shape, rows[order].astype(np.int32), indptr), entry[order]
