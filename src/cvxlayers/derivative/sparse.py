"""The reduced KKT system of a batch, sparse: one SuperLU factorisation per instance.

Rotating the rows of a long second-order cone would fill them. There D has the eigenvalue 0 along
the normal e₋, 1 along the ray e₊ and one value λ on the rest, so with μ = λ/(1−λ) its rows of

    Ã u − M v̄ = r₂   are   A u − μ v + μ e₋ σ − e₊ τ = r₂,   σ = e₋ᵀv,   e₊ᵀv = 0

in the cone's own coordinates: two more unknowns and no fill.
"""

from __future__ import annotations

import copy

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from numpy.typing import NDArray

from cvxlayers.cones import AxisRotation, Group, Spectrum
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.parallel import for_each
from cvxlayers.program import ConeProgram

__all__ = ["SparseSystem"]

Array = NDArray[np.float64]

# Relative to the equilibrated matrix. It makes K quasi-definite, so that it can be factored in
# any symmetric order without pivoting (Vanderbei 1995); refinement takes its effect away.
REGULARISATION = 1e-9
# Where regularisation changes a solution by this much, the matrix may be singular.
SINGULAR = 1e-4
REFINEMENTS = 20
LEAST_SQUARES = 2000  # iterations
TARGET = 1e-13
ACCEPTED = 1e-8


