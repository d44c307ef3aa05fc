"""The KKT systems at the points of a batch, solved in lanes, without a factor that is kept.

Singular systems, and those that come near to it, are left to `factor`, which tells them and takes
their least-squares solution of smallest norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvxlayers.derivative.balance import row_scales, scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.system import System, factor, in_pieces
from cvxlayers.lanes import Engine
from cvxlayers.program import ConeProgram

__all__ = ["LaneSystem"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Factored:
    """The systems of the instances `rows`, in rows scaled by τ."""

    rows: NDArray[np.intp]
    system: System
    tau: Array | None


class LaneSystem:
    """K at the points (x, z, s).

    Parameters
    ----------
    engine : Engine
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m), all finite.

    Attributes
    ----------
    residual : ndarray
        Shape (B,): of the last solve, relative to the right-hand side; NaN before any.
    """

    def __init__(
        self, engine: Engine, geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
    ):
        self._engine, self._geometry, self._program = engine, geometry, program
        self._x, self._z, self._s = (np.ascontiguousarray(v) for v in (x, z, s))
        self.residual = np.full(len(x), np.nan)
        self._degenerate: NDArray[np.bool_] | None = None
        self._kept: _Factored | None = None

    @property
    def degenerate(self) -> NDArray[np.bool_]:
        """Shape (B,): where K is singular, so that solutions are least squares."""
        if self._degenerate is None:
            self._degenerate = self._solve(np.zeros_like(self._x), None)[3]
        return self._degenerate

    def newton(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v) with P u + Aᵀv = r₁ and (I − D)(A u − r₂) = D v, D = DΠ(s − z)."""
        u, v, self.residual, self._degenerate = self._solve(r1, r2)
        return u, v

    def _solve(self, r1: Array, r2: Array | None) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
        """u, v, the residual and where it is degenerate."""
        u, v, residual = self._engine.newton(self._program, self._x, self._z, self._s, r1, r2)
        degenerate = np.zeros(len(u), dtype=bool)
        rest = np.flatnonzero(~np.isfinite(residual))
        # They can be many: all of an LP's, say.
        for some in in_pieces(self._geometry, rest):
            system, tau = self._factored(some)
            right = None if r2 is None else r2[some]
            if right is not None and tau is not None:
                right = right / tau
            u[some], found = system.newton(r1[some], right)
            v[some] = found if tau is None else found / tau
            residual[some], degenerate[some] = system.residual, system.degenerate
        return u, v, residual, degenerate

    def _factored(self, rows: NDArray[np.intp]) -> tuple[System, Array | None]:
        """The systems of the instances `rows` and their row scales: the last ones, or new."""
        # Another thread may be about to keep others.
        kept = self._kept
        if kept is not None and np.array_equal(rows, kept.rows):
            return kept.system, kept.tau
        program = self._program if len(rows) == len(self._x) else self._program.take(rows)
        z, s = self._z[rows], self._s[rows]
        tau = row_scales(self._geometry, z, s)
        if tau is not None:
            program = scale_rows(self._geometry, program, tau)
            z, s = z * tau, s / tau
        system = factor(self._geometry, program, s - z, s)
        self._kept = _Factored(rows, system, tau)
        return system, tau
