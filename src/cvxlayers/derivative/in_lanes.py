"""The KKT systems at the points of a batch, solved in lanes, without a factor that is kept.

Singular systems, and those that come near to it, are left to `factor`, which tells them and takes
their least-squares solution of smallest norm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvxlayers.derivative.balance import row_scales, scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.system import System, factor, memory_of_factor
from cvxlayers.lanes import Engine
from cvxlayers.program import ConeProgram

__all__ = ["LaneSystem"]

Array = NDArray[np.float64]

# Bytes that factors kept here may take.
MOST_MEMORY = 1e9


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
        # The instances that were left to `factor`, their systems and their row scales.
        self._left = np.zeros(0, dtype=np.intp)
        self._system: System | None = None
        self._tau: Array | None = None

    @property
    def degenerate(self) -> NDArray[np.bool_]:
        """Shape (B,): where K is singular, so that solutions are least squares."""
        if self._degenerate is None:
            residual = self.residual
            self.newton(np.zeros_like(self._x), None)
            self.residual = residual
        assert self._degenerate is not None
        return self._degenerate

    def newton(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v) with P u + Aᵀv = r₁ and (I − D)(A u − r₂) = D v, D = DΠ(s − z)."""
        u, v, residual = self._engine.newton(self._program, self._x, self._z, self._s, r1, r2)
        degenerate = np.zeros(len(u), dtype=bool)
        rest = np.flatnonzero(~np.isfinite(residual))
        if len(rest):
            # In pieces, as they can be many: all of an LP's, say.
            size = max(1, int(MOST_MEMORY // memory_of_factor(self._geometry)))
            for start in range(0, len(rest), size):
                some = rest[start : start + size]
                self._factor(some)
                assert self._system is not None
                right = None if r2 is None else r2[some]
                if right is not None and self._tau is not None:
                    right = right / self._tau
                u[some], found = self._system.newton(r1[some], right)
                v[some] = found if self._tau is None else found / self._tau
                residual[some] = self._system.residual
                degenerate[some] = self._system.degenerate
        self.residual, self._degenerate = residual, degenerate
        return u, v

    def _factor(self, rows: NDArray[np.intp]) -> None:
        if self._system is not None and np.array_equal(rows, self._left):
            return
        program = self._program if len(rows) == len(self._x) else self._program.take(rows)
        z, s = self._z[rows], self._s[rows]
        self._tau = row_scales(self._geometry, z, s)
        if self._tau is not None:
            program = scale_rows(self._geometry, program, self._tau)
            z, s = z * self._tau, s / self._tau
        self._left, self._system = rows, factor(self._geometry, program, s - z, s)