class SparseSystem:
    """K and its factors for every instance.

    Attributes
    ----------
    degenerate : ndarray of bool
        Shape (B,): where K is singular, so that solutions are minimum-norm least squares.
    """

    def __init__(self, geometry: Geometry, program: ConeProgram, spectrum: Spectrum):
        self.n, self.m = geometry.structure.n, geometry.structure.m
        batch = len(spectrum.lam)
        self.degenerate = np.zeros(batch, dtype=bool)
        self.coupled = spectrum.lam < 1.0
        self.factors: list[_Factor] = [None] * batch  # type: ignore[list-item]
        # Long cones stay in their own coordinates in here.
        self.long = Spectrum(
            spectrum.lam, tuple((g, U) for g, U in spectrum.blocks if isinstance(U, AxisRotation))
        )
        short = [(g, U) for g, U in spectrum.blocks if not isinstance(U, AxisRotation)]
        for group, _ in self.long.blocks:
            rows = group.rows
            self.coupled[:, rows] = self.coupled[:, rows].any(axis=2, keepdims=True)

        def body(i: int) -> None:
            P = geometry.P_full.matrix(_row(program.P, i)[geometry.P_entry])
            A = geometry.structure.A.matrix(_row(program.A, i))
            if short:
                A = _block_diagonal(short, i, self.m).T @ A
            lam = spectrum.lam[i].copy()
            arrows = []
            for group, U in self.long.blocks:
                for k, rows in enumerate(group.rows):
                    if lam[rows[1]] == 1.0 and lam[rows[0]] == 0.0:  # between K and its polar
                        lam[rows] = lam[rows[2]]
                        arrows.append((rows, U.normal[i, k], U.ray[i, k]))
            rows = np.flatnonzero(self.coupled[i])
            mu = np.zeros(self.m)
            mu[rows] = lam[rows] / (1.0 - lam[rows])
            E, F = _arrows(arrows, mu, self.m)
            self.factors[i] = _Factor(P, A.tocsr()[rows], mu[rows], E[rows], F)

        for_each(batch, lambda: body)

    def take(self, rows: NDArray[np.intp]) -> SparseSystem:
        """The system of the instances `rows` alone."""
        part = copy.copy(self)
        part.coupled, part.degenerate = self.coupled[rows], self.degenerate[rows]
        part.factors = [self.factors[i] for i in rows]
        part.long = Spectrum(
            self.long.lam[rows], tuple((group, U[rows]) for group, U in self.long.blocks)
        )
        return part

    def solve(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v̄) for right-hand sides of shapes (B, n) and (B, m) (None: zero)."""
        u, v = np.empty((len(r1), self.n)), np.zeros((len(r1), self.m))
        own = None if r2 is None else self.long.unrotate(r2)

        def body(i: int) -> None:
            rows = self.coupled[i]
            k = int(rows.sum())
            right = np.zeros(self.factors[i].size)
            right[: self.n] = r1[i]
            if own is not None:
                right[self.n : self.n + k] = own[i, rows]
            y, regular = self.factors[i].solve(right)
            u[i], v[i, rows] = y[: self.n], y[self.n : self.n + k]
            self.degenerate[i] |= not regular

        for_each(len(r1), lambda: body)
        return u, self.long.rotate(v)


class _Factor:
    def __init__(
        self, P: sp.csc_array, A: sp.csr_array, M: Array, E: sp.csr_array, F: Array
    ) -> None:
        minus_M = -sp.diags_array(M)
        if len(F):
            blocks = [[P, A.T, None], [A, minus_M, E], [None, E.T, sp.diags_array(F)]]
        else:
            blocks = [[P, A.T], [A, minus_M]]
        self.K = sp.block_array(blocks, format="csc")
        self.K.eliminate_zeros()
        # A variable without curvature in no coupled row (the bound of an abs that does not bind,
        # say) is not determined at all: the least-norm u is zero there.
        self.empty = np.diff(self.K.indptr) == 0
        if self.empty.any():
            self.K = sp.csc_array(self.K + sp.diags_array(self.empty.astype(np.float64)))
        self.size = self.K.shape[0]
        self.scale = _equilibrate(self.K)
        scaled = self.K.copy()
        scaled.data *= self.scale[scaled.indices] * np.repeat(self.scale, np.diff(scaled.indptr))
        # τ is the multiplier of e₊ᵀv = 0, and so of the sign of u.
        sign = np.concatenate([np.ones(A.shape[1]), -np.ones(A.shape[0]), np.where(F < 0, -1, 1)])
        self.regularised = sp.csc_array(scaled + sp.diags_array(REGULARISATION * sign))
        self.lu = _factor(self.regularised, symmetric=True)
        self.is_pivoted = self.lu is None
        if self.lu is None:
            self.lu = _factor(self.regularised, symmetric=False)
        # A singular matrix answers a right-hand side taken at random with a huge vector, and
        # refinement cannot make a solution of it.
        trial = np.random.default_rng(0).standard_normal(self.size) / self.scale
        size = np.abs(self._apply(trial) / self.scale).max(initial=0.0)
        self.is_regular = size * REGULARISATION < SINGULAR or self._solve(trial)[1]

    def solve(self, right: Array) -> tuple[Array, bool]:
        """The solution, and whether it is the only one."""
        if right[self.empty].any():
            self.is_regular = False
            right = np.where(self.empty, 0.0, right)
        y, solved = self._solve(right)
        if solved and self.is_regular:
            return y, True
        # Its iterates stay in the range of K, so they tend to the least-norm solution. Fong &
        # Saunders, LSMR, 2011.
        least = scipy.sparse.linalg.lsmr(
            self.K, right, atol=1e-14, btol=1e-14, conlim=0.0, maxiter=LEAST_SQUARES
        )[0]
        if solved and not self._height(right - self.K @ least) <= ACCEPTED * self._height(right):
            return y, False
        return least, False

    def _solve(self, right: Array) -> tuple[Array, bool]:
        y, solved = self._refined(right)
        if not (solved or self.is_pivoted):
            # Without pivoting growth can defeat refinement; with it the fill is larger.
            lu = _factor(self.regularised, symmetric=False)
            self.is_pivoted = True
            if lu is not None:
                self.lu = lu
                return self._refined(right)
        return y, solved

    def _refined(self, right: Array) -> tuple[Array, bool]:
        if self.lu is None:
            return right, False
        bound = self._height(right)
        y = self._apply(right)
        residual = right - self.K @ y
        error = self._height(residual)
        for _ in range(REFINEMENTS):
            if error <= TARGET * bound:
                break
            trial = y + self._apply(residual)
            trial_residual = right - self.K @ trial
            trial_error = self._height(trial_residual)
            if not trial_error < error:
                break
            y, residual, error = trial, trial_residual, trial_error
        return y, bool(error <= ACCEPTED * bound)

    def _height(self, vector: Array) -> float:
        return float(np.abs(self.scale * vector).max(initial=0.0))

    def _apply(self, right: Array) -> Array:
        if self.lu is None:
            return np.full_like(right, np.inf)
        return self.scale * self.lu.solve(self.scale * right)


def _factor(matrix: sp.csc_array, symmetric: bool) -> scipy.sparse.linalg.SuperLU | None:
    try:
        if symmetric:
            return scipy.sparse.linalg.splu(
                matrix,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        return scipy.sparse.linalg.splu(matrix, permc_spec="COLAMD")
    except RuntimeError:  # SuperLU's way to say that a pivot is exactly zero
        return None


def _equilibrate(K: sp.csc_array) -> Array:
    """Symmetric scaling that brings the largest entry of every row near one (Ruiz, 2001)."""
    size = K.shape[0]
    scale = np.ones(size)
    magnitude = np.abs(K.data)
    filled = np.flatnonzero(np.diff(K.indptr))
    if not len(magnitude):
        return scale
    for _ in range(3):
        # K is symmetric: columns serve as rows.
        largest = np.zeros(size)
        largest[filled] = np.maximum.reduceat(magnitude * scale[K.indices], K.indptr[filled])
        largest *= scale
        scale = scale / np.sqrt(np.where(largest > 0, largest, 1.0))
    return scale


def _arrows(
    arrows: list[tuple[NDArray[np.intp], Array, Array]], mu: Array, m: int
) -> tuple[sp.csr_array, Array]:
    """Columns of σ and τ in the rows of the cones, and the diagonal that belongs to them."""
    if not arrows:
        return sp.csr_array((m, 0)), np.zeros(0)
    # A diagonal of exactly zero would be taken for the sign of τ where μ = 0.
    weights = [max(mu[rows[0]], np.finfo(float).tiny) for rows, _, _ in arrows]
    data = [
        part
        for (_, normal, ray), weight in zip(arrows, weights, strict=True)
        for part in (weight * normal, -ray)
    ]
    rows = [rows for rows, _, _ in arrows for _ in range(2)]
    lengths = np.array([len(part) for part in data])
    place = (np.concatenate(rows), np.repeat(np.arange(len(data)), lengths))
    E = sp.csr_array((np.concatenate(data), place), shape=(m, len(data)))
    return E, np.ravel([[-weight, 0.0] for weight in weights])


def _block_diagonal(blocks: list[tuple[Group, Array]], i: int, m: int) -> sp.csc_array:
    """U of one instance as a sparse matrix."""
    identity = np.ones(m, dtype=bool)
    rows, cols, data = [], [], []
    for group, U in blocks:
        place = group.rows
        c, q = place.shape
        identity[place] = False
        rows.append(np.broadcast_to(place[:, :, None], (c, q, q)).ravel())
        cols.append(np.broadcast_to(place[:, None, :], (c, q, q)).ravel())
        data.append(U[i].ravel())
    plain = np.flatnonzero(identity)
    entries = np.concatenate([*data, np.ones(len(plain))])
    index = (np.concatenate([*rows, plain]), np.concatenate([*cols, plain]))
    return sp.csc_array((entries, index), shape=(m, m))


def _row(values: Array, i: int) -> Array:
    return values[i if len(values) > 1 else 0]
