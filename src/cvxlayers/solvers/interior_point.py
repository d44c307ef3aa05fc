"""What the solvers have in common whose engine is part of this library: options, statuses,
certificates and the report. See `cvxlayers.lanes` and `cvxlayers.dense`.
"""

from __future__ import annotations

import numbers
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from cvxlayers.arrays import put
from cvxlayers.program import CONES, OUTCOMES, ConeProgram, ConeSolution
from cvxlayers.solvers.base import MOST_ITERATIONS, Solver
from cvxlayers.solvers.certificates import demand_proof
from cvxlayers.status import Status

__all__ = ["STATUS_OF", "InteriorPoint"]

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
#: The values of `Status` for what an engine says, by its number among `OUTCOMES`.
STATUS_OF = np.array([int(_STATUSES[name]) for name in OUTCOMES], dtype=np.int64)
_SOLVED, _ALMOST_SOLVED = int(Status.SOLVED), int(Status.ALMOST_SOLVED)
_DEFAULTS = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8, "max_iter": 200}


class InteriorPoint(Solver):
    """The method of Goulart & Chen, arXiv 2405.12762."""

    cones = CONES
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    iteration_limit = "max_iter"
    options = frozenset({*tolerances, iteration_limit})

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        settings = {name: _number(name, value) for name, value in {**_DEFAULTS, **options}.items()}
        gap_abs, gap_rel, feas = (settings[name] for name in self.tolerances)
        limit = int(settings[self.iteration_limit])
        solution = self._run(program, (gap_abs, gap_rel, feas), limit, deadline)
        unsolved = (solution.status != _SOLVED) & (solution.status != _ALMOST_SOLVED)
        if unsolved.any():
            demand_proof(program, solution)
            for point in (solution.x, solution.z, solution.s):
                put(point, unsolved, np.nan)
        if verbose:
            _report(solution)
        return solution

    @abstractmethod
    def _run(
        self,
        program: ConeProgram,
        tolerances: tuple[float, float, float],
        iterations: int,
        deadline: float | None,
    ) -> ConeSolution:
        """What the engine finds, with certificates in the place of points.

        Parameters
        ----------
        program : ConeProgram
        tolerances : tuple of float
            Of the gap, absolute and relative, and of both residuals.
        iterations : int
            At most so many.
        deadline : float, optional
            A value of `time.monotonic`.
        """


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
