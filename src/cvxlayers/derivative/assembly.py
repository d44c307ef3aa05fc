"""The pattern of the sparse KKT matrix, found once, and its values for one instance.

Unknowns are numbered u (n), v̄ (m, all rows), then σ and τ of every long second-order cone. An
instance keeps the rows that are coupled in it, and σ, τ of the cones that it is on the boundary of.

Rotating the rows of a long second-order cone would fill them. There D has the eigenvalue 0 along
the normal e₋, 1 along the ray e₊ and one value λ on the rest, so with μ = λ/(1−λ) its rows of

    Ã u − M v̄ = r₂   are   A u − μ v + μ e₋ σ − e₊ τ = r₂,   σ = e₋ᵀv,   e₊ᵀv = 0

in the cone's own coordinates: two more unknowns and no fill.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cvxlayers.cones import AxisRotation, Spectrum
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.program import ConeProgram

__all__ = ["SparseAssembly"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


class SparseAssembly:
    """Index arrays from the values of P, A, U, λ to those of K.

    Parameters
    ----------
    geometry : Geometry
    spectrum : Spectrum
        Any one of this geometry: only its groups matter.
    """

    def __init__(self, geometry: Geometry, spectrum: Spectrum):
        structure = geometry.structure
        self.geometry, self.n, self.m = geometry, structure.n, structure.m
        n, m, A = self.n, self.m, structure.A
        is_long = [isinstance(U, AxisRotation) for _, U in spectrum.blocks]
        self.short = [k for k, long in enumerate(is_long) if not long]
        self.long = [k for k, long in enumerate(is_long) if long]
        groups = [group.rows for group, _ in spectrum.blocks]

        # Ã = Uᵀ A: entries that A has itself, and sums of entries of U times entries of A.
        self.plain, rows, cols = self._rotated([groups[k] for k in self.short], A)
        # σ and τ of one long cone after the other.
        self.cones = [rows_of_one for k in self.long for rows_of_one in groups[k]]
        lengths = np.array([len(r) for r in self.cones], dtype=np.intp)
        self.extra = 2 * len(self.cones)
        self.size = n + m + self.extra
        arrow = np.concatenate([*self.cones, np.zeros(0, np.intp)]).astype(np.intp)
        sigma = n + m + 2 * np.repeat(np.arange(len(self.cones)), lengths)

        P = geometry.P_full
        every = np.arange(self.size)
        parts: list[tuple[NDArray[Any], NDArray[Any]]] = [
            (P.rows, P.cols),
            (n + rows, cols),
            (cols, n + rows),
            (n + arrow, sigma),
            (sigma, n + arrow),
            (n + arrow, sigma + 1),
            (sigma + 1, n + arrow),
            (every, every),
        ]
        i = np.concatenate([np.asarray(part[0], dtype=np.int64) for part in parts])
        j = np.concatenate([np.asarray(part[1], dtype=np.int64) for part in parts])
        keys, position = np.unique(j * self.size + i, return_inverse=True)
        self.rows, self.cols = keys % self.size, keys // self.size
        ends = np.cumsum([len(part[0]) for part in parts])
        self.places = np.split(position, ends[:-1])
        self.is_diagonal = self.rows == self.cols

    def _rotated(self, blocks: list[Index], A: Any) -> tuple[Index, Index, Index]:
        """Entries of A that stay as they are, and all rows and columns of Ã."""
        turned = np.zeros(self.m, dtype=bool)
        for rows in blocks:
            turned[rows] = True
        plain = np.flatnonzero(~turned[A.rows])
        targets: list[Index] = []
        self.from_A: Index = np.zeros(0, np.intp)
        self.from_U: Index = np.zeros(0, np.intp)
        offset = 0
        for rows in blocks:
            c, q = rows.shape
            place = np.full(self.m, -1, dtype=np.intp)
            place[rows.ravel()] = np.arange(rows.size)
            entries = np.flatnonzero(place[A.rows] >= 0)
            block, inner = np.divmod(place[A.rows[entries]], q)
            # Row k of block b of Ã gets U[b, inner, k] times the entry, for every k.
            k = np.tile(np.arange(q), len(entries))
            block, inner, entries = (np.repeat(v, q) for v in (block, inner, entries))
            targets.append(A.cols[entries].astype(np.int64) * self.m + rows[block, k])
            self.from_A = np.concatenate([self.from_A, entries])
            self.from_U = np.concatenate([self.from_U, offset + (block * q + inner) * q + k])
            offset += c * q * q
        keys = np.concatenate([*targets, np.zeros(0, np.int64)])
        order = np.argsort(keys, kind="stable")
        self.from_A, self.from_U = self.from_A[order], self.from_U[order]
        distinct, self.starts = np.unique(keys[order], return_index=True)
        rows = np.concatenate([A.rows[plain], distinct % self.m]).astype(np.intp)
        cols = np.concatenate([A.cols[plain], distinct // self.m]).astype(np.intp)
        return plain, rows, cols

    def instance(
        self, program: ConeProgram, spectrum: Spectrum, coupled: NDArray[np.bool_], i: int
    ) -> tuple[sp.csc_array, NDArray[np.bool_]]:
        """K of one instance, every diagonal entry stored, and which of those are not negative
        (those of u and τ)."""
        n, m = self.n, self.m
        A = program.A[i if len(program.A) > 1 else 0]
        P = program.P[i if len(program.P) > 1 else 0]
        lam = spectrum.lam[i].copy()
        rotated = A[self.plain]
        if len(self.starts):
            short: list[Any] = [spectrum.blocks[k][1][i] for k in self.short]
            U = np.concatenate([block.ravel() for block in short])
            sums = np.add.reduceat(U[self.from_U] * A[self.from_A], self.starts)
            rotated = np.concatenate([rotated, sums])

        keep = np.ones(self.size, dtype=bool)
        keep[n : n + m] = coupled
        edges, rays, extra = self._arrows(spectrum, lam, keep, i)
        diagonal = np.zeros(self.size)
        inside = np.where(coupled, lam, 0.0)
        diagonal[n : n + m] = -inside / (1.0 - inside)
        diagonal[n + m :] = extra

        data = np.zeros(len(self.rows))
        values = (P[self.geometry.P_entry], rotated, rotated, edges, edges, rays, rays)
        for place, value in zip(self.places, values, strict=False):
            data[place] = value
        data[self.places[-1]] += diagonal

        entries = keep[self.rows] & keep[self.cols]
        number = np.cumsum(keep) - 1
        size = int(number[-1]) + 1 if len(number) else 0
        counts = np.bincount(number[self.cols[entries]], minlength=size)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        indices = number[self.rows[entries]].astype(np.int32)
        K = sp.csc_array((data[entries], indices, indptr), shape=(size, size))
        positive = np.zeros(self.size, dtype=bool)
        positive[:n] = True
        positive[n + m + 1 :: 2] = True
        return K, positive[keep]

    def _arrows(
        self, spectrum: Spectrum, lam: Array, keep: NDArray[np.bool_], i: int
    ) -> tuple[Array, Array, Array]:
        """μ e₋ and −e₊ of all long cones, and the diagonal entries of their σ and τ. Makes λ that
        of the tangent directions in all rows of a cone."""
        edges, rays, extra = [], [], np.zeros(self.extra)
        block = 0
        for k in self.long:
            group, U = spectrum.blocks[k]
            for c, rows in enumerate(group.rows):
                between = lam[rows[1]] == 1.0 and lam[rows[0]] == 0.0
                keep[self.n + self.m + 2 * block : self.n + self.m + 2 * block + 2] = between
                # Not quite one: μ multiplies whole rows here, and must leave room for A in them.
                tangent = min(lam[rows[2]], 1.0 - 1e-8)
                if between:
                    lam[rows] = tangent
                mu = tangent / (1.0 - tangent) if between else 0.0
                edges.append(mu * U.normal[i, c])
                rays.append(-U.ray[i, c])
                extra[2 * block] = -mu
                block += 1
        none = np.zeros(0)
        return np.concatenate([*edges, none]), np.concatenate([*rays, none]), extra
