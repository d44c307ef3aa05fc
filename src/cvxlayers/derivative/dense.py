"""The reduced KKT system of a batch, dense.

Rows of curved cones whose λ is well inside (0, 1) have an M that can be divided by: they are
eliminated, v̄ₑ = Mₑ⁻¹(Ãₑ u − rₑ), so that

    [ P + Ãₑᵀ Mₑ⁻¹ Ãₑ   Ãᵀ ] [u]   [ r₁ + Ãₑᵀ Mₑ⁻¹ rₑ ]
    [ Ã                 −M ] [v̄] = [ r₂               ]

is left, of about n rows for a second-order cone or a semidefinite one of full rank.

The explicit inverse of the equilibrated, slightly regularised matrix serves as the factor: it is
computed for a batch at once (see `inverse`), one product applies it, and refinement against the
matrix itself (not regularised) takes the error of both away.
"""

from __future__ import annotations

import copy

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cvxlayers.arrays import (
    Array,
    counting,
    fetched,
    full,
    held,
    is_host,
    largest,
    namespace,
    put,
    sent,
    take,
    zeros,
)
from cvxlayers.cones import Spectrum
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.inverse import VANISHING, inverse, least_squares
from cvxlayers.program import ConeProgram

__all__ = ["DenseSystem", "kept_rows"]

# Relative to the equilibrated matrix, whose entries are at most one. It only has to keep the
# inverse finite; refinement removes it at the rate REGULARISATION × ‖K⁻¹‖.
REGULARISATION = 1e-11
# Where regularisation changes the inverse by this much, the matrix may be singular.
SINGULAR = 1e-3
REFINEMENTS = 8
TARGET = 1e-13
ACCEPTED = 1e-8
# What rounding leaves of a zero in Uᵀ A, relative to A and to the size of a block.
ROTATION = 4e-16
# What rounding leaves of K y, relative to y. A singular matrix leaves REGULARISATION × y.
ROUNDING = 1e-13


# Rows with a λ from here on are eliminated: their 1/M <= 1e3 costs no more than three digits, which
# refinement of the outer system gives back.
ELIMINATED = 1e-3


