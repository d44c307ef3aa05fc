"""Our conic form for solvers that want rows: P whole, and both matrices compressed by rows.

* P is the whole symmetric matrix, not its upper triangle.
* P and A are compressed sparse row, with the columns of every row sorted.
* A second-order cone of one row is an inequality: it joins the inequalities.
* A row aᵀx + s = ∞, s >= 0 says nothing. It becomes 0ᵀx + s = 1 in that instance, with the
  multiplier 0 (see `bounded`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.program import ConeDims, ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.scs_form import INFINITY

__all__ = ["CsrForm", "CsrPattern", "bounded", "restore_bounds"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CsrPattern:
    """Sparsity pattern of a matrix by rows, and where its values come from.

    Attributes
    ----------
    indptr, indices : ndarray of int
    source : ndarray of int
        The stored value of our pattern that every entry has, shape (nnz,).
    """

    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    source: NDArray[np.intp]


class CsrForm:
    """The permutation of rows and of stored values, made once for a structure.

    Parameters
    ----------
    structure : ProblemStructure
    large : int, optional
        Second-order cones of more rows than this come before the others, if given.

    Attributes
    ----------
    dims : ConeDims
        The cones in the order of the solver's rows: as ours, without second-order cones of one row.
    order : ndarray of int
        Our row for every row of the solver's, shape (m,).
    position : ndarray of int
        The solver's row for every row of ours, shape (m,).
    P, A : CsrPattern
    """

    def __init__(self, structure: ProblemStructure, large: int | None = None):
        self.order, self.dims = _order(structure.dims, large)
        self.position = np.empty_like(self.order)
        self.position[self.order] = np.arange(len(self.order))
        P, A = structure.P, structure.A
        mirrored = np.flatnonzero(P.rows != P.cols)
        self.P = _by_rows(
            np.concatenate([P.rows, P.cols[mirrored]]),
            np.concatenate([P.cols, P.rows[mirrored]]),
            np.concatenate([np.arange(P.nnz), mirrored]),
            structure.n,
        )
        self.A = _by_rows(self.position[A.rows], A.cols, np.arange(A.nnz), structure.m)


def _by_rows(
    rows: NDArray[Any], cols: NDArray[Any], source: NDArray[np.intp], count: int
) -> CsrPattern:
    order = np.lexsort((cols, rows))
    indptr = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=count), out=indptr[1:])
    return CsrPattern(indptr, cols[order].astype(np.int32), source[order])


def _order(dims: ConeDims, large: int | None) -> tuple[NDArray[np.intp], ConeDims]:
    """Our row for every row of the solver's, and the cones in its order."""
    first = dims.zero + dims.nonneg
    starts = first + np.cumsum([0, *dims.soc])
    single = [k for k, size in enumerate(dims.soc) if size == 1]
    cones = [k for k, size in enumerate(dims.soc) if size > 1]
    if large is not None:
        cones.sort(key=lambda k: dims.soc[k] <= large)
    parts = [np.arange(first)]
    parts += [np.arange(starts[k], starts[k + 1]) for k in [*single, *cones]]
    parts.append(np.arange(starts[-1], dims.m))
    soc = tuple(dims.soc[k] for k in cones)
    return np.concatenate(parts), replace(dims, nonneg=dims.nonneg + len(single), soc=soc)


def bounded(program: ConeProgram) -> tuple[ConeProgram, NDArray[np.bool_] | None]:
    """The program without infinite bounds, and the rows that had one: shape (B or 1, m), or None.

    Their stored entries stay, as zeros: the pattern is the batch's.
    """
    dims = program.structure.dims
    rows = slice(dims.zero, dims.zero + dims.nonneg)
    if not (program.b[:, rows] >= INFINITY).any():
        return program, None
    infinite = np.zeros(program.b.shape, dtype=bool)
    infinite[:, rows] = program.b[:, rows] >= INFINITY
    A = np.where(infinite[:, program.structure.A.rows], 0.0, program.A)
    return replace(program, A=A, b=np.where(infinite, 1.0, program.b)), infinite


def restore_bounds(solution: ConeSolution, infinite: NDArray[np.bool_] | None) -> None:
    """Multiplier and slack of infinite bounds, in place, where a point was found."""
    if infinite is None:
        return
    rows = infinite & ~np.isnan(solution.s)
    solution.z[rows], solution.s[rows] = 0.0, INFINITY
