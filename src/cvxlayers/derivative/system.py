"""The factored KKT system at a batch of points: dense or sparse, in rows of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, copied, fetched, full, is_host, namespace, put, take
from cvxlayers.cones import AxisRotation, Spectrum
from cvxlayers.derivative.dense import DenseSystem, kept_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.sparse import SparseSystem
from cvxlayers.parallel import for_each
from cvxlayers.program import ConeProgram

__all__ = ["System", "factor", "in_pieces", "memory_of_factor"]

# Dense pays off while K is small or full; measured on the problems of benchmarks/.
DENSE_SIZE = 200
DENSE_LIMIT = 1500
DENSE_FILL = 0.15
# Up to this size all instances are padded to the same one: one call costs less than sorting them.
PADDED_SIZE = 60
# Numbers in one chunk of dense systems: its temporaries should fit in the cache.
CHUNK = 500_000


@dataclass(frozen=True, eq=False)
class _Piece:
    """The factored system of some instances; `rows` is None where they are the whole batch."""

    rows: NDArray[np.intp] | None
    factor: DenseSystem | SparseSystem


class System:
    """K at the points w, factored.

    Attributes
    ----------
    spectrum : Spectrum
        λ and U at w.
    pieces : list
        Instances that are factored together.
    """

    def __init__(self, geometry: Geometry, spectrum: Spectrum, pieces: list[_Piece]):
        self.geometry, self.spectrum, self.pieces = geometry, spectrum, pieces

    @property
    def degenerate(self) -> NDArray[np.bool_]:
        """Shape (B,): where K is singular, so that solutions are least squares."""
        return self._gathered("degenerate", False)

    @property
    def residual(self) -> Array:
        """Shape (B,): of the last solve, relative to the right-hand side; NaN before any."""
        return self._gathered("residual", np.nan)

    def _gathered(self, name: str, empty: float) -> NDArray[Any]:
        values = np.full(len(self.spectrum.lam), empty)
        for piece in self.pieces:
            rows = slice(None) if piece.rows is None else piece.rows
            values[rows] = fetched(getattr(piece.factor, name))
        return values

    def is_at(self, w: Array) -> NDArray[np.bool_]:
        """Shape (B,): where the system is the one at w, too. It depends on the signs alone as
        long as no cone is curved."""
        if not self.spectrum.is_identity:
            return np.zeros(len(w), dtype=bool)
        same = self.geometry.cone.spectrum(w).lam == self.spectrum.lam
        return np.asarray(fetched(namespace(w).all(same, axis=1)))

    def replaced(self, rows: NDArray[np.intp], other: System) -> System:
        """A system like this one, with that of the instances `rows` taken from another one."""
        if len(rows) == len(self.spectrum.lam):
            return other
        keep = np.ones(len(self.spectrum.lam), dtype=bool)
        keep[rows] = False
        pieces = []
        for piece in self.pieces:
            mine = np.arange(len(keep)) if piece.rows is None else piece.rows
            kept = np.flatnonzero(keep[mine])
            if len(kept) == len(mine):
                pieces.append(piece)
            elif len(kept):
                pieces.append(_Piece(mine[kept], piece.factor.take(kept)))
        for piece in other.pieces:
            pieces.append(_Piece(rows if piece.rows is None else rows[piece.rows], piece.factor))
        return System(self.geometry, _put(self.spectrum, rows, other.spectrum), pieces)

    def solve(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v̄) of the reduced system, v̄ in the rotated rows."""
        if len(self.pieces) == 1 and self.pieces[0].rows is None:
            return self.pieces[0].factor.solve(r1, r2)
        u, v = full(r1.shape, 0.0, r1), full(self.spectrum.lam.shape, 0.0, r1)

        def solve(j: int) -> None:
            rows = self.pieces[j].rows
            assert rows is not None
            right = None if r2 is None else take(r2, rows)
            part_u, part_v = self.pieces[j].factor.solve(take(r1, rows), right)
            put(u, rows, part_u)
            put(v, rows, part_v)

        _for_each(len(self.pieces), solve, r1)
        return u, v

    def newton(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(dx, dz) with P dx + Aᵀdz = r₁ and A dx + ds = r₂ (None: zero), (ds, dz) tangent to the
        cones' complementarity at w."""
        dx, v = self.solve(r1, None if r2 is None else self.spectrum.rotate(r2))
        return dx, self.spectrum.unrotate(v)


def factor(geometry: Geometry, program: ConeProgram, w: Array, s: Array) -> System:
    """Factor the KKT system at w = s − z."""
    spectrum = geometry.cone.spectrum(w, near=s)
    # An eigenvalue within rounding of one couples a row no more than one that is exactly one.
    spectrum.lam[spectrum.lam > 1.0 - 1e-13] = 1.0
    batch, plan = len(w), _plan(geometry, spectrum)
    pieces: dict[int, _Piece] = {}

    def make(j: int) -> None:
        rows, k, dense = plan[j]
        whole = len(rows) == batch
        part = program if whole else program.take(rows)
        of = spectrum if whole else _take(spectrum, rows)
        made = DenseSystem(geometry, part, of, k) if dense else SparseSystem(geometry, part, of)
        pieces[j] = _Piece(None if whole else rows, made)

    _for_each(len(plan), make, w)
    return System(geometry, spectrum, [pieces[j] for j in range(len(plan))])


def _plan(geometry: Geometry, spectrum: Spectrum) -> list[tuple[NDArray[np.intp], int, bool]]:
    """Which instances are factored together, with how many coupled rows, and whether densely."""
    n, m, batch = geometry.structure.n, geometry.structure.m, len(spectrum.lam)
    if not batch:
        return []
    # Those with about the same number of coupled rows, rounded up by a rule that looks at one
    # instance alone: rounding errors, too, must not depend on the neighbours.
    if n + m <= min(PADDED_SIZE, DENSE_SIZE):
        groups = {m: np.arange(batch)}
    else:
        step = max(8, -(-m // 8))
        counts = fetched(kept_rows(spectrum).sum(1))
        sizes = np.minimum(m, -(-counts // step) * step)
        groups = {int(k): np.flatnonzero(sizes == k) for k in np.unique(sizes)}
    if not is_host(spectrum.lam):
        # All of them at once, padded to the largest: many small matrices are what a device is for.
        return [(np.arange(batch), max(groups), True)]

    plan, fill = [], _fill(geometry, spectrum)
    for k, members in groups.items():
        size = n + k
        dense = size <= DENSE_SIZE or (size <= DENSE_LIMIT and fill > DENSE_FILL * (n + m) ** 2)
        chunk = max(1, CHUNK // max(1, size * (size + m))) if dense else batch
        for start in range(0, len(members), chunk):
            plan.append((members[start : start + chunk], k, dense))
    return plan


def _for_each(count: int, body: Callable[[int], None], like: Array) -> None:
    """The calls, in threads where they are about arrays of the host: a device has its own, and its
    streams are those of one thread."""
    if is_host(like):
        for_each(count, lambda: body)
        return
    for j in range(count):
        body(j)


def memory_of_factor(geometry: Geometry, on_device: bool = False) -> float:
    """Bytes that the factored system of one instance takes, at most, where it is dense; sparse
    ones were measured to take about 500 for each stored entry of K. On a device it is all that a
    batch takes at once while it is factored or solved with: up to nine matrices of the size of K
    were counted."""
    structure = geometry.structure
    size = structure.n + structure.m
    stored = 2 * structure.A.nnz + geometry.P_full.nnz + size
    if on_device:
        return 8.0 * (10 * size**2 + 2 * structure.n * structure.m)
    if size <= DENSE_SIZE or (size <= DENSE_LIMIT and stored > DENSE_FILL * size**2):
        return 8.0 * (2 * size**2 + structure.n * structure.m)
    return 500.0 * stored


def in_pieces(geometry: Geometry, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """The instances `rows`, as many at once as may be factored together."""
    size = max(1, int(geometry.memory // memory_of_factor(geometry)))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _fill(geometry: Geometry, spectrum: Spectrum) -> int:
    """Stored entries of K, roughly."""
    blocks = sum(
        g.rows.size * (3 if isinstance(U, AxisRotation) else g.rows.shape[1])
        for g, U in spectrum.blocks
    )
    return int(2 * geometry.structure.A.nnz + geometry.P_full.nnz + blocks)


def _put(spectrum: Spectrum, rows: NDArray[np.intp], other: Spectrum) -> Spectrum:
    lam = copied(spectrum.lam)
    put(lam, rows, other.lam)
    blocks = []
    for (group, U), (_, V) in zip(spectrum.blocks, other.blocks, strict=True):
        mixed = copied(U.axis if isinstance(U, AxisRotation) else U)
        put(mixed, rows, V.axis if isinstance(V, AxisRotation) else V)
        blocks.append((group, AxisRotation(mixed) if isinstance(U, AxisRotation) else mixed))
    return Spectrum(lam, tuple(blocks))


def _take(spectrum: Spectrum, rows: NDArray[np.intp]) -> Spectrum:
    blocks = tuple(
        (group, AxisRotation(take(U.axis, rows)) if isinstance(U, AxisRotation) else take(U, rows))
        for group, U in spectrum.blocks
    )
    return Spectrum(take(spectrum.lam, rows), blocks)