class DenseSystem:
    """K and its inverse for every instance, all of size n + k.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    spectrum : Spectrum
    k : int
        Places for coupled rows that are not eliminated, at least as many as any instance has; the
        rest is padding. See `kept_rows`.

    Attributes
    ----------
    degenerate : array of bool
        Shape (B,): where K is singular, so that solutions are minimum-norm least squares.
    residual : array
        Shape (B,): that of the last solve, relative to the right-hand side; NaN before any.
    """

    def __init__(self, geometry: Geometry, program: ConeProgram, spectrum: Spectrum, k: int):
        n, m = geometry.structure.n, geometry.structure.m
        lam, xp = spectrum.lam, namespace(spectrum.lam)
        batch = len(lam)
        coupled = kept_rows(spectrum)
        if k == m:
            self.index = None
            used, lam_used = coupled, lam
        else:
            # Coupled rows first, in order.
            last = xp.astype(~coupled, xp.int8)
            self.index = xp.argsort(last, axis=1, stable=True)[:, :k]
            used = xp.take_along_axis(coupled, self.index, axis=1)
            lam_used = xp.take_along_axis(lam, self.index, axis=1)
        self.used, self.n, self.m, self.k = used, n, m, k
        self.curved = None if spectrum.is_identity else geometry.curved_rows(spectrum)

        K = zeros((batch, n + k, n + k), lam)
        K[:, :n, :n] = geometry.structure.P.dense(program.P, symmetric=True)
        if k or self.curved is not None:
            plain = geometry.structure.A.dense(program.A)
            A = spectrum.rotate_rows(plain)
            if self.curved is not None:
                _drop_rounding(A, plain, spectrum)
        if self.curved is not None:
            inside = lam[:, held(self.curved, lam)]
            inside = xp.where(inside < ELIMINATED, 1.0, inside)
            # Not by A[:, …]: the layout of that, and so the order of sums over it, depends on the
            # size of the batch.
            self.A_e = xp.take(A, held(self.curved, A), axis=1)
            self.W_e = (1.0 - inside) / inside
            K[:, :n, :n] += self.A_e.mT @ (self.W_e[:, :, None] * self.A_e)
        if k:
            if self.index is None:
                rows = A if bool(used.all()) else xp.where(used[:, :, None], A, 0.0)
            else:
                if len(A) == 1:
                    rows = A[0][self.index]
                else:
                    rows = A[counting(batch, A)[:, None], self.index]
                rows = xp.where(used[:, :, None], rows, 0.0)
            K[:, n:, :n] = rows
            K[:, :n, n:] = rows.mT
            with np.errstate(divide="ignore"):
                M = xp.where(used, lam_used / (1.0 - lam_used), 1.0)
            _diagonal(K)[:, n:] = -M
        self.K = K
        self.scale, empty = _equilibrate(K, n)
        # A variable without curvature in no coupled row (the bound of an abs that does not bind,
        # say) is not determined at all: the least-norm u is zero there.
        self.empty = empty if bool(empty.any()) else None
        if self.empty is not None:
            diagonal = _diagonal(K)
            diagonal[...] = xp.where(empty, 1.0, diagonal)
        scaled = K * self.scale[:, :, None] * self.scale[:, None, :]
        diagonal = _diagonal(scaled)
        diagonal[:, :n] += REGULARISATION
        diagonal[:, n:] -= REGULARISATION
        found = inverse(scaled, n, geometry.pairs(k))
        size = largest(largest(found))
        found *= self.scale[:, :, None]
        found *= self.scale[:, None, :]
        self.inverse = found
        suspects = ~(size * REGULARISATION < SINGULAR)
        self.degenerate = xp.zeros_like(suspects)
        self.residual = full((batch,), np.nan, lam)
        if bool(suspects.any()):
            # A singular matrix cannot be solved for a right-hand side taken at random.
            trial = np.random.default_rng(0).standard_normal((1, n + k, 1))
            _, _, solvable = self._refined(sent(trial, lam) / self.scale[..., None])
            self.degenerate = suspects & ~solvable

    def take(self, rows: NDArray[np.intp]) -> DenseSystem:
        """The system of the instances `rows` alone."""
        part = copy.copy(self)
        names = ["K", "inverse", "scale", "used", "degenerate", "residual", "index", "empty"]
        for name in names if self.curved is None else [*names, "A_e", "W_e"]:
            value = getattr(self, name)
            setattr(part, name, None if value is None else take(value, rows))
        return part

    def solve(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v̄) for right-hand sides of shapes (B, n) and (B, m) (None: zero).

        v̄ is zero on the rows that are dropped.
        """
        xp = namespace(r1)
        right = zeros((len(r1), self.n + self.k, 1), r1)
        right[:, : self.n, 0] = r1
        if r2 is not None and self.curved is not None:
            r_e = r2[:, held(self.curved, r2)]
            right[:, : self.n, 0] += _transposed(self.A_e, self.W_e * r_e)
        if r2 is not None and self.k:
            picked = r2 if self.index is None else xp.take_along_axis(r2, self.index, axis=1)
            right[:, self.n :, 0] = xp.where(self.used, picked, 0.0)
        if self.empty is not None:
            unsolvable = (right[:, :, 0] != 0.0) & self.empty
            self.degenerate = self.degenerate | xp.any(unsolvable, axis=1)
            right = xp.where(self.empty[:, :, None], 0.0, right)
        y, self.residual, solved = self._refined(right)
        self.degenerate = self.degenerate | ~solved
        rows = np.flatnonzero(fetched(self.degenerate))
        if len(rows):
            y, self.residual = xp.asarray(y, copy=True), xp.asarray(self.residual, copy=True)
            K, b, scale = (take(a, rows) for a in (self.K, right[:, :, 0], self.scale))
            best = _least_squares(K, b)
            missed = largest(scale * (b - (K @ best[:, :, None])[:, :, 0]))
            bound = largest(scale * b)
            put(y, rows, best[:, :, None])
            put(self.residual, rows, missed / xp.where(bound > 0.0, bound, 1.0))
        u = y[:, : self.n, 0]
        v = zeros((len(r1), self.m), r1)
        if self.k:
            found = xp.where(self.used, y[:, self.n :, 0], 0.0)
            if self.index is None:
                v = found
            else:
                v[counting(len(v), v)[:, None], self.index] = found
        if self.curved is not None:
            v_e = (self.A_e @ u[:, :, None])[:, :, 0]
            if r2 is not None:
                v_e -= r_e
            v[:, held(self.curved, v)] += self.W_e * v_e
        return u, v

    def _refined(self, right: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Solutions, their relative residuals, and which of them are solutions."""
        y = self.inverse @ right
        # Residuals are judged in the equilibrated metric, where all rows weigh the same.
        weight, xp = self.scale[:, :, None], namespace(right)
        bound = _height(weight * right)
        residual = right - self.K @ y
        error = _height(weight * residual)
        pending = error > TARGET * bound
        for _ in range(REFINEMENTS):
            if not bool(pending.any()):
                break
            trial = y + self.inverse @ residual
            trial_residual = right - self.K @ trial
            trial_error = _height(weight * trial_residual)
            better = pending & (trial_error < error)
            y = xp.where(better[:, None, None], trial, y)
            residual = xp.where(better[:, None, None], trial_residual, residual)
            error = xp.where(better, trial_error, error)
            pending = better & (error > TARGET * bound)
        size = _height(y / weight)
        relative = error / xp.where(bound > 0.0, bound, 1.0)
        return y, relative, (error <= ACCEPTED * bound) | (error <= ROUNDING * size)


