"""Differences of solutions in place of the derivative: Lagrangian proximal gradient descent.

With L(x, z) = ½ xᵀP x + qᵀx + zᵀ(A x − b), whose saddle point over z ∈ K* is the solution, and a
gradient (g_x, g_z), let (x₊, z₊) and (x₋, z₋) be the saddle points of L ± τ (g_xᵀx + g_zᵀz), that
is, the solutions of the programs with

    q ± τ g_x  for q,   b ∓ τ g_z  for b.

The value at the saddle point has the derivative g_xᵀx + g_zᵀz in τ at zero, and ∇L at the saddle
point in the data. What stands for the gradient of g_xᵀx + g_zᵀz in P, q, A and b is therefore

    (∇L(x₊, z₊) − ∇L(x₋, z₋)) / 2τ,   ∇L = (½ x xᵀ, x, z xᵀ, −z),

the mean of the two one-sided envelopes of Paulus, Martius & Musil, *LPGD: A General Framework for
Backpropagation through Embedded Optimization Layers*, 2024. ∇L being bilinear, it is what
`implicit.contract` makes of

    u = −(x₊ − x₋)/2τ,   v = −(z₊ − z₋)/2τ,   x = ½ (x₊ + x₋),   z = ½ (z₊ + z₋),

and tends to the exact gradient for τ → 0, with an error of τ² where the latter is smooth. Where
that is zero, such as at a vertex, a step that reaches the next vertex still tells of it.

In forward mode it is the difference quotient of the solution along the direction of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import Array, copied, fetched, namespace, put, sent, take
from cvxlayers.derivative.geometry import Geometry
from cvxlayers.derivative.implicit import contract
from cvxlayers.program import ConeProgram, ConeSolution, ProgramTangent, Wanted
from cvxlayers.warning import warn

__all__ = ["LpgdDerivative"]

Rows = NDArray[np.intp]
# By name of the data: which of its entries move, and their direction, shape (B or 1, entries).
Move = dict[str, tuple[Rows | slice, Array]]
# Points (x, z), shape (B, n + m), and which of them are solutions.
_Side = tuple[Array, NDArray[np.bool_]]

# Steps, as parts of τ: the shorter ones for instances that neither side has a solution for.
PARTS = (1.0, 0.1, 0.01)

NO_SECOND = (
    "the lpgd derivative has no derivative of its own: use the exact one for second derivatives"
)


class LpgdDerivative:
    """Difference quotients of (P, q, A, b) ↦ (x, z) over solutions of perturbed programs.

    They are symmetric. An instance with a perturbed program on one side alone that can be solved
    takes the quotient between that side and the point itself; one without either takes a tenth
    of the step, then a hundredth. If that is in vain, too, there is a warning, and its gradient is
    exactly zero, its directional derivative NaN.

    Neither mode is linear in its argument, nor the adjoint of the other, except for τ → 0.

    Parameters
    ----------
    geometry : Geometry
    program : ConeProgram
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m): solutions, all finite.
    tau : float
        The step, positive. It multiplies the gradient, or the direction, as it comes: one that is
        twice as large goes twice as far.
    resolve : callable
        Solves a batch of programs of the same structure to high accuracy. An instance's answer
        depends on its own data only; one that fails has another status than solved.
    rows : ndarray of int, optional
        What the warning calls the instances, shape (B,). Default: 0, 1, ….
    """

    def __init__(
        self,
        geometry: Geometry,
        program: ConeProgram,
        x: Array,
        z: Array,
        s: Array,
        tau: float,
        resolve: Callable[[ConeProgram], ConeSolution],
        rows: Rows | None = None,
    ):
        if not 0.0 < tau < np.inf:
            raise ValueError(f"the step must be positive and finite, got {tau!r}")
        self.geometry, self.x, self.z, self.s, self.tau = geometry, x, z, s, tau
        self._program, self._resolve, self._rows = program, resolve, rows

    def vjp(self, gx: Array, gz: Array | None, wanted: Wanted) -> ProgramTangent:
        """See `cvxlayers.program.Linearization`."""
        move: Move = {"q": (slice(None), gx)}
        if gz is not None:
            move["b"] = (slice(None), -gz)
        quotient, _ = self._quotient(move)
        u, v = self._split(-quotient.slope)
        return contract(self.geometry, u, v, *self._split(quotient.middle), wanted)

    def jvp(self, tangent: ProgramTangent, wanted: Wanted) -> tuple[Array, Array]:
        """See `cvxlayers.program.Linearization`."""
        move: Move = {
            name: (getattr(wanted, name), direction)
            for name, direction in vars(tangent).items()
            if direction.shape[1]
        }
        quotient, failed = self._quotient(move)
        put(quotient.slope, failed, np.nan)
        return self._split(quotient.slope)

    def hvp(self, gx: Array, gz: Array | None, tangent: ProgramTangent, wanted: Wanted) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError(NO_SECOND)

    def jvp2(self, tangent: ProgramTangent, other: ProgramTangent, wanted: Wanted) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError(NO_SECOND)

    def _quotient(self, move: Move) -> tuple[_Quotient, Rows]:
        """The quotients of all instances, and which of these have none."""
        xp = namespace(self.x)
        here = xp.concat([self.x, self.z], axis=1)
        quotient = _Quotient(xp.zeros_like(here), copied(here))
        # Where nothing moves there is nothing to solve.
        moving = np.zeros(len(here), dtype=bool)
        for _, direction in move.values():
            moving |= fetched(xp.any(direction != 0.0, axis=1))
        rows = np.flatnonzero(moving)
        for part in PARTS:
            if not len(rows):
                break
            step = self.tau * part
            found, there = _between(take(here, rows), *self._sides(move, rows, step), step)
            quotient.put(rows[there], found.take(there))
            rows = rows[~there]
        if len(rows):
            self._warn(rows)
        return quotient, rows

    def _sides(self, move: Move, rows: Rows, step: float) -> tuple[_Side, _Side]:
        """The solutions of the instances `rows` with the data moved by `step`, then by −`step`."""
        if len(self.x) > 1 and any(len(direction) == 1 for _, direction in move.values()):
            # Data that all instances share remain so, if every side is solved by itself.
            return self._solve(move, rows, step), self._solve(move, rows, -step)
        count = len(rows)
        steps = sent(np.repeat([step, -step], count)[:, None], self.x)
        points, solved = self._solve(move, np.tile(rows, 2), steps)
        return (points[:count], solved[:count]), (points[count:], solved[count:])

    def _solve(self, move: Move, rows: Rows, step: Array | float) -> _Side:
        program, xp = self._program.take(rows), namespace(self.x)
        moved: dict[str, Any] = {}
        for name, (entries, direction) in move.items():
            change = step * (direction if len(direction) == 1 else take(direction, rows))
            values = getattr(program, name)
            shape = max(len(values), len(change)), values.shape[1]
            values = copied(xp.broadcast_to(values, shape))
            values[:, entries if isinstance(entries, slice) else sent(entries, values)] += change
            moved[name] = values
        solution = self._resolve(replace(program, **moved))
        return xp.concat([solution.x, solution.z], axis=1), solution.solved

    def _split(self, points: Array) -> tuple[Array, Array]:
        n = self.x.shape[1]
        return points[:, :n], points[:, n:]

    def _warn(self, rows: Rows) -> None:
        named = rows if self._rows is None else self._rows[rows]
        shown = ", ".join(map(str, named[:10])) + (", …" if len(rows) > 10 else "")
        warn(
            f"At smoothing={self.tau:g}, and at a hundredth of it, the perturbed problems of "
            f"{len(rows)} of {len(self.x)} instances ({shown}) could not be solved on either side. "
            "Their gradients are zero, and their directional derivatives NaN. A smaller smoothing "
            "keeps closer to the problem that was solved; if that does not help, the slightest "
            "change makes it infeasible or unbounded.",
            UserWarning,
        )


@dataclass(eq=False)
class _Quotient:
    """Slope and middle of the lines between two points (x, z) each, shapes (B, n + m)."""

    slope: Array
    middle: Array

    def take(self, rows: NDArray[np.bool_]) -> _Quotient:
        return _Quotient(take(self.slope, rows), take(self.middle, rows))

    def put(self, rows: Rows, part: _Quotient) -> None:
        put(self.slope, rows, part.slope)
        put(self.middle, rows, part.middle)


def _between(
    here: Array, plus: _Side, minus: _Side, step: float
) -> tuple[_Quotient, NDArray[np.bool_]]:
    """The quotients between two sides, one that is not solved replaced by the point itself, and
    which instances have at least one side."""
    above, below = (
        namespace(here).where(sent(solved[:, None], here), points, here)
        for points, solved in (plus, minus)
    )
    steps = plus[1].astype(np.float64) + minus[1]
    slope = (above - below) / sent(step * np.maximum(steps, 1.0)[:, None], here)
    return _Quotient(slope, 0.5 * (above + below)), steps > 0.0
