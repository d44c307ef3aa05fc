"""Newton steps on the optimality conditions.

    F(x, w) = [ P x + q + Aᵀ(Π(w) − w) ;  A x + Π(w) − b ] = 0,    s = Π(w),  z = Π(w) − w

Membership in the cones and complementarity hold exactly at every (x, w), so the residual of F is
all that is left to judge a point by. The KKT system at the solver's answer gives the step: with
r₁ = −F₁, r₂ = −F₂ it yields dx and dz, and dw = ds − dz = r₂ − A dx − dz.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.system import System, factor
from cvxlayers.program import ConeProgram

__all__ = ["Polished", "polish", "residual"]

Array = NDArray[np.float64]

TARGET = 1e-15
# Steps with one factor, and how many factors: the first takes an interior-point solution to
# machine precision; a first-order solver's answer may need the active set found anew.
STEPS = 4
FACTORS = 4


@dataclass(eq=False)
class Polished:
    """A batch of points, as good as floating point gives them.

    Attributes
    ----------
    x, z, s : ndarray
    residual : ndarray
        Shape (B,): the larger of the primal and the dual residual, each relative to its terms.
    system : System or None
        The factored KKT system, if it is the one at these points.
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
    Px, Atz = geometry.apply_P(program.P, x), geometry.apply_At(program.A, z)
    Ax = geometry.apply_A(program.A, x)
    F1 = Px + program.q + Atz
    F2 = Ax + s - program.b
    dual = _norm(F1) / (1.0 + np.maximum(np.maximum(_norm(Px), _norm(Atz)), _norm(program.q)))
    primal = _norm(F2 / (1.0 + np.abs(s) + np.abs(program.b)))
    return F1, F2, np.maximum(primal, dual)


def polish(geometry: Geometry, program: ConeProgram, x: Array, z: Array, s: Array) -> Polished:
    """Take Newton steps for as long as the residual falls.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): the solver's answers, all finite.
    """
    cone = geometry.cone
    w = s - z
    s = cone.project(w, near=s)
    z = s - w
    F1, F2, error = residual(geometry, program, x, z, s)
    system: System | None = None
    for round_ in range(FACTORS):
        pending = error > 1e-13 if round_ else np.ones(len(x), dtype=bool)
        if round_ and not pending.any():
            break
        before = error.copy()
        system = factor(geometry, program, w, s)
        for _ in range(STEPS):
            dx, dz = system.newton(-F1, -F2)
            dw = -F2 - geometry.apply_A(program.A, dx) - dz
            x_new, w_new = x + dx, w + dw
            s_new = cone.project(w_new, near=s)
            z_new = s_new - w_new
            F1_new, F2_new, error_new = residual(geometry, program, x_new, z_new, s_new)
            better = error_new < error
            if not better.any():
                break
            pick = better[:, None]
            x, w = np.where(pick, x_new, x), np.where(pick, w_new, w)
            s, z = np.where(pick, s_new, s), np.where(pick, z_new, z)
            F1, F2 = np.where(pick, F1_new, F1), np.where(pick, F2_new, F2)
            falling = better & (error_new < 0.1 * error)
            error = np.where(better, error_new, error)
            if not (falling & (error > TARGET)).any():
                break
        if not (error < 0.5 * before).any():
            break
    still_valid = system is not None and system.is_at(w)
    return Polished(x, z, s, error, system if still_valid else None)


def _norm(vectors: Array) -> Array:
    return np.abs(vectors).max(axis=1, initial=0.0)
