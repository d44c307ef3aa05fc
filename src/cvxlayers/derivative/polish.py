"""Newton steps on the optimality conditions.

    F(x, w) = [ P x + q + Aᵀ(Π(w) − w) ;  A x + Π(w) − b ] = 0,    s = Π(w),  z = Π(w) − w

Membership in the cones and complementarity hold exactly at every (x, w), so the residual of F is
all that is left to judge a point by. The KKT system at the solver's answer gives the step: with
r₁ = −F₁, r₂ = −F₂ it yields dx and dz, and dw = ds − dz = r₂ − A dx − dz.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, fetched, held, largest, namespace, put, take
from cvxlayers.derivative.balance import row_scales, scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.system import System, factor, in_pieces
from cvxlayers.program import ConeProgram

__all__ = ["Polished", "polish", "residual", "residuals"]

# b and q below this size are scaled up.
TINY = 1e-2
# A residual at this level is rounding.
TARGET = 1e-15
# Above this one another factor is worth its cost, …
SMALL = 1e-13
# … and above this one another start.
ACCURATE = 1e-9
# Steps with one factor, and how many factors. The first takes an interior-point solution to machine
# precision, unless its active set is wrong in places; Newton's method then first makes the residual
# worse while it exchanges constraints, so that the best point is kept apart from the current one.
STEPS = 4
FACTORS = 10
PATIENCE = 3
# A dual below this, relative to the largest, may be zero.
UNCLEAR = 1e-2


@dataclass(eq=False)
class Polished:
    """A batch of points, as good as floating point gives them.

    Attributes
    ----------
    x, z, s : array
    residual : ndarray
        Shape (B,), of NumPy: the larger of the primal and the dual residual, each relative to its
        terms.
    system : System or None
        The last factored KKT systems; `System.is_at` tells where they are those at these points.
    """

    x: Array
    z: Array
    s: Array
    residual: NDArray[np.float64]
    system: System | None


def residual(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> tuple[Array, Array, Array]:
    """F₁, F₂ and the scaled residual: the larger of ‖F₁‖/(1 + its largest term) and of
    |F₂ᵢ|/(1 + |sᵢ| + |bᵢ|), row by row, because a bound of 1e20 must not hide the other rows."""
    F1, F2, primal, dual, _ = _conditions(geometry, program, x, z, s)
    return F1, F2, namespace(x).maximum(primal, dual)


def residuals(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> tuple[Array, Array, Array]:
    """The primal and the dual residual, scaled as in `residual`, and the relative duality gap.

    The gap is |xᵀP x + qᵀx + bᵀz| / (1 + the larger of |primal| and |dual objective|).
    """
    _, _, primal, dual, Px = _conditions(geometry, program, x, z, s)
    xp = namespace(x)
    quadratic, linear = xp.sum(Px * x, axis=1), xp.sum(program.q * x, axis=1)
    offset = xp.sum(program.b * z, axis=1)
    size = xp.maximum(xp.abs(0.5 * quadratic + linear), xp.abs(0.5 * quadratic + offset))
    return primal, dual, xp.abs(quadratic + linear + offset) / (1.0 + size)


def _conditions(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> tuple[Array, Array, Array, Array, Array]:
    Px, Atz = geometry.apply_P(program.P, x), geometry.apply_At(program.A, z)
    Ax = geometry.apply_A(program.A, x)
    F1, xp = Px + program.q + Atz, namespace(x)
    F2 = Ax + s - program.b
    terms = xp.maximum(xp.maximum(largest(Px), largest(Atz)), largest(program.q))
    dual = largest(F1) / (1.0 + terms)
    primal = largest(F2 / (1.0 + xp.abs(s) + xp.abs(program.b)))
    return F1, F2, primal, dual, Px


def polish(geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array) -> Polished:
    """Take Newton steps for as long as the residual falls.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): the solver's answers, all finite.
    """
    engine = geometry.engine_for(x)
    if engine is None:
        return _in_units(geometry, program, x, z, s)
    x, z, s = (np.array(v, order="C") for v in (x, z, s))
    point = Polished(x, z, s, engine.polish(program, x, z, s), None)
    # Where that fails, Newton's method needs other starts, or exact least squares.
    rest = np.flatnonzero(~np.isfinite(point.residual))
    for some in in_pieces(geometry, rest):
        part = program if len(some) == len(x) else program.take(some)
        again = _in_units(geometry, part, x[some], z[some], s[some])
        for name in ("x", "z", "s", "residual"):
            getattr(point, name)[some] = getattr(again, name)
    return point


def _in_units(geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array) -> Polished:
    unit = _units(program)
    if unit is None:
        return _balanced(geometry, program, x, z, s)
    # Residuals are absolute below one. Small data are polished in units of their own size; the
    # factored systems are the same, because the derivative of a projection does not depend on it.
    small = replace(program, q=program.q / unit, b=program.b / unit)
    point = _balanced(geometry, small, x / unit, z / unit, s / unit)
    return replace(point, x=point.x * unit, z=point.z * unit, s=point.s * unit)


def _units(program: ConeProgram) -> Array | None:
    """A power of two near the size of b and q where both are small, shape (B, 1); one elsewhere."""
    xp = namespace(program.q)
    size = xp.maximum(largest(program.q), largest(program.b))
    if not bool((size < TINY).any()):
        return None
    size = xp.broadcast_to(size, (program.batch,))
    exponent = xp.round(xp.log2(xp.where((size > 0.0) & (size < TINY), size, 1.0)))
    return (2.0**exponent)[:, None]


def _balanced(geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array) -> Polished:
    tau = row_scales(geometry, z, s)
    if tau is None:
        return _polish(geometry, program, x, z, s)
    point = _polish(geometry, scale_rows(geometry, program, tau), x, z * tau, s / tau)
    point = Polished(point.x, point.z / tau, point.s * tau, point.residual, None)
    failed = np.flatnonzero(~(point.residual <= ACCURATE))
    if len(failed):
        # A block at its apex has no size to go by, and may be better off as it was.
        part = program if len(failed) == len(x) else program.take(failed)
        again = _polish(geometry, part, *(take(v, failed) for v in (x, z, s)))
        better = again.residual < point.residual[failed]
        for name in ("x", "z", "s", "residual"):
            put(getattr(point, name), failed[better], take(getattr(again, name), better))
    return point


def _polish(geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array) -> Polished:
    best, system = _newton(geometry, program, x, s - z, s)
    error = fetched(best.error)
    failed = np.flatnonzero(~(error <= ACCURATE))
    if len(failed):
        part = program if len(failed) == len(x) else program.take(failed)
        x, z, s = (take(v, failed) for v in (x, z, s))
        for start in (_paired_by_size, _released):
            again, other = _newton(geometry, part, take(best.x, failed), start(geometry, z, s), s)
            better = fetched(again.error < take(best.error, failed))
            best.put(failed[better], again.take(better))
            if better.all():
                system = system.replaced(failed, other)
        # Newton's method may have led nowhere from the projected start: what the solver gave is
        # then the best there is.
        given = _error_as_given(geometry, part, x, z, s)
        worse = fetched(~(take(best.error, failed) <= given))
        raw = _State(x, s - z, s, *residual(geometry, part, x, z, s))
        raw.error = given
        best.put(failed[worse], raw.take(worse))
        duals = best.s - best.w
        put(duals, failed[worse], take(z, worse))
        return Polished(best.x, duals, best.s, fetched(best.error), system)
    return Polished(best.x, best.s - best.w, best.s, error, system)


def _newton(
    geometry: Geometry, program: ConeProgram, x: Array, w: Array, near: Array
) -> tuple[_State, System]:
    """Newton's method from (x, w): the best points, and the last factored systems."""
    s = geometry.cone.project(w, near=near)
    best = _State(x, w, s, *residual(geometry, program, x, s - w, s))
    system = factor(geometry, program, w, s)
    current, improved = _advance(geometry, program, best, best, system)
    # Each instance goes on for as long as new factors help it, whatever becomes of the others.
    rows, patience = np.arange(len(x)), np.full(len(x), PATIENCE)
    for _ in range(1, FACTORS):
        patience = np.where(improved, PATIENCE, patience - 1)
        finite = np.isfinite(fetched(current.error))
        going = (fetched(best.error)[rows] > SMALL) & (patience > 0) & finite
        if not going.any():
            break
        rows, patience, current = rows[going], patience[going], current.take(going)
        part = program if len(rows) == len(x) else program.take(rows)
        top = best.take(rows)
        anew = factor(geometry, part, current.w, current.s)
        system = system.replaced(rows, anew)
        current, improved = _advance(geometry, part, current, top, anew)
        best.put(rows, top)
    return best, system


