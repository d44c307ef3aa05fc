"""Unknowns that one equality defines, taken out of the linear system before it is factored.

Canonicalization writes ‖L x − b‖² as yᵀy with rows y = L x − b. In general, where a variable y_j
is in no row but one, an equality

    a y_j + Lᵢ x = bᵢ      (a fixed, not zero),

and P has nothing for it but a diagonal entry p, the pair of it and the dual of its row can go from
K u = r, whose rows they are in are p u_y + a v = r_y and L u + a u_y = r_E:

    (P + M) u + … = r − Lᵀ(r_y/a − W r_E),     M = LᵀW L,  W = p/a²,
    u_y = (r_E − L u)/a,     v = (r_y − p u_y)/a.

A factorisation would find M, too, once in every iteration. Here it is found once for an instance,
by BLAS where L is dense. Residuals are those of the whole system, so that refinement takes away
what the squares in M lose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvxlayers.program import ConeProgram, ProblemStructure

__all__ = ["Elimination", "find_elimination"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]

# A coefficient below this is not divided by.
LEAST = 1e-3
# From this density on, L is multiplied as a dense matrix.
DENSE = 0.25
# The products that M is summed from, where L is sparse, and entries of M beside those of P and A.
MOST_PRODUCTS = 100_000
MOST_FILL = 1.0


def find_elimination(structure: ProblemStructure) -> Elimination | None:
    """What can be taken out with profit, if there is anything."""
    if structure.fixed_A is None or not structure.P.nnz:
        return None
    entries = _pivots(structure)
    if not len(entries):
        return None
    elimination = Elimination(structure, entries)
    return elimination if elimination.pays else None


def _pivots(structure: ProblemStructure) -> Index:
    """Where A stores the coefficients a, in the order of rows."""
    A, P, fixed = structure.A, structure.P, structure.fixed_A
    assert fixed is not None
    single = np.bincount(A.cols, minlength=structure.n) == 1
    off = P.rows != P.cols
    single[P.rows[off]] = single[P.cols[off]] = False
    with np.errstate(invalid="ignore"):
        usable = single[A.cols] & (A.rows < structure.dims.zero) & (np.abs(fixed) >= LEAST)
    entries = np.flatnonzero(usable)
    # One for each row.
    _, first = np.unique(A.rows[entries], return_index=True)
    return entries[first]


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
        self._dense = len(self._L) > 1 and len(self._L) >= DENSE * area
        fill = len(self._touched) ** 2 // 2 if self._dense else products
        self.pays = fill <= MOST_FILL * (P.nnz + A.nnz)
        self.pays &= self._dense or products <= MOST_PRODUCTS
        if not self.pays:
            return
        if self._dense:
            upper = np.triu_indices(len(self._touched))
            self.i, self.j = (self._touched[k] for k in upper)
            self._upper = upper
            return
        left, right = _pairs(self._row, counts)
        keys = np.stack([self._col[left], self._col[right]])
        keys = keys.max(axis=0) * structure.n + keys.min(axis=0)
        order = np.argsort(keys, kind="stable")
        self._left, self._right = left[order], right[order]
        distinct, self._starts = np.unique(keys[order], return_index=True)
        self.i, self.j = distinct % structure.n, distinct // structure.n

    def products(self, program: ConeProgram) -> Array:
        """M, shape (B or 1, number of entries)."""
        p = np.where(self.p_entries >= 0, program.P[:, self.p_entries], 0.0)
        W, L = p / self._a**2, program.A[:, self._L]
        if self._dense:
            full = np.zeros((len(L), len(self._a), len(self._touched)))
            full[:, self._row, self._place] = L
            square = np.matmul(np.swapaxes(full, 1, 2), W[:, :, None] * full)
            return np.ascontiguousarray(square[:, self._upper[0], self._upper[1]])
        if not len(self.i):
            return np.zeros((1, 0))
        terms = W[:, self._row[self._left]] * L[:, self._left] * L[:, self._right]
        return np.ascontiguousarray(np.add.reduceat(terms, self._starts, axis=1))


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
