"""The reduced KKT system of a batch, dense.

Rows of curved cones whose λ is well inside (0, 1) have an M that can be divided by: they are
eliminated, v̄ₑ = Mₑ⁻¹(Ãₑ u − rₑ), so that

    [ P + Ãₑᵀ Mₑ⁻¹ Ãₑ   Ãᵀ ] [u]   [ r₁ + Ãₑᵀ Mₑ⁻¹ rₑ ]
    [ Ã                 −M ] [v̄] = [ r₂               ]

is left, of about n rows for a second-order cone or a semidefinite one of full rank.

The explicit inverse of the equilibrated, slightly regularised matrix serves as the factor: LAPACK
computes it for a batch in one call, one product applies it, and refinement against the matrix
itself (not regularised) takes the error of both away.
"""

from __future__ import annotations

import copy

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from cvxlayers.cones import Spectrum
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.program import ConeProgram

__all__ = ["DenseSystem"]

Array = NDArray[np.float64]

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
    degenerate : ndarray of bool
        Shape (B,): where K is singular, so that solutions are minimum-norm least squares.
    residual : ndarray
        Shape (B,): that of the last solve, relative to the right-hand side; NaN before any.
    """

    def __init__(self, geometry: Geometry, program: ConeProgram, spectrum: Spectrum, k: int):
        n, m = geometry.structure.n, geometry.structure.m
        lam = spectrum.lam
        batch = len(lam)
        coupled = kept_rows(spectrum)
        if k == m:
            self.index = None
            used, lam_used = coupled, lam
        else:
            # Coupled rows first, in order.
            self.index = np.argsort(~coupled, axis=1, kind="stable")[:, :k]
            used = np.take_along_axis(coupled, self.index, axis=1)
            lam_used = np.take_along_axis(lam, self.index, axis=1)
        self.used, self.n, self.m, self.k = used, n, m, k
        self.curved = None if spectrum.is_identity else _curved_rows(spectrum)

        K = np.zeros((batch, n + k, n + k))
        K[:, :n, :n] = geometry.dense_P(program.P)
        if k or self.curved is not None:
            plain = geometry.dense_A(program.A)
            A = spectrum.rotate_rows(plain)
            if self.curved is not None:
                _drop_rounding(A, plain, spectrum)
        if self.curved is not None:
            inside = lam[:, self.curved]
            inside = np.where(inside < ELIMINATED, 1.0, inside)
            # Not by A[:, …]: the layout of that, and so the order of sums over it, depends on the
            # size of the batch.
            self.A_e = np.take(A, self.curved, axis=1)
            self.W_e = (1.0 - inside) / inside
            K[:, :n, :n] += np.swapaxes(self.A_e, 1, 2) @ (self.W_e[:, :, None] * self.A_e)
        if k:
            if self.index is None:
                rows = A * used[:, :, None] if not used.all() else A
            else:
                if len(A) == 1:
                    rows = A[0][self.index]
                else:
                    rows = A[np.arange(batch)[:, None], self.index]
                rows[~used] = 0.0
            K[:, n:, :n] = rows
            K[:, :n, n:] = np.swapaxes(rows, 1, 2)
            diagonal = np.arange(n, n + k)
            with np.errstate(divide="ignore"):
                M = np.where(used, lam_used / (1.0 - lam_used), 1.0)
            K[:, diagonal, diagonal] = -M
        self.K = K
        self.scale, empty = _equilibrate(K, n)
        # A variable without curvature in no coupled row (the bound of an abs that does not bind,
        # say) is not determined at all: the least-norm u is zero there.
        self.empty = empty if empty.any() else None
        if self.empty is not None:
            K[empty[:, :, None] & np.eye(n + k, dtype=bool)] = 1.0
        scaled = K * self.scale[:, :, None] * self.scale[:, None, :]
        diagonal = np.arange(n + k)
        scaled[:, diagonal, diagonal] += np.where(diagonal < n, REGULARISATION, -REGULARISATION)
        inverse = np.asarray(np.linalg.inv(scaled), dtype=np.float64)
        size = np.abs(inverse).max(axis=(1, 2)) if n + k else np.zeros(batch)
        inverse *= self.scale[:, :, None]
        inverse *= self.scale[:, None, :]
        self.inverse = inverse
        self.degenerate = np.zeros(batch, dtype=bool)
        self.residual = np.full(batch, np.nan)
        suspects = ~(size * REGULARISATION < SINGULAR)
        if suspects.any():
            # A singular matrix cannot be solved for a right-hand side taken at random.
            trial = np.random.default_rng(0).standard_normal((1, n + k, 1)) / self.scale[..., None]
            _, _, solvable = self._refined(trial)
            self.degenerate = suspects & ~solvable

    def take(self, rows: NDArray[np.intp]) -> DenseSystem:
        """The system of the instances `rows` alone."""
        part = copy.copy(self)
        names = ["K", "inverse", "scale", "used", "degenerate", "residual", "index", "empty"]
        for name in names if self.curved is None else [*names, "A_e", "W_e"]:
            value = getattr(self, name)
            setattr(part, name, None if value is None else value[rows])
        return part

    def solve(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """(u, v̄) for right-hand sides of shapes (B, n) and (B, m) (None: zero).

        v̄ is zero on the rows that are dropped.
        """
        right = np.zeros((len(r1), self.n + self.k, 1))
        right[:, : self.n, 0] = r1
        if r2 is not None and self.curved is not None:
            r_e = r2[:, self.curved]
            right[:, : self.n, 0] += _transposed(self.A_e, self.W_e * r_e)
        if r2 is not None and self.k:
            picked = r2 if self.index is None else np.take_along_axis(r2, self.index, axis=1)
            right[:, self.n :, 0] = np.where(self.used, picked, 0.0)
        if self.empty is not None:
            self.degenerate |= ((right[:, :, 0] != 0.0) & self.empty).any(axis=1)
            right[self.empty] = 0.0
        y, self.residual, solved = self._refined(right)
        self.degenerate |= ~solved
        for i in np.flatnonzero(self.degenerate):
            y[i, :, 0] = _least_squares(self.K[i], right[i, :, 0])
            missed = np.abs(self.scale[i] * (right[i, :, 0] - self.K[i] @ y[i, :, 0])).max()
            bound = np.abs(self.scale[i] * right[i, :, 0]).max()
            self.residual[i] = missed / bound if bound else 0.0
        u = y[:, : self.n, 0]
        v = np.zeros((len(r1), self.m))
        if self.k:
            found = np.where(self.used, y[:, self.n :, 0], 0.0)
            if self.index is None:
                v = found
            else:
                np.put_along_axis(v, self.index, found, axis=1)
        if self.curved is not None:
            v_e = (self.A_e @ u[:, :, None])[:, :, 0]
            if r2 is not None:
                v_e -= r_e
            v[:, self.curved] += self.W_e * v_e
        return u, v

    def _refined(self, right: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Solutions, their relative residuals, and which of them are solutions."""
        y = self.inverse @ right
        # Residuals are judged in the equilibrated metric, where all rows weigh the same.
        weight = self.scale[:, :, None]
        bound = _height(weight * right)
        residual = right - self.K @ y
        error = _height(weight * residual)
        pending = error > TARGET * bound
        for _ in range(REFINEMENTS):
            if not pending.any():
                break
            trial = y + self.inverse @ residual
            trial_residual = right - self.K @ trial
            trial_error = _height(weight * trial_residual)
            better = pending & (trial_error < error)
            y = np.where(better[:, None, None], trial, y)
            residual = np.where(better[:, None, None], trial_residual, residual)
            error = np.where(better, trial_error, error)
            pending = better & (error > TARGET * bound)
        size = _height(y / weight)
        relative = error / np.where(bound > 0.0, bound, 1.0)
        return y, relative, (error <= ACCEPTED * bound) | (error <= ROUNDING * size)