def _drop_rounding(rotated: Array, plain: Array, spectrum: Spectrum) -> None:
    """Make what rounding left of a zero in Uᵀ A one, in place.

    A variable without curvature that moves along the ray of a second-order cone alone would
    otherwise get a curvature of 1e-32, and the unit of the objective would be judged by it.
    """
    xp = namespace(plain)
    for group, _ in spectrum.blocks:
        count, q = group.rows.shape
        rows = held(group.flat, plain)
        before, after = (
            xp.take(A, rows, axis=1).reshape(len(A), count, q, A.shape[2]) for A in (plain, rotated)
        )
        size = xp.max(xp.abs(before), axis=2, keepdims=True)
        after = xp.where(xp.abs(after) <= ROTATION * q * size, 0.0, after)
        rotated[:, rows] = after.reshape(len(rotated), count * q, -1)


def kept_rows(spectrum: Spectrum) -> Array:
    """Which rows a `DenseSystem` has to keep, shape (B, m)."""
    return spectrum.lam < ELIMINATED


def _transposed(A: Array, v: Array) -> Array:
    """Aᵀ v over a batch."""
    return (v[:, None, :] @ A)[:, 0, :]


def _height(columns: Array) -> Array:
    """The largest entry of every column, shape (B, n, 1)."""
    return largest(columns[:, :, 0])


def _diagonal(matrices: Array) -> Array:
    """A view of the diagonals of contiguous matrices."""
    batch, n, _ = matrices.shape
    return matrices.reshape(batch, n * n)[:, :: n + 1]


def _equilibrate(K: Array, n: int) -> tuple[Array, Array]:
    """Symmetric scaling that brings the largest entry of every row near one (Ruiz, 2001), and
    which rows are empty.

    It starts from P of size one: the unit of the objective scales u against v̄, and Ruiz's
    iteration alone does not find that out.
    """
    xp = namespace(K)
    magnitude = xp.abs(K)
    size = largest(magnitude)
    empty = size == 0.0
    scale = xp.ones_like(size)
    if 0 < n < K.shape[1]:
        mean = xp.mean(largest(magnitude[:, :n, :n]), axis=1, keepdims=True)
        root = xp.sqrt(xp.where(mean > 0.0, mean, 1.0))
        scale[:, :n] /= root
        scale[:, n:] *= root
    for _ in range(3):
        size = largest(magnitude * scale[:, None, :]) * scale
        scale /= xp.sqrt(xp.where(empty, 1.0, size))
    return scale, empty


def _least_squares(K: Array, right: Array) -> Array:
    """Minimum-norm least-squares solutions, instance by instance on the host."""
    if not is_host(K):
        return least_squares(K, right)
    best = np.full_like(right, np.nan)
    for i in np.flatnonzero(np.isfinite(K).all(axis=(1, 2))):
        best[i] = scipy.linalg.lstsq(K[i], right[i], cond=VANISHING, lapack_driver="gelsy")[0]
    return best
