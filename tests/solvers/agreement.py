"""What becomes of an instance, against Clarabel, and against what is known of it by construction.

The verdicts of the engine itself are looked at before Clarabel takes over what it leaves. Points
and certificates are checked with dense matrices, from the definitions of the cones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from cvxlayers.program import ConeProgram
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.interior_point import InteriorPoint
from cvxlayers.solvers.retries import take_over
from cvxlayers.status import Status
from lanes.programs import KINDS, draw
from solvers.random_programs import dense_data, kkt_residual, outside

Array = np.ndarray
VERDICTS = (Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)
# Certificates on the boundary of their cones, which all solvers find by luck.
WEAK = ("contradiction", "line")


@dataclass
class Tally:
    count: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    #: Where Clarabel does not say what is so, and what is said here.
    better: Counter[tuple[str, str]] = field(default_factory=Counter)


def certificate_error(
    program: ConeProgram, i: int, verdict: int, x: Array, z: Array, s: Array
) -> float:
    """How far a certificate is from one, with a gain of one: the larger of what should vanish and
    of what leaves the cone, in units of the instance's own numbers."""
    P, q, A, b = dense_data(program, i)
    dims = program.structure.dims
    if verdict == Status.PRIMAL_INFEASIBLE:
        gain = -(b @ z)
        residual, size = np.abs(A.T @ z).max(initial=0.0), np.abs(A).max(initial=0.0)
        beyond, height = outside(z, dims, dual=True), np.abs(z).max(initial=0.0)
    else:
        gain = -(q @ x)
        residual = max(np.abs(P @ x).max(initial=0.0), np.abs(A @ x + s).max(initial=0.0))
        size = max(np.abs(A).max(initial=0.0), np.abs(P).max(initial=0.0))
        beyond, height = outside(s, dims, dual=False), np.abs(x).max(initial=0.0)
    assert gain > 0.0
    return float(max(residual / gain / max(1.0, size), beyond / max(1.0, height)))


def examine(
    solver: type[InteriorPoint], family: str, kind: str, seed: int, tally: Tally, batch: int = 4
) -> None:
    program, expected = draw(family, kind, seed, batch)
    found = solver(program.structure).solve(program, {})
    own = found.status.copy()
    take_over(solver.name, program, found, {})
    clarabel = Clarabel(program.structure).solve(program, {})
    raw = solver(program.structure)._run(program, (1e-8,) * 3, 200, None)
    for i in range(batch):
        where = f"{family}, {kind}, seed {seed}, instance {i}: {expected.name}"
        names = [Status(int(v)).name for v in (own[i], found.status[i], clarabel.status[i])]
        message = "{}; engine {}, in the end {}, Clarabel {}".format(where, *names)
        tally.count += 1
        tally.left += own[i] not in VERDICTS
        # No wrong verdict of its own, and in the end none but where Clarabel has none, either.
        if own[i] in VERDICTS and own[i] != expected:
            tally.wrong.append(message)
        worse = found.status[i] != expected and (
            clarabel.status[i] == expected
            or (found.status[i] in VERDICTS and found.status[i] != clarabel.status[i])
        )
        if worse:
            tally.wrong.append(message)
        if found.status[i] == expected != clarabel.status[i]:
            tally.better[names[2], expected.name] += 1
        if found.status[i] == Status.SOLVED:
            residual = kkt_residual(program, i, found.x[i], found.z[i], found.s[i])
            theirs = 0.0
            if clarabel.status[i] == Status.SOLVED:
                theirs = kkt_residual(program, i, clarabel.x[i], clarabel.z[i], clarabel.s[i])
            if not residual < max(1e-5, 5.0 * theirs):
                tally.wrong.append(f"{message}; KKT residuals {residual:.1e}, {theirs:.1e}")
        if found.status[i] == clarabel.status[i] == Status.SOLVED:
            P, q, _, _ = dense_data(program, i)
            x, y = found.x[i], clarabel.x[i]
            one, other = 0.5 * x @ P @ x + q @ x, 0.5 * y @ P @ y + q @ y
            # Beside bounds of 1e8 a tolerance relative to them lets Clarabel stop far off.
            if abs(one - other) > 1e-5 * (1.0 + np.abs(q) @ np.abs(x)) and residual > theirs:
                tally.wrong.append(f"{message}; objective {one} for {other}")
        if own[i] in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE):
            error = certificate_error(program, i, raw.status[i], raw.x[i], raw.z[i], raw.s[i])
            if not error < (1e-5 if kind in WEAK else 1e-6):
                tally.wrong.append(f"{message}; certificate error {error:.1e}")


def share_left(solver: type[InteriorPoint], family: str) -> float:
    """Of a family, and all kinds but the WEAK ones, what ends without a verdict."""
    status = [
        solver(program.structure).solve(program, {}).status
        for kind in KINDS
        if kind not in WEAK
        for program, _ in (draw(family, kind, seed, 8) for seed in range(3))
    ]
    return float((~np.isin(status, VERDICTS)).mean())


def iterations_over_clarabel(solver: type[InteriorPoint], family: str) -> float:
    """Of feasible programs that both solve, all iterations over all of Clarabel's."""
    own = theirs = 0
    for seed in range(4):
        program, _ = draw(family, "feasible", seed, 8)
        found = solver(program.structure).solve(program, {})
        clarabel = Clarabel(program.structure).solve(program, {})
        both = found.solved & clarabel.solved
        own += int(found.iterations[both].sum())
        theirs += int(clarabel.iterations[both].sum())
    return own / theirs