def _paired_by_size(geometry: Geometry, z: Array, s: Array) -> Array:
    """Another w to start from: on a nonnegative row that of s and z vanishes which is smaller
    relative to the largest of its kind. They may be of sizes so different that the error of one
    exceeds the other."""
    w, xp = s - z, namespace(s)
    if len(geometry.nonneg):
        rows = held(geometry.nonneg, s)
        s_n, z_n = s[:, rows], z[:, rows]
        tiny = float(np.finfo(np.float64).tiny)
        relative_s = s_n / (largest(s_n)[:, None] + tiny)
        relative_z = z_n / (largest(z_n)[:, None] + tiny)
        w[:, rows] = xp.where(relative_s > relative_z, xp.abs(s_n), -xp.abs(z_n))
    return w


def _released(geometry: Geometry, z: Array, s: Array) -> Array:
    """A third w: constraints are released whose dual is small. Beside a vertex of more constraints
    than variables an interior-point method leaves slack and dual small alike, and with all of them
    binding the system is singular."""
    w, xp = _paired_by_size(geometry, z, s), namespace(s)
    if len(geometry.nonneg):
        rows = held(geometry.nonneg, s)
        s_n, z_n = xp.abs(s[:, rows]), xp.abs(z[:, rows])
        small = z_n < UNCLEAR * largest(z_n)[:, None]
        w[:, rows] = xp.where(small, s_n, w[:, rows])
    return w


