"""LANES: the library's own interior-point method, many instances at once. The default on a CPU.

See `cvxlayers.lanes`. Infeasible is what a certificate proves; whatever else does not end solved is
for Clarabel (`retries`).
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.lanes import OUTCOMES, engine_for, why_not
from cvxlayers.program import ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import Solver, seconds_left
from cvxlayers.solvers.certificates import is_proof, power_of
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
_PRIMAL_INFEASIBLE, _DUAL_INFEASIBLE = int(Status.PRIMAL_INFEASIBLE), int(Status.DUAL_INFEASIBLE)
_NUMERICAL_ERROR = int(Status.NUMERICAL_ERROR)
MOST_ITERATIONS = 2**31 - 1


class Lanes(Solver):
    """The method of Goulart & Chen, arXiv 2405.12762, on many instances of one pattern at once."""

    name = "LANES"
    cones = frozenset({"zero", "nonneg", "soc", "psd", "exp", "pow"})
    options = frozenset({"max_iter", "tol_gap_abs", "tol_gap_rel", "tol_feas"})

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        reason = why_not(structure)
        return None if reason is None else f"LANES {reason}"

    @classmethod
    def common_options(cls, eps: float | None, max_iters: int | None) -> dict[str, Any]:
        named: dict[str, Any] = {}
        if eps is not None:
            named |= {"tol_gap_abs": eps, "tol_gap_rel": eps, "tol_feas": eps}
        if max_iters is not None:
            named["max_iter"] = int(max_iters)
        return named

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        settings = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8, "max_iter": 200}
        for name, value in options.items():
            settings[name] = _number(name, value)
        tolerances = (settings["tol_gap_abs"], settings["tol_gap_rel"], settings["tol_feas"])
        # Not kept: a solver is copied and stored with its layer.
        engine = engine_for(self.structure)
        if engine is None:
            raise RuntimeError(f"{self.refusal(self.structure)}.")
        limit = int(settings["max_iter"])
        answer = engine.solve(program, tolerances, limit, seconds_left(deadline))
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
            self._prove(program, solution, unsolved)
            for point in (solution.x, solution.z, solution.s):
                point[unsolved] = np.nan
        if verbose:
            _report(solution)
        return solution

    def _prove(
        self, program: ConeProgram, solution: ConeSolution, unsolved: NDArray[np.bool_]
    ) -> None:
        """Leave the status infeasible to the instances whose certificate proves it."""
        verdicts = (_PRIMAL_INFEASIBLE, _DUAL_INFEASIBLE)
        power = power_of(self.structure.dims)
        for i in np.flatnonzero(unsolved & np.isin(solution.status, verdicts)):
            P, q, A, b = (
                v[i if len(v) > 1 else 0] for v in (program.P, program.q, program.A, program.b)
            )
            x = None if solution.status[i] == _PRIMAL_INFEASIBLE else solution.x[i]
            matrix = self.structure.P.matrix(P)
            of_A = self.structure.A.matrix(A)
            z, s = solution.z[i], solution.s[i]
            if not is_proof(x, z, s, matrix, q, of_A, b, power):
                solution.status[i] = _NUMERICAL_ERROR


def _number(name: str, value: Any) -> float:
    """The value of an option, or a ValueError that says what was expected."""
    if name == "max_iter":
        if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > 0:
            return min(int(value), MOST_ITERATIONS)
        raise ValueError(f"solver_args[{name!r}]: expected a positive integer, got {value!r}")
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
