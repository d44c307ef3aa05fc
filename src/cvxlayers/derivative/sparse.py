"""The reduced KKT system of a batch, sparse: one SuperLU factorisation per instance."""

from __future__ import annotations

import copy

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
from numpy.typing import NDArray

from cvxlayers.cones import AxisRotation, Spectrum
from cvxlayers.derivative.assembly import SparseAssembly
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
# What rounding leaves of K y, relative to y. A singular matrix leaves REGULARISATION × y.
ROUNDING = 1e-13


class SparseSystem:
    """K and its factors for every instance.

    Attributes
    ----------
    degenerate : ndarray of bool
        Shape (B,): where K is singular, so that solutions are minimum-norm least squares.
    residual : ndarray
        Shape (B,): that of the last solve, relative to the right-hand side; NaN before any.
    """

    def __init__(self, geometry: Geometry, program: ConeProgram, spectrum: Spectrum):
        self.n, self.m = geometry.structure.n, geometry.structure.m
        batch = len(spectrum.lam)
        self.degenerate = np.zeros(batch, dtype=bool)
        self.residual = np.full(batch, np.nan)
        self.coupled = spectrum.lam < 1.0
        self.factors: list[_Factor] = [None] * batch  # type: ignore[list-item]
        # Long cones stay in their own coordinates in here.
        self.long = Spectrum(
            spectrum.lam, tuple((g, U) for g, U in spectrum.blocks if isinstance(U, AxisRotation))
        )
        for group, _ in self.long.blocks:
            rows = group.rows
            self.coupled[:, rows] = self.coupled[:, rows].any(axis=2, keepdims=True)
        assembly = geometry.sparse_assembly
        if assembly is None:
            assembly = geometry.sparse_assembly = SparseAssembly(geometry, spectrum)

        def body(i: int) -> None:
            K, positive = assembly.instance(program, spectrum, self.coupled[i], i)
            self.factors[i] = _Factor(K, positive)
            self.degenerate[i] = not self.factors[i].is_regular

        for_each(batch, lambda: body)

    def take(self, rows: NDArray[np.intp]) -> SparseSystem:
        """The system of the instances `rows` alone."""
        part = copy.copy(self)
        part.coupled, part.degenerate = self.coupled[rows], self.degenerate[rows]
        part.residual = self.residual[rows]
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
            self.residual[i] = self.factors[i].residual(y, right)

        for_each(len(r1), lambda: body)
        return u, self.long.rotate(v)


class _Factor:
    def __init__(self, K: sp.csc_array, positive: NDArray[np.bool_]) -> None:
        self.K, self.size = K, K.shape[0]
        columns = np.repeat(np.arange(self.size), np.diff(K.indptr))
        diagonal = np.flatnonzero(K.indices == columns)
        self.scale, self.empty = _equilibrate(K)
        # A variable without curvature in no coupled row (the bound of an abs that does not bind,
        # say) is not determined at all: the least-norm u is zero there.
        K.data[diagonal[self.empty]] = 1.0
        data = K.data * self.scale[K.indices] * self.scale[columns]
        data[diagonal] += np.where(positive, REGULARISATION, -REGULARISATION)
        self.regularised = sp.csc_array((data, K.indices, K.indptr), shape=K.shape)
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

    def residual(self, y: Array, right: Array) -> float:
        """By how much y misses K y = right, relative to the right-hand side."""
        bound = self._height(right)
        return self._height(right - self.K @ y) / bound if bound else 0.0

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
        size = float(np.abs(y / self.scale).max(initial=0.0))
        return y, bool(error <= ACCEPTED * bound or error <= ROUNDING * size)

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


def _equilibrate(K: sp.csc_array) -> tuple[Array, NDArray[np.bool_]]:
    """Symmetric scaling that brings the largest entry of every row near one (Ruiz, 2001), and
    which rows are empty. K is symmetric and has every diagonal entry stored."""
    magnitude, starts = np.abs(K.data), K.indptr[:-1]
    scale = np.ones(K.shape[0])
    empty = np.zeros(K.shape[0], dtype=bool)
    if not len(magnitude):
        return scale, empty
    for _ in range(3):
        # Columns serve as rows.
        largest = np.maximum.reduceat(magnitude * scale[K.indices], starts) * scale
        empty = largest == 0.0
        scale /= np.sqrt(np.where(empty, 1.0, largest))
    return scale, empty