def _error_as_given(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> Array:
    """The residual of a point that need not be complementary, its gap included."""
    error, xp = residual(geometry, program, x, z, s)[2], namespace(x)
    size = xp.abs(xp.sum(program.q * x, axis=1)) + xp.abs(xp.sum(program.b * z, axis=1))
    return xp.maximum(error, xp.abs(xp.sum(s * z, axis=1)) / (1.0 + size))


@dataclass(eq=False)
class _State:
    x: Array
    w: Array
    s: Array
    F1: Array
    F2: Array
    error: Array

    def take(self, rows: NDArray[Any]) -> _State:
        return _State(**{name: take(value, rows) for name, value in vars(self).items()})

    def put(self, rows: NDArray[Any], part: _State) -> None:
        for name, value in vars(part).items():
            put(getattr(self, name), rows, value)

    def put_where(self, mask: Array, other: _State) -> None:
        """Take over the instances of a mask that is where the points are."""
        xp = namespace(mask)
        for name, value in vars(other).items():
            shaped = mask[:, None] if value.ndim == 2 else mask
            setattr(self, name, xp.where(shaped, value, getattr(self, name)))


def _advance(
    geometry: Geometry, program: ConeProgram, current: _State, best: _State, system: System
) -> tuple[_State, NDArray[np.bool_]]:
    """Newton steps with one factor, and which instances they brought a clearly better best point.

    The first step is taken whatever it does to the residual; the others for as long as it falls
    tenfold. `best` is changed in place, `current` is not.
    """
    before, xp = best.error, namespace(best.x)
    current = replace(current)
    pending = xp.ones_like(before) > 0.0
    for step in range(STEPS):
        dx, dz = system.newton(-current.F1, -current.F2)
        x = current.x + dx
        w = current.w - current.F2 - geometry.apply_A(program.A, dx) - dz
        s = geometry.cone.project(w, near=current.s)
        F1, F2, error = residual(geometry, program, x, s - w, s)
        new = _State(x, w, s, F1, F2, error)
        falling = error < current.error
        taken = pending & xp.isfinite(error)
        if step:
            taken = taken & falling
        pending = taken & (error < 0.1 * current.error) & (error > TARGET)
        better = taken & (error < best.error)
        current.put_where(taken, new)
        best.put_where(better, new)
        if not bool(pending.any()):
            break
    return current, fetched(best.error < 0.5 * before)
