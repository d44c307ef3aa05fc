"""The factored KKT system at a batch of points: dense or sparse, in rows of a bounded size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvxlayers.cones import AxisRotation, Spectrum
from cvxlayers.derivative.dense import DenseSystem
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.sparse import SparseSystem
from cvxlayers.program import ConeProgram

__all__ = ["System", "factor"]

Array = NDArray[np.float64]

# Dense pays off while K is small or full; measured on the problems of benchmarks/.
DENSE_SIZE = 60
DENSE_LIMIT = 1500
DENSE_FILL = 0.15
# Bound on the memory of one chunk of dense systems, in numbers.
CHUNK = 8_000_000


class System:
    """K at the points w, factored.

    Attributes
    ----------
    spectrum : Spectrum
        λ and U at w.
    degenerate : ndarray of bool
        Shape (B,).
    """

    def __init__(
        self, geometry: Geometry, spectrum: Spectrum, pieces: list[DenseSystem | SparseSystem]
    ):
        self.geometry, self.spectrum, self.pieces = geometry, spectrum, pieces

    @property
    def degenerate(self) -> NDArray[np.bool_]:
        return np.concatenate([piece.degenerate for piece in self.pieces])

    def is_at(self, w: Array) -> bool:
        """Whether the system is the one at w, too: it depends on the signs alone as long as no
        cone is curved."""
        if not self.spectrum.is_identity:
            return False
        return bool((self.geometry.cone.spectrum(w).lam == self.spectrum.lam).all())

    def solve(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v̄) of the reduced system, v̄ in the rotated rows."""
        if len(self.pieces) == 1:
            return self.pieces[0].solve(r1, r2)
        u, v = [], []
        start = 0
        for piece in self.pieces:
            rows = slice(start, start + len(piece.degenerate))
            solved = piece.solve(r1[rows], None if r2 is None else r2[rows])
            u.append(solved[0])
            v.append(solved[1])
            start = rows.stop
        return np.concatenate(u), np.concatenate(v)

    def newton(self, r1: Array, r2: Array) -> tuple[Array, Array]:
        """(dx, dz) with P dx + Aᵀdz = r₁ and A dx + ds = r₂, (ds, dz) tangent to the cones'
        complementarity at w."""
        dx, v = self.solve(r1, self.spectrum.rotate(r2))
        return dx, self.spectrum.unrotate(v)


def factor(geometry: Geometry, program: ConeProgram, w: Array, s: Array) -> System:
    """Factor the KKT system at w = s − z."""
    spectrum = geometry.cone.spectrum(w, near=s)
    # An eigenvalue within rounding of one couples a row no more than one that is exactly one.
    spectrum.lam[spectrum.lam > 1.0 - 1e-13] = 1.0
    structure = geometry.structure
    batch = len(w)
    size = structure.n + int((spectrum.lam < 1.0).sum(axis=1).max(initial=0))
    filled = 2 * structure.A.nnz + geometry.P_full.nnz
    if not spectrum.is_identity:
        filled += sum(
            g.rows.size * (3 if isinstance(U, AxisRotation) else g.rows.shape[1])
            for g, U in spectrum.blocks
        )
    is_dense = size <= DENSE_SIZE or (
        size <= DENSE_LIMIT and filled > DENSE_FILL * (structure.n + structure.m) ** 2
    )
    if not is_dense:
        return System(geometry, spectrum, [SparseSystem(geometry, program, spectrum)])
    largest = max(1, CHUNK // max(1, size * (size + structure.m)))
    pieces: list[DenseSystem | SparseSystem] = []
    for start in range(0, batch, largest):
        rows = slice(start, min(start + largest, batch))
        whole = rows.stop - rows.start == batch
        pieces.append(
            DenseSystem(
                geometry,
                program if whole else program.take(rows),
                spectrum if whole else _take(spectrum, rows),
            )
        )
    return System(geometry, spectrum, pieces)


def _take(spectrum: Spectrum, rows: slice) -> Spectrum:
    return Spectrum(spectrum.lam[rows], tuple((group, U[rows]) for group, U in spectrum.blocks))
