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

from cvxlayers.derivative.balance import row_scales, scale_rows
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.system import System, factor, in_pieces
from cvxlayers.program import ConeProgram

__all__ = ["Polished", "polish", "residual", "residuals"]

Array = NDArray[np.float64]

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
    x, z, s : ndarray
    residual : ndarray
        Shape (B,): the larger of the primal and the dual residual, each relative to its terms.
    system : System or None
        The last factored KKT systems; `System.is_at` tells where they are those at these points.
    """

    x: Array
    z: Array
    s: Array
    residual: Array
    system: System | None


def residual(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> tuple[Array, Array, Array]:
    """F₁, F₂ and the scaled residual: the larger of ‖F₁‖/(1 + its largest term) and of
    |F₂ᵢ|/(1 + |sᵢ| + |bᵢ|), row by row, because a bound of 1e20 must not hide the other rows."""
    F1, F2, primal, dual, _ = _conditions(geometry, program, x, z, s)
    return F1, F2, np.maximum(primal, dual)


def residuals(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> tuple[Array, Array, Array]:
    """The primal and the dual residual, scaled as in `residual`, and the relative duality gap.

    The gap is |xᵀP x + qᵀx + bᵀz| / (1 + the larger of |primal| and |dual objective|).
    """
    _, _, primal, dual, Px = _conditions(geometry, program, x, z, s)
    quadratic, linear = (Px * x).sum(axis=1), (program.q * x).sum(axis=1)
    offset = (program.b * z).sum(axis=1)
    largest = np.maximum(np.abs(0.5 * quadratic + linear), np.abs(0.5 * quadratic + offset))
    return primal, dual, np.abs(quadratic + linear + offset) / (1.0 + largest)


def _conditions(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> tuple[Array, Array, Array, Array, Array]:
    Px, Atz = geometry.apply_P(program.P, x), geometry.apply_At(program.A, z)
    Ax = geometry.apply_A(program.A, x)
    F1 = Px + program.q + Atz
    F2 = Ax + s - program.b
    dual = _norm(F1) / (1.0 + np.maximum(np.maximum(_norm(Px), _norm(Atz)), _norm(program.q)))
    primal = _norm(F2 / (1.0 + np.abs(s) + np.abs(program.b)))
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
    engine = geometry.engine
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
    size = np.maximum(_norm(program.q), _norm(program.b))
    if not (size < TINY).any():
        return None
    size = np.broadcast_to(size, program.batch)
    exponent = np.round(np.log2(np.where((size > 0.0) & (size < TINY), size, 1.0)))
    return np.asarray(2.0**exponent)[:, None]


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
        again = _polish(geometry, part, x[failed], z[failed], s[failed])
        better = again.residual < point.residual[failed]
        for name in ("x", "z", "s", "residual"):
            getattr(point, name)[failed[better]] = getattr(again, name)[better]
    return point


def _polish(geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array) -> Polished:
    # Points are improved in place, and x is needed as it was given.
    best, system = _newton(geometry, program, x.copy(), s - z, s)
    failed = np.flatnonzero(~(best.error <= ACCURATE))
    if len(failed):
        part = program if len(failed) == len(x) else program.take(failed)
        x, z, s = x[failed], z[failed], s[failed]
        for start in (_paired_by_size, _released):
            again, other = _newton(geometry, part, best.x[failed], start(geometry, z, s), s)
            better = again.error < best.error[failed]
            best.put(failed[better], again.take(better))
            if better.all():
                system = system.replaced(failed, other)
        # Newton's method may have led nowhere from the projected start: what the solver gave is
        # then the best there is.
        error = _error_as_given(geometry, part, x, z, s)
        worse = ~(best.error[failed] <= error)
        raw = _State(x, s - z, s, *residual(geometry, part, x, z, s))
        raw.error = error
        best.put(failed[worse], raw.take(worse))
        duals = best.s - best.w
        duals[failed[worse]] = z[worse]
        return Polished(best.x, duals, best.s, best.error, system)
    return Polished(best.x, best.s - best.w, best.s, best.error, system)


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
        going = (best.error[rows] > SMALL) & (patience > 0) & np.isfinite(current.error)
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
    w = s - z
    rows = geometry.nonneg
    if len(rows):
        s_n, z_n = s[:, rows], z[:, rows]
        tiny = np.finfo(np.float64).tiny
        relative_s = s_n / (np.abs(s_n).max(axis=1, keepdims=True) + tiny)
        relative_z = z_n / (np.abs(z_n).max(axis=1, keepdims=True) + tiny)
        w[:, rows] = np.where(relative_s > relative_z, np.abs(s_n), -np.abs(z_n))
    return w


def _released(geometry: Geometry, z: Array, s: Array) -> Array:
    """A third w: constraints are released whose dual is small. Beside a vertex of more constraints
    than variables an interior-point method leaves slack and dual small alike, and with all of them
    binding the system is singular."""
    w = _paired_by_size(geometry, z, s)
    rows = geometry.nonneg
    if len(rows):
        s_n, z_n = np.abs(s[:, rows]), np.abs(z[:, rows])
        small = z_n < UNCLEAR * z_n.max(axis=1, keepdims=True)
        w[:, rows] = np.where(small, s_n, w[:, rows])
    return w


def _error_as_given(
    geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array
) -> Array:
    """The residual of a point that need not be complementary, its gap included."""
    error = residual(geometry, program, x, z, s)[2]
    size = np.abs((program.q * x).sum(axis=1)) + np.abs((program.b * z).sum(axis=1))
    return np.maximum(error, np.abs((s * z).sum(axis=1)) / (1.0 + size))


@dataclass(eq=False)
class _State:
    x: Array
    w: Array
    s: Array
    F1: Array
    F2: Array
    error: Array

    def take(self, rows: NDArray[Any]) -> _State:
        return _State(**{name: value[rows] for name, value in vars(self).items()})

    def put(self, rows: NDArray[Any], part: _State) -> None:
        for name, value in vars(part).items():
            getattr(self, name)[rows] = value

    def copy(self) -> _State:
        return _State(**{name: value.copy() for name, value in vars(self).items()})


def _advance(
    geometry: Geometry, program: ConeProgram, current: _State, best: _State, system: System
) -> tuple[_State, NDArray[np.bool_]]:
    """Newton steps with one factor, and which instances they brought a clearly better best point.

    The first step is taken whatever it does to the residual; the others for as long as it falls
    tenfold. `best` is changed in place, `current` is not.
    """
    before = best.error.copy()
    current = current.copy()
    pending = np.ones(len(current.x), dtype=bool)
    for step in range(STEPS):
        dx, dz = system.newton(-current.F1, -current.F2)
        x = current.x + dx
        w = current.w - current.F2 - geometry.apply_A(program.A, dx) - dz
        s = geometry.cone.project(w, near=current.s)
        F1, F2, error = residual(geometry, program, x, s - w, s)
        new = _State(x, w, s, F1, F2, error)
        falling = error < current.error
        taken = pending & (falling | (step == 0)) & np.isfinite(error)
        pending = taken & (error < 0.1 * current.error) & (error > TARGET)
        better = taken & (error < best.error)
        current.put(taken, new.take(taken))
        best.put(better, new.take(better))
        if not pending.any():
            break
    return current, best.error < 0.5 * before


def _norm(vectors: Array) -> Array:
    return np.abs(vectors).max(axis=1, initial=0.0)
