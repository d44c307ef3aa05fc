"""The derivative at a batch of solutions.

From F(x, w; P, q, A, b) = 0 (see polish) the adjoint for a gradient (g_x, g_z) is

    K [u; v̄] = [g_x; Uᵀ g_z],   v = U v̄
    dq = −u,  db = v,  dP = −½(u xᵀ + x uᵀ),  dA = −(z uᵀ + v xᵀ)

and the directional derivative along (dP, dq, dA, db)

    r₁ = −(dP x + dq + dAᵀ z),  r₂ = −(dA x − db):   K [dx; Uᵀdz] = [r₁; Uᵀ r₂]

K is symmetric, so one factor serves both. Agrawal, Barratt, Boyd, Busseti & Moursi,
*Differentiating through a cone program*, 2019, derive the same derivative through the homogeneous
embedding, whose Jacobian is neither symmetric nor reduced to the coupled rows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cvxlayers.derivative.balance import scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.system import System, factor
from cvxlayers.program import ConeProgram, Pattern, ProgramTangent, Wanted

__all__ = ["ImplicitDerivative"]

Array = NDArray[np.float64]


class ImplicitDerivative:
    """The derivative of (P, q, A, b) ↦ (x, z) at the points (x, z, s) of a batch.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): solutions, all finite.
    system : System, optional
        A factored system; what of it is valid at these points is used.
    tau : ndarray, optional
        Row scales under which the system is factored (see `balance`), shape (B, m).
    """

    def __init__(
        self,
        geometry: Geometry,
        program: ConeProgram,
        x: Array,
        z: Array,
        s: Array,
        system: System | None = None,
        tau: Array | None = None,
    ):
        self.geometry, self.program = geometry, program
        self.x, self.z, self.s = x, z, s
        self._nearby, self._tau = system, tau

    @cached_property
    def system(self) -> System:
        """The factored KKT system, made when it is first needed."""
        program, z, s, tau = self.program, self.z, self.s, self._tau
        if tau is not None:
            program, z, s = scale_rows(self.geometry, program, tau), z * tau, s / tau
        w, nearby = s - z, self._nearby
        self._nearby = None
        if nearby is None:
            return factor(self.geometry, program, w, s)
        stale = np.flatnonzero(~nearby.is_at(w))
        if not len(stale):
            return nearby
        part = program if len(stale) == len(w) else program.take(stale)
        return nearby.replaced(stale, factor(self.geometry, part, w[stale], s[stale]))

    def vjp(self, gx: Array, gz: Array | None, wanted: Wanted) -> ProgramTangent:
        """See `cvxlayers.program.Linearization`."""
        system = self.system
        spectrum = system.spectrum
        tau = self._tau
        if gz is not None:
            gz = spectrum.rotate(gz if tau is None else gz / tau)
        u, v = system.solve(gx, gz)
        v = spectrum.unrotate(v)
        if tau is not None:
            v = v / tau
        return contract(self.geometry, u, v, self.x, self.z, wanted)

    def jvp(self, tangent: ProgramTangent, wanted: Wanted) -> tuple[Array, Array]:
        """See `cvxlayers.program.Linearization`."""
        structure, geometry = self.geometry.structure, self.geometry
        dP = _fill(tangent.P, wanted.P, structure.P.nnz)
        dA = _fill(tangent.A, wanted.A, structure.A.nnz)
        dq = _fill(tangent.q, wanted.q, structure.n)
        db = _fill(tangent.b, wanted.b, structure.m)
        r1 = -(geometry.apply_P(dP, self.x) + dq + geometry.apply_At(dA, self.z))
        r2 = db - geometry.apply_A(dA, self.x)
        if self._tau is None:
            return self.system.newton(r1, r2)
        dx, dz = self.system.newton(r1, r2 / self._tau)
        return dx, dz / self._tau


def contract(
    geometry: Geometry, u: Array, v: Array, x: Array, z: Array, wanted: Wanted
) -> ProgramTangent:
    """dP, dq, dA, db from the adjoint (u, v), at the wanted entries only."""
    structure, shared = geometry.structure, wanted.shared
    P, A = structure.P, structure.A
    dq = -_maybe_sum(u[:, wanted.q], "q" in shared)
    db = _maybe_sum(v[:, wanted.b], "b" in shared)
    dA = -_outer(A, wanted.A, z, u, v, x, "A" in shared)
    # A stored off-diagonal entry of P stands for two entries of the matrix.
    weight = np.where(P.rows[wanted.P] == P.cols[wanted.P], -0.5, -1.0)
    dP = weight * _outer(P, wanted.P, u, x, x, u, "P" in shared)
    return ProgramTangent(dP, dq, dA, db)


def _outer(
    pattern: Pattern, entries: NDArray[np.intp], a: Array, b: Array, c: Array, d: Array, total: bool
) -> Array:
    """a bᵀ + c dᵀ at stored entries of a pattern, summed over the batch if `total`."""
    batch = len(a)
    if not len(entries):
        return np.zeros((1 if total else batch, 0))
    i, j = pattern.rows[entries], pattern.cols[entries]
    if not total or batch == 1:
        return a[:, i] * b[:, j] + c[:, i] * d[:, j]
    m, n = pattern.shape
    if m * n <= 8 * len(entries) or m * n * batch <= 1_000_000:
        return (a.T @ b + c.T @ d)[i, j][None, :]
    # The sum over the batch without an array of batch × entries.
    out = np.zeros(len(entries))
    for k in range(batch):
        out += a[k, i] * b[k, j] + c[k, i] * d[k, j]
    return out[None, :]


def _maybe_sum(values: Array, total: bool) -> Array:
    return values.sum(axis=0, keepdims=True) if total else values


def _fill(values: Array, entries: NDArray[np.intp], size: int) -> Array:
    if len(entries) == size:
        return values
    full = np.zeros((len(values), size))
    full[:, entries] = values
    return full
