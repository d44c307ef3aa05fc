"""LANES: the library's own interior-point method, many instances at once. The default on a CPU.

See `cvxlayers.lanes`. Infeasible is what a certificate proves; whatever else does not end solved is
for Clarabel (`retries`).
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from cvxlayers.lanes import OUTCOMES, engine_for, why_not
from cvxlayers.program import CONES, ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import MOST_ITERATIONS, Solver, seconds_left
from cvxlayers.solvers.certificates import demand_proof
from cvxlayers.status import Status

__all__ = ["Lanes"]

_STATUSES = {
    "solved": Status.SOLVED,
    "almost solved": Status.ALMOST_SOLVED,
    "primal infeasible": Status.PRIMAL_INFEASIBLE,
    "dual infeasible": Status.DUAL_INFEASIBLE,
    "iteration limit": Status.MAX_ITERATIONS,
    "insufficient progress": Status.INSUFFICIENT_PROGRESS,
    "numerical error": Status.NUMERICAL_ERROR,
    "stopped": Status.TIME_LIMIT,
}
_STATUS = np.array([int(_STATUSES[name]) for name in OUTCOMES], dtype=np.int64)
_SOLVED, _ALMOST_SOLVED = int(Status.SOLVED), int(Status.ALMOST_SOLVED)
_DEFAULTS = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8, "max_iter": 200}


class Lanes(Solver):
    """The method of Goulart & Chen, arXiv 2405.12762, on many instances of one pattern at once."""

    name = "LANES"
    cones = CONES
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    iteration_limit = "max_iter"
    options = frozenset({*tolerances, iteration_limit})

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        reason = why_not(structure)
        return None if reason is None else f"LANES {reason}"

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        settings = {name: _number(name, value) for name, value in {**_DEFAULTS, **options}.items()}
        gap_abs, gap_rel, feas = (settings[name] for name in self.tolerances)
        # Not kept: a solver is copied and stored with its layer.
        engine = engine_for(self.structure)
        if engine is None:
            raise RuntimeError(f"{self.refusal(self.structure)}.")
        limit = int(settings[self.iteration_limit])
        answer = engine.solve(program, (gap_abs, gap_rel, feas), limit, seconds_left(deadline))
        status = _STATUS[answer.outcome]
        solution = ConeSolution(
            answer.x,
            answer.z,
            answer.s,
            status,
            answer.iterations,
            answer.seconds,
            np.zeros(program.batch, dtype=np.int64),
        )
        unsolved = (status != _SOLVED) & (status != _ALMOST_SOLVED)
        if unsolved.any():
            demand_proof(program, solution)
            for point in (solution.x, solution.z, solution.s):
                point[unsolved] = np.nan
        if verbose:
            _report(solution)
        return solution


def _number(name: str, value: Any) -> float:
    """The value of an option, or a ValueError that says what was expected."""
    if name == "max_iter":
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if is_integer and 0 < int(value) <= MOST_ITERATIONS:
            return int(value)
        raise ValueError(
            f"solver_args[{name!r}]: expected a positive integer below 2**31, got {value!r}"
        )
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and float(value) > 0:
        return float(value)
    raise ValueError(f"solver_args[{name!r}]: expected a positive number, got {value!r}")


def _report(solution: ConeSolution) -> None:
    """What an instance took, a line for each."""
    print("instance  iterations  status")
    for i, (status, iterations) in enumerate(
        zip(solution.status, solution.iterations, strict=True)
    ):
        print(f"{i:8d}  {iterations:10d}  {Status(int(status)).name}")
