"""An affine map between stacked vectors, its adjoint beside it.

    y = Σ_i M_i θ_i + c          dθ_i = M_iᵀ dy

θ comes in parts (one for each parameter), each of which is batched or shared by the batch. A
shared part meets the matrix once, whatever the batch size, and its gradient is summed over the
batch before the transposed matrix is applied. They are arrays of NumPy or PyTorch (see `arrays`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.arrays import Array, held, held_matrix, is_host, namespace, repeated, zeros

__all__ = ["AffineMap"]


class AffineMap:
    """y = Σ_i M_i θ_i + c over a batch.

    Parameters
    ----------
    blocks : sequence of sparse matrices
        M_i, shape (r, p_i) each; all have r rows.
    offset : ndarray
        c, shape (r,).

    Attributes
    ----------
    rows : ndarray of int
        The entries of y that depend on some part. Derivatives are about these alone.
    depends_on : frozenset of int
        The parts that matter.
    covers_all : bool
        Whether `rows` is all of them.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> f = AffineMap([sp.eye_array(2), sp.csr_array([[2.0], [0.0]])], np.array([0.0, 1.0]))
    >>> f.apply([np.ones((3, 2)), np.full((1, 1), 5.0)])[0]
    array([11.,  2.])
    """

    def __init__(self, blocks: Sequence[sp.sparray], offset: Array):
        csr = [sp.csr_array(block) for block in blocks]
        counts = sum((np.diff(b.indptr) for b in csr), np.zeros(len(offset), dtype=np.int64))
        self.rows: NDArray[np.intp] = np.flatnonzero(counts)
        self.blocks = [block[self.rows] for block in csr]
        self.offset = np.ascontiguousarray(offset, dtype=np.float64)
        self.depends_on = frozenset(i for i, block in enumerate(self.blocks) if block.nnz)
        self._parts = tuple(sorted(self.depends_on))
        self.covers_all = len(self.rows) == len(offset)
        self._has_offset = bool(np.any(self.offset[self.rows]))
        self._stacked: dict[tuple[int, ...], _Linear] = {}

    @property
    def fixed(self) -> Array:
        """The outputs that no part changes; NaN for the others."""
        fixed = self.offset.copy()
        fixed[self.rows] = np.nan
        return fixed

    @property
    def size(self) -> int:
        """r, the number of outputs."""
        return len(self.offset)

    def apply(self, parts: Sequence[Array]) -> Array:
        """y for parts of shape (B or 1, p_i): shape (B, r), or (1, r) when all are shared."""
        offset = held(self.offset, parts[0]) if parts else self.offset
        if not self.depends_on:
            return offset[None, :]
        varying = self.linear(parts)
        if self.covers_all:
            return varying + offset if self._has_offset else varying
        y = repeated(offset[None, :], len(varying))
        y[:, held(self.rows, y)] += varying
        return y

    def linear(self, parts: Sequence[Array]) -> Array:
        """Σ_i M_i θ_i on `rows` alone: shape (B or 1, len(rows))."""
        shared, batched = self._split(parts)
        if not batched:
            if not shared:
                return zeros((1, 0), parts[0] if parts else self.offset)
            return self._linear(shared).apply(_stack(parts, shared))
        y = self._linear(batched).apply(_stack(parts, batched))
        return y + self._linear(shared).apply(_stack(parts, shared)) if shared else y

    def adjoint(self, dy: Array, parts: Sequence[Array]) -> dict[int, Array]:
        """Gradients of Σ dy·y for the parts that matter: index to array of the part's shape.

        `dy` has shape (B, len(rows)), or (1, len(rows)) when it is already summed over the batch.
        """
        shared, batched = self._split(parts)
        gradients: dict[int, Array] = {}
        if batched:
            self._scatter(batched, dy, gradients)
        if shared:
            total = dy if len(dy) == 1 else namespace(dy).sum(dy, axis=0, keepdims=True)
            self._scatter(shared, total, gradients)
        return gradients

    def _scatter(self, which: tuple[int, ...], dy: Array, gradients: dict[int, Array]) -> None:
        stacked = self._linear(which).adjoint(dy)
        start = 0
        for i in which:
            stop = start + self.blocks[i].shape[1]
            gradients[i] = stacked[:, start:stop]
            start = stop

    def _split(self, parts: Sequence[Array]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shared = tuple([i for i in self._parts if len(parts[i]) == 1])
        if len(shared) == len(self._parts):
            return shared, ()
        return shared, tuple([i for i in self._parts if len(parts[i]) != 1])

    def _linear(self, which: tuple[int, ...]) -> _Linear:
        linear = self._stacked.get(which)
        if linear is None:
            linear = _Linear(sp.hstack([self.blocks[i] for i in which], format="csr"))
            self._stacked[which] = linear
        return linear


class _Linear:
    """y = M θ on rows of a batch.

    Almost every entry of P, q, A and b is one parameter entry times a constant. Where that holds
    for the whole map it is a gather, which needs no transposition of the batch.
    """

    def __init__(self, matrix: sp.csr_array):
        self.matrix = matrix
        counts = np.diff(matrix.indptr)
        self.is_gather = bool((counts <= 1).all()) and matrix.nnz > 0
        if self.is_gather:
            self.rows = np.flatnonzero(counts)
            self.source = matrix.indices.astype(np.intp)
            self.factor = None if (matrix.data == 1.0).all() else matrix.data
            self.covers_all = len(self.rows) == matrix.shape[0]
            self.is_injective = len(np.unique(self.source)) == len(self.source)

    def apply(self, theta: Array) -> Array:
        if not self.is_gather:
            return _product(self.matrix, theta)
        values = theta[:, held(self.source, theta)]
        if self.factor is not None:
            values *= held(self.factor, theta)
        if self.covers_all:
            return values
        y = zeros((len(theta), self.matrix.shape[0]), theta)
        y[:, held(self.rows, theta)] = values
        return y

    def adjoint(self, dy: Array) -> Array:
        if not (self.is_gather and self.is_injective):
            return _product(self._transposed, dy)
        values = dy if self.covers_all else dy[:, held(self.rows, dy)]
        if self.factor is not None:
            values = values * held(self.factor, dy)
        dtheta = zeros((len(dy), self.matrix.shape[1]), dy)
        dtheta[:, held(self.source, dy)] = values
        return dtheta

    @cached_property
    def _transposed(self) -> sp.csr_array:
        return sp.csr_array(self.matrix.T)


def _product(matrix: sp.csr_array, rows: Array) -> Array:
    """M v for every row v of an array."""
    if not is_host(rows):
        return (held_matrix(matrix, rows) @ rows.T).T.contiguous()
    if len(rows) == 1:
        return (matrix @ rows[0])[None, :]
    return np.ascontiguousarray((matrix @ rows.T).T)


def _stack(parts: Sequence[Array], which: tuple[int, ...]) -> Array:
    if len(which) == 1:
        return parts[which[0]]
    return namespace(parts[which[0]]).concat([parts[i] for i in which], axis=1)
