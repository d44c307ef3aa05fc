"""Unknowns that one equality defines, taken out of the linear system before it is factored.

Where a row a y_j + Lᵢ x = bᵢ defines a variable (`cvxlayers.definitions`), and p is its diagonal
entry of P, the pair of it and the dual of its row can go from K u = r, whose rows they are in are
p u_y + a v = r_y and L u + a u_y = r_E:

    (P + M) u + … = r − Lᵀ(r_y/a − W r_E),     M = LᵀW L,  W = p/a²,
    u_y = (r_E − L u)/a,     v = (r_y − p u_y)/a.

A factorisation would find M, too, once in every iteration. Here it is found once for an instance,
by BLAS where L is large. Residuals are those of the whole system, so that refinement takes away
what the squares in M lose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvxlayers.definitions import definitions
from cvxlayers.program import ConeProgram, ProblemStructure

__all__ = ["Elimination", "find_elimination"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

# From this density on, L may be multiplied as a dense matrix.
DENSE = 0.25
# The products that M is summed from one by one, and entries of M beside those of P and A.
MOST_PRODUCTS = 200_000
MOST_FILL = 1.0


def find_elimination(structure: ProblemStructure) -> Elimination | None:
    """What can be taken out with profit, if there is anything."""
    entries = definitions(structure)
    if not len(entries) or not structure.P.nnz:
        return None
    elimination = Elimination(structure, entries)
    return elimination if elimination.pays else None


class Elimination:
    """M for the programs of one structure.

    Parameters
    ----------
    structure : ProblemStructure
    entries : ndarray of int
        Where A stores the coefficients a, one for each equality that goes, in the order of rows.

    Attributes
    ----------
    a_entries, p_entries : ndarray of int
        Where A and P store a and p; −1 where P stores none.
    i, j : ndarray of int
        Rows and columns of the entries of M, i <= j.
    terms : tuple of ndarray of int
        What M is summed from: the entry of M, the number of the equality, and where A stores the
        two factors.
    by_blas : bool
        Whether there are so many terms that they are not listed, and `products` is for them.
    pays : bool
        Whether M is small enough to be of use.
    """

    def __init__(self, structure: ProblemStructure, entries: Index):
        A, P = structure.A, structure.P
        assert structure.fixed_A is not None
        self.a_entries = entries
        self._a = structure.fixed_A[entries]
        rows, cols = A.rows[entries], A.cols[entries]
        diagonal = np.flatnonzero(P.rows == P.cols)
        where = np.full(structure.n, -1, dtype=np.intp)
        where[P.cols[diagonal]] = diagonal
        self.p_entries = where[cols]

        # L, of the rows with a p alone: the others add nothing to M.
        place = np.full(structure.m, -1, dtype=np.intp)
        place[rows] = np.where(self.p_entries >= 0, np.arange(len(rows)), -1)
        in_L = place[A.rows] >= 0
        in_L[entries] = False
        self._L = np.flatnonzero(in_L)
        self._row, self._col = place[A.rows[self._L]], A.cols[self._L].astype(np.intp)

        counts = np.bincount(self._row, minlength=len(rows)).astype(np.int64)
        self._touched, self._place = np.unique(self._col, return_inverse=True)
        area = int((counts > 0).sum()) * len(self._touched)
        products = int((counts * (counts + 1) // 2).sum())
        none = np.zeros(0, dtype=np.intp)
        self.terms: tuple[Index, ...] = (none, none, none, none)
        self.by_blas = products > MOST_PRODUCTS
        dense = len(self._L) > 1 and len(self._L) >= DENSE * area
        fill = len(self._touched) ** 2 // 2 if dense else products
        self.pays = fill <= MOST_FILL * (P.nnz + A.nnz)
        self.pays &= dense or not self.by_blas
        if not self.pays:
            return
        if self.by_blas:
            self._upper = np.triu_indices(len(self._touched))
            self.i, self.j = (self._touched[k] for k in self._upper)
            return
        left, right = _pairs(self._row, counts)
        low, high = np.sort(np.stack([self._col[left], self._col[right]]), axis=0)
        keys, place = np.unique(high * structure.n + low, return_inverse=True)
        self.i, self.j = keys % structure.n, keys // structure.n
        self.terms = (place, self._row[left], self._L[left], self._L[right])

    def products(self, program: ConeProgram) -> Array:
        """M, shape (B or 1, number of entries), where it is found `by_blas`."""
        p = np.where(self.p_entries >= 0, program.P[:, self.p_entries], 0.0)
        L = np.zeros((len(program.A), len(self._a), len(self._touched)))
        L[:, self._row, self._place] = program.A[:, self._L]
        # P is positive semidefinite, but for rounding. BLAS does half the work for RᵀR.
        R = np.sqrt(np.maximum(p, 0.0) / self._a**2)[:, :, None] * L
        square = np.matmul(np.swapaxes(R, 1, 2), R)
        return np.ascontiguousarray(square[:, self._upper[0], self._upper[1]])


def _pairs(row: Index, counts: NDArray[np.int64]) -> tuple[Index, Index]:
    """All pairs of positions whose rows are the same, each once."""
    order = np.argsort(row, kind="stable")
    left: list[Index] = [np.zeros(0, dtype=np.intp)]
    right: list[Index] = [np.zeros(0, dtype=np.intp)]
    start = 0
    for count in counts[counts > 0]:
        i, j = np.triu_indices(int(count))
        left.append(order[start + i])
        right.append(order[start + j])
        start += int(count)
    return np.concatenate(left), np.concatenate(right)