def _drop_rounding(rotated: Array, plain: Array, spectrum: Spectrum) -> None:
    """Make what rounding left of a zero in Uᵀ A one, in place.

    A variable without curvature that moves along the ray of a second-order cone alone would
    otherwise get a curvature of 1e-32, and the unit of the objective would be judged by it.
    """
    for group, _ in spectrum.blocks:
        size = np.abs(np.take(plain, group.rows, axis=1)).max(axis=2, keepdims=True)
        block = np.take(rotated, group.rows, axis=1)
        block[np.abs(block) <= ROTATION * group.rows.shape[1] * size] = 0.0
        rotated[:, group.rows] = block


def kept_rows(spectrum: Spectrum) -> NDArray[np.bool_]:
    """Which rows a `DenseSystem` has to keep, shape (B, m)."""
    return spectrum.lam < ELIMINATED


def _curved_rows(spectrum: Spectrum) -> NDArray[np.intp]:
    return np.sort(np.concatenate([group.rows.ravel() for group, _ in spectrum.blocks]))


def _transposed(A: Array, v: Array) -> Array:
    """Aᵀ v over a batch."""
    return (v[:, None, :] @ A)[:, 0, :]


def _height(vectors: Array) -> Array:
    return np.abs(vectors).max(axis=(1, 2), initial=0.0)


def _equilibrate(K: Array, n: int) -> tuple[Array, NDArray[np.bool_]]:
    """Symmetric scaling that brings the largest entry of every row near one (Ruiz, 2001), and
    which rows are empty.

    It starts from P of size one: the unit of the objective scales u against v̄, and Ruiz's
    iteration alone does not find that out.
    """
    magnitude = np.abs(K)
    largest = magnitude.max(axis=2, initial=0.0)
    empty = largest == 0.0
    scale = np.ones_like(largest)
    if 0 < n < K.shape[1]:
        size = magnitude[:, :n, :n].max(axis=2).mean(axis=1, keepdims=True)
        root = np.sqrt(np.where(size > 0.0, size, 1.0))
        scale[:, :n] /= root
        scale[:, n:] *= root
    for _ in range(3):
        np.abs(K, out=magnitude)
        magnitude *= scale[:, None, :]
        largest = magnitude.max(axis=2, initial=0.0) * scale
        scale /= np.sqrt(np.where(empty, 1.0, largest))
    return scale, empty


def _least_squares(K: Array, right: Array) -> Array:
    """Minimum-norm least-squares solution."""
    if not np.isfinite(K).all():
        return np.full_like(right, np.nan)
    return scipy.linalg.lstsq(K, right, cond=1e-11, lapack_driver="gelsy")[0]
