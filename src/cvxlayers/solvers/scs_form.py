"""Our conic form in SCS's convention, which diffcp shares, and back.

Both have the same cones in the same order, with the same exponential and power cones
(https://www.cvxgrp.org/scs/api/cones.html). Three things differ:

* A PSD block is the *lower* triangle, column-major, there: a permutation of the rows, made once.
* SCS wants at least one row. A program without constraints gets the row 0ᵀx + s = 1, s >= 0.
* SCS cannot take an infinite bound. A row aᵀx + s = ∞, s >= 0 says nothing, so that it becomes
  0ᵀx + s = 1 in that instance, with the multiplier 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.program import ConeProgram, Pattern, ProblemStructure
from cvxlayers.status import Status

__all__ = ["INFINITY", "REDUCED_EPS", "ScsForm", "ScsInstance", "status_of"]

Array = NDArray[np.float64]

#: A bound from here on is infinite. Clarabel's own threshold, so that solvers agree.
INFINITY = 1e20

#: A point with residuals up to this is "almost solved". Clarabel's reduced tolerance.
REDUCED_EPS = 5e-5

_STATUS = {
    1: Status.SOLVED,
    -1: Status.DUAL_INFEASIBLE,
    -2: Status.PRIMAL_INFEASIBLE,
    -3: Status.NUMERICAL_ERROR,  # indeterminate
    -4: Status.NUMERICAL_ERROR,  # failed
    -5: Status.INTERRUPTED,
}


@dataclass(frozen=True, eq=False)
class ScsInstance:
    """One instance in SCS's convention; `P` is the upper triangle."""

    P: sp.csc_matrix
    q: Array
    A: sp.csc_matrix
    b: Array
    cones: Mapping[str, Any]

    @property
    def is_finite(self) -> bool:
        """Whether all data are finite numbers: SCS cannot be asked otherwise."""
        return all(bool(np.isfinite(a).all()) for a in (self.P.data, self.q, self.A.data, self.b))


class ScsForm:
    """The permutation of rows and of stored values, made once for a structure.

    Attributes
    ----------
    order : ndarray of int
        Our row for every row of SCS's, shape (m,).
    position : ndarray of int
        SCS's row for every row of ours, shape (m,).
    cones : dict
        SCS's cone dictionary.

    Raises
    ------
    UnsupportedProblemError
        The program has no variables.
    """

    def __init__(self, structure: ProblemStructure, solver: str):
        if structure.n == 0:
            message = f"{solver} does not take a problem without variables; choose CLARABEL"
            raise UnsupportedProblemError(message)
        dims = structure.dims
        self.structure = structure
        self.order = _row_order(structure)
        self.position = np.empty_like(self.order)
        self.position[self.order] = np.arange(len(self.order))
        self.cones: dict[str, Any] = {
            "z": dims.zero,
            "l": dims.nonneg if structure.m else 1,
            "q": list(dims.soc),
            "s": list(dims.psd),
            "ep": dims.exp,
        }
        if dims.pow:
            self.cones["p"] = [float(alpha) for alpha in dims.pow]
        rows = self.position[structure.A.rows]
        self._values = np.lexsort((rows, structure.A.cols))
        self._A = Pattern(
            (max(structure.m, 1), structure.n),
            rows[self._values].astype(np.int32),
            structure.A.indptr,
        )

    def instance(self, program: ConeProgram, i: int) -> ScsInstance:
        """Instance i of a batch. Its arrays are copies."""
        P, q, A, b = (
            a[i if len(a) > 1 else 0] for a in (program.P, program.q, program.A, program.b)
        )
        A, b = A[self._values], b[self.order]
        unbounded = self.unbounded_rows(program, i)
        if len(unbounded):
            at = self.position[unbounded]
            A[np.isin(self._A.rows, at)] = 0.0
            b[at] = 1.0
        if not self.structure.m:
            b = np.ones(1)
        # diffcp takes sparse matrices only in their older form, not as sparse arrays.
        return ScsInstance(
            P=sp.csc_matrix(self.structure.P.matrix(P.copy())),
            q=q.copy(),
            A=sp.csc_matrix(self._A.matrix(A)),
            b=b,
            cones=self.cones,
        )

    def unbounded_rows(self, program: ConeProgram, i: int) -> NDArray[np.intp]:
        """The inequality rows, in our order, whose bound is infinite."""
        dims = self.structure.dims
        rows = slice(dims.zero, dims.zero + dims.nonneg)
        b = program.b[i if len(program.b) > 1 else 0, rows]
        return np.flatnonzero(b >= INFINITY) + dims.zero

    def restore(self, program: ConeProgram, i: int, y: Array, s: Array) -> tuple[Array, Array]:
        """Dual z and slack s in our order of rows, from SCS's y and s."""
        if not self.structure.m:
            return np.empty(0), np.empty(0)
        z, s = np.asarray(y)[self.position], np.asarray(s)[self.position]
        unbounded = self.unbounded_rows(program, i)
        z[unbounded], s[unbounded] = 0.0, INFINITY
        return z, s


def _row_order(structure: ProblemStructure) -> NDArray[np.intp]:
    """Our row for every row of SCS's."""
    dims = structure.dims
    order = np.arange(structure.m)
    start = dims.zero + dims.nonneg + sum(dims.soc)
    for k in dims.psd:
        # Entry (i, j), i >= j, of the lower triangle, column by column, is entry (j, i) of the
        # upper one, whose columns 0 … i-1 hold i(i+1)/2 entries.
        j, i = np.triu_indices(k)
        order[start : start + len(i)] = start + i * (i + 1) // 2 + j
        start += len(i)
    return order


def status_of(result: Mapping[str, Any], data: ScsInstance) -> Status:
    """What an answer of SCS amounts to.

    SCS says "inaccurate" where it stopped at a limit, whatever it has by then: an infeasible
    problem stopped early can be "solved (inaccurate)". We call it almost solved if its residuals
    are small, in SCS's own measure (https://www.cvxgrp.org/scs/algorithm/#termination), and name
    the limit otherwise. An inaccurate certificate proves nothing.
    """
    info = result["info"]
    value = int(info["status_val"])
    if value in _STATUS:
        return _STATUS[value]
    if value == 2 and _almost_solved(result, data):
        return Status.ALMOST_SOLVED
    if "time_limit" in info["status"]:
        return Status.TIME_LIMIT
    if "max_iters" in info["status"]:
        return Status.MAX_ITERATIONS
    return Status.NUMERICAL_ERROR


def _almost_solved(result: Mapping[str, Any], data: ScsInstance) -> bool:
    info = result["info"]
    primal = max(_norm(data.b), _norm(result["s"]), _norm(data.A @ result["x"]))
    Px = data.P @ result["x"] + sp.triu(data.P, 1).T @ result["x"]
    dual = max(_norm(data.q), _norm(Px), _norm(data.A.T @ result["y"]))
    gap = max(abs(info["pobj"]), abs(info["dobj"]))
    residuals = (info["res_pri"], primal), (info["res_dual"], dual), (info["gap"], gap)
    return all(residual <= REDUCED_EPS * (1 + scale) for residual, scale in residuals)


def _norm(v: Array) -> float:
    return float(np.abs(v).max(initial=0.0))
