"""The derivative at a batch of solutions, first and second.

From F(x, w; P, q, A, b) = 0 (see polish) the adjoint for a gradient (g_x, g_z) is

    K [u; v̄] = [g_x; Uᵀ g_z],   v = U v̄
    dq = −u,  db = v,  dP = −½(u xᵀ + x uᵀ),  dA = −(z uᵀ + v xᵀ)

and the directional derivative along (dP, dq, dA, db)

    r₁ = −(dP x + dq + dAᵀ z),  r₂ = −(dA x − db):   K [dx; Uᵀdz] = [r₁; Uᵀ r₂]

K is symmetric, so one factor serves both. Agrawal, Barratt, Boyd, Busseti & Moursi,
*Differentiating through a cone program*, 2019, derive the same derivative through the homogeneous
embedding, whose Jacobian is neither symmetric nor reduced to the coupled rows.

Differentiating the second line once more, along a second direction whose quantities carry a prime,
with c = D²Π(w)[ẇ, w'] and ẇ = ṡ − ż, ṡ = r₂ − A ẋ:

    r₁' = −(Ṗ x' + P'ẋ + Ȧᵀz' + A'ᵀż) − Aᵀc,  r₂' = −(Ȧ x' + A'ẋ) − c
    K [ẋ'; Uᵀ(ż' − c)] = [r₁'; Uᵀ r₂']

Its adjoint in the first direction, for a gradient (g_x, g_z) whose (u, v) are those above, is that
of a gradient of its own plus what (u, v) and (x', z') give. With h = g_z − v − A u and
κ = D²Π(w)[w', h] (D²Π is symmetric in all three arguments, Π being a gradient):

    K [a; v̄₂] = [−(P'u + A'ᵀv) − Aᵀκ; Uᵀ(−A'u − κ)],   e = U v̄₂ + κ
    dq = −a,  db = e,  dP = −sym(a xᵀ + u x'ᵀ),  dA = −(z aᵀ + e xᵀ) − (z' uᵀ + v x'ᵀ)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, held, is_host, namespace, take, zeros
from cvxlayers.derivative.balance import row_scales, scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.in_lanes import LaneSystem
from cvxlayers.derivative.quality import Quality
from cvxlayers.derivative.strictness import is_strict
from cvxlayers.derivative.system import System, factor
from cvxlayers.lanes import Engine, Outer
from cvxlayers.program import ConeProgram, Pattern, ProblemStructure, ProgramTangent, Wanted

__all__ = ["ImplicitDerivative"]


class ImplicitDerivative:
    """The derivative of (P, q, A, b) ↦ (x, z) at the points (x, z, s) of a batch.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): solutions, all finite.
    system : System, optional
        A factored system in rows as they are; what of it is valid at these points is used.
    """

    def __init__(
        self,
        geometry: Geometry,
        program: ConeProgram,
        x: Array,
        z: Array,
        s: Array,
        system: System | None = None,
    ):
        self.geometry, self.program, self.x, self.z, self.s = geometry, program, x, z, s
        self._nearby = system

    @cached_property
    def _tau(self) -> Array | None:
        """The row scales under which everything is computed but what lanes do, which have scales
        of their own; see `balance`."""
        return row_scales(self.geometry, self.z, self.s)

    @cached_property
    def _z(self) -> Array:
        """z in scaled rows."""
        return self.z if self._tau is None else self.z * self._tau

    @cached_property
    def _s(self) -> Array:
        """s in scaled rows."""
        return self.s if self._tau is None else self.s / self._tau

    @cached_property
    def _program(self) -> ConeProgram:
        """The program in scaled rows."""
        if self._tau is None:
            return self.program
        return scale_rows(self.geometry, self.program, self._tau)

    @cached_property
    def system(self) -> System | LaneSystem:
        """The KKT system, made when it is first needed: in lanes, or factored in scaled rows."""
        engine = self.geometry.engine_for(self.x)
        if engine is not None:
            return LaneSystem(engine, self.geometry, self.program, self.x, self.z, self.s)
        program, w, nearby = self._program, self._s - self._z, self._nearby
        self._nearby = None
        # Decided by the final points alone: whether the polish kept its factors depends on all
        # instances, and on curved cones they are not those at these points anyway.
        if nearby is None or self._tau is not None:
            return factor(self.geometry, program, w, self._s)
        stale = np.flatnonzero(~nearby.is_at(w))
        if not len(stale):
            return nearby
        part = program if len(stale) == len(w) else program.take(stale)
        anew = factor(self.geometry, part, take(w, stale), take(self._s, stale))
        return nearby.replaced(stale, anew)

    def quality(self) -> Quality:
        """Degenerate is where the KKT system is singular, so that its least-squares solution of
        smallest norm is taken, or where complementarity is not strict."""
        strict = is_strict(self.geometry, self.program, self.x, self.z, self.s)
        return Quality(self.system.degenerate | ~strict, self.system.residual)

    def vjp(self, gx: Array, gz: Array | None, wanted: Wanted) -> ProgramTangent:
        """See `cvxlayers.program.Linearization`."""
        if isinstance(self.system, LaneSystem):
            u, v = self.system.newton(gx, gz)
        else:
            u, v = self._newton(gx, self._over_tau(gz))
            v = self._over_tau(v)
        return contract(self.geometry, u, v, self.x, self.z, wanted)

    def jvp(self, tangent: ProgramTangent, wanted: Wanted) -> tuple[Array, Array]:
        """See `cvxlayers.program.Linearization`."""
        along = self._along(tangent, wanted)
        return along.dx, self._over_tau(along.dz)

    def hvp(
        self, gx: Array, gz: Array | None, tangent: ProgramTangent, wanted: Wanted
    ) -> ProgramTangent:
        """See `cvxlayers.program.Linearization`."""
        geometry, gz = self.geometry, self._over_tau(gz)
        along = self._along(tangent, wanted)
        u, v = self._newton(gx, gz)
        right_x = -(geometry.apply_P(along.P, u) + geometry.apply_At(along.A, v))
        right_z = -geometry.apply_A(along.A, u)
        if geometry.cone.elementwise:
            a, e = self._newton(right_x, right_z)
        else:
            h = -(v + geometry.apply_A(self._program.A, u))
            kappa = self._bend(along.dw, h if gz is None else h + gz)
            right_x -= geometry.apply_At(self._program.A, kappa)
            a, e = self._newton(right_x, right_z - kappa)
            e += kappa
        v, e, dz = self._over_tau(v), self._over_tau(e), self._over_tau(along.dz)
        total = contract(geometry, a, e, self.x, self.z, wanted)
        mixed = contract(geometry, u, v, along.dx, dz, wanted)
        return replace(total, P=total.P + mixed.P, A=total.A + mixed.A)

    def jvp2(
        self, tangent: ProgramTangent, other: ProgramTangent, wanted: Wanted
    ) -> tuple[Array, Array]:
        """See `cvxlayers.program.Linearization`."""
        geometry = self.geometry
        one, two = self._along(tangent, wanted), self._along(other, wanted)
        r1 = -(geometry.apply_P(one.P, two.dx) + geometry.apply_At(one.A, two.dz))
        r1 -= geometry.apply_P(two.P, one.dx) + geometry.apply_At(two.A, one.dz)
        r2 = -(geometry.apply_A(one.A, two.dx) + geometry.apply_A(two.A, one.dx))
        if geometry.cone.elementwise:
            dx, dz = self._newton(r1, r2)
        else:
            c = self._bend(one.dw, two.dw)
            dx, dz = self._newton(r1 - geometry.apply_At(self._program.A, c), r2 - c)
            dz = dz + c
        return dx, self._over_tau(dz)

    def _along(self, tangent: ProgramTangent, wanted: Wanted) -> _Direction:
        structure, geometry = self.geometry.structure, self.geometry
        dP = _fill(tangent.P, wanted.P, structure.P.nnz)
        dA = _fill(tangent.A, wanted.A, structure.A.nnz)
        dq = _fill(tangent.q, wanted.q, structure.n)
        db = self._over_tau(_fill(tangent.b, wanted.b, structure.m))
        if self._tau is not None:
            dA = dA / self._tau[:, held(structure.A.rows, dA)]
        r1 = -(geometry.apply_P(dP, self.x) + dq + geometry.apply_At(dA, self._z))
        r2 = db - geometry.apply_A(dA, self.x)
        dx, dz = self._newton(r1, r2)
        return _Direction(self, dP, dA, r2, dx, dz)

    def _newton(self, r1: Array, r2: Array | None) -> tuple[Array, Array]:
        """The solution of the KKT system, r2 and what belongs to it in scaled rows."""
        if self._tau is None or isinstance(self.system, System):
            return self.system.newton(r1, r2)
        u, v = self.system.newton(r1, None if r2 is None else r2 * self._tau)
        return u, v * self._tau

    def _bend(self, h: Array, k: Array) -> Array:
        """D²Π(w)[h, k]."""
        return self.geometry.cone.second(self._s - self._z, h, k)

    def _over_tau(self, v: Any) -> Any:
        return v if v is None or self._tau is None else v / self._tau


@dataclass(frozen=True, eq=False)
class _Direction:
    """P and A of a direction, r₂, and the change (dx, dz) of the points along it, in scaled rows
    of the derivative `of`."""

    of: ImplicitDerivative
    P: Array
    A: Array
    r2: Array
    dx: Array
    dz: Array

    @property
    def dw(self) -> Array:
        """ds − dz with ds = r₂ − A dx."""
        return self.r2 - self.of.geometry.apply_A(self.of._program.A, self.dx) - self.dz


def contract(
    geometry: Geometry, u: Array, v: Array, x: Array, z: Array, wanted: Wanted
) -> ProgramTangent:
    """dP, dq, dA, db from the adjoint (u, v), at the wanted entries only."""
    structure, shared = geometry.structure, wanted.shared
    dq = -_maybe_sum(u[:, held(wanted.q, u)], "q" in shared)
    db = _maybe_sum(v[:, held(wanted.b, v)], "b" in shared)
    if not wanted.A.size + wanted.P.size:
        dP, dA = (zeros((1 if name in shared else len(u), 0), u) for name in "PA")
        return ProgramTangent(dP, dq, dA, db)
    engine = geometry.engine_for(u)
    if engine is not None:
        outer_P, outer_A = _outers_of(structure, engine, wanted)
        dA = outer_A(z, u, v, x, "A" in shared)
        return ProgramTangent(outer_P(u, x, x, u, "P" in shared), dq, dA, db)
    P, A = _places_of(structure, wanted)
    dA = held(A.weight, u) * _outer(A, z, u, v, x, "A" in shared)
    dP = held(P.weight, u) * _outer(P, u, x, x, u, "P" in shared)
    return ProgramTangent(dP, dq, dA, db)


# a bᵀ + c dᵀ at the wanted entries of P and of A, made once for a structure.
_outers: WeakKeyDictionary[ProblemStructure, tuple[Wanted, Outer, Outer]] = WeakKeyDictionary()


def _outers_of(structure: ProblemStructure, engine: Engine, wanted: Wanted) -> tuple[Outer, Outer]:
    made = _outers.get(structure)
    if made is None or made[0].P is not wanted.P or made[0].A is not wanted.A:
        P, A = (engine.outer(m.rows, m.cols, m.weight) for m in _places_of(structure, wanted))
        made = wanted, P, A
        _outers[structure] = made
    return made[1], made[2]


@dataclass(frozen=True, eq=False)
class _Places:
    """Where wanted entries of a matrix of this shape are, and what they are multiplied by."""

    shape: tuple[int, int]
    rows: NDArray[Any]
    cols: NDArray[Any]
    weight: NDArray[np.float64]


# Made once for a structure, as what a device is sent once.
_places: WeakKeyDictionary[ProblemStructure, tuple[Wanted, _Places, _Places]] = WeakKeyDictionary()


def _places_of(structure: ProblemStructure, wanted: Wanted) -> tuple[_Places, _Places]:
    made = _places.get(structure)
    if made is None or made[0].P is not wanted.P or made[0].A is not wanted.A:
        of_P, of_A = (
            _Places(pattern.shape, pattern.rows[some], pattern.cols[some], weight)
            for pattern, some, weight in (
                (structure.P, wanted.P, _weight(structure.P, wanted.P)),
                (structure.A, wanted.A, np.full(len(wanted.A), -1.0)),
            )
        )
        made = wanted, of_P, of_A
        _places[structure] = made
    return made[1], made[2]


def _weight(P: Pattern, entries: NDArray[np.intp]) -> NDArray[np.float64]:
    # A stored off-diagonal entry of P stands for two entries of the matrix.
    return np.where(P.rows[entries] == P.cols[entries], -0.5, -1.0)


def _outer(places: _Places, a: Array, b: Array, c: Array, d: Array, total: bool) -> Array:
    """a bᵀ + c dᵀ at some entries of a matrix, summed over the batch if `total`."""
    batch, count = len(a), len(places.rows)
    if not count:
        return zeros((1 if total else batch, 0), a)
    i, j = held(places.rows, a), held(places.cols, a)
    if not total or batch == 1:
        return a[:, i] * b[:, j] + c[:, i] * d[:, j]
    m, n = places.shape
    if not is_host(a) or m * n <= 8 * count or m * n * batch <= 1_000_000:
        return (a.T @ b + c.T @ d)[i, j][None, :]
    # The sum over the batch without an array of batch × entries.
    out = np.zeros(count)
    for k in range(batch):
        out += a[k, i] * b[k, j] + c[k, i] * d[k, j]
    return out[None, :]


def _maybe_sum(values: Array, total: bool) -> Array:
    return namespace(values).sum(values, axis=0, keepdims=True) if total else values


def _fill(values: Array, entries: NDArray[np.intp], size: int) -> Array:
    if len(entries) == size:
        return values
    full = zeros((len(values), size), values)
    full[:, held(entries, values)] = values
    return full
