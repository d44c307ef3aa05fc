"""θ ↦ v(θ) over float64 NumPy arrays with one batch axis: solved, polished, judged.

v is the whole primal-dual point; the outputs that the user asked for are read off it by
`CanonicalProblem.recover`. Its derivatives are in `sensitivity`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cvxlayers.canonicalize import CanonicalProblem
from cvxlayers.derivative import (
    Geometry,
    ImplicitDerivative,
    SmoothedDerivative,
    System,
    central_point,
    polish,
    residuals,
    row_scales,
)
from cvxlayers.errors import SolverError, SolverWarning, UnsupportedProblemError
from cvxlayers.program import (
    ConeProgram,
    ConeSolution,
    Linearization,
)
from cvxlayers.sensitivity import SOLVED, Point
from cvxlayers.solvers import get_solver
from cvxlayers.solvers.options import COMMON_OPTIONS, Options, resolve_options
from cvxlayers.solvers.retries import retry
from cvxlayers.status import Status

__all__ = ["FailurePolicy", "SolutionMap", "check_failure_policy"]

Array = NDArray[np.float64]
FailurePolicy = Literal["raise", "nan", "warn"]

# An answer that the solver calls almost solved counts as solved once polishing has brought the
# optimality conditions to the accuracy that the solver was asked for by default.
CERTIFIED = 1e-8
# Beyond this residual the active constraints may be others than those of the solution.
ROUGH = 1e-6

# Plain integers: NumPy takes an enum's member apart slowly enough to show in a small solve.
ALMOST_SOLVED = int(Status.ALMOST_SOLVED)


def check_failure_policy(policy: Any) -> FailurePolicy:
    """The policy itself, or a ValueError that lists what exists."""
    if policy not in get_args(FailurePolicy):
        choices = " or ".join(repr(choice) for choice in get_args(FailurePolicy))
        raise ValueError(f"on_failure: expected {choices}, got {policy!r}.")
    return policy


class SolutionMap:
    """The solution of one parametrized problem as a differentiable function of its parameters.

    Parameters
    ----------
    canonical : CanonicalProblem
    solver : str, optional
        CVXPY's name of the solver. Default: Clarabel.
    solver_args : mapping, optional
        Options for every call; see `cvxlayers.solvers.options`.
    verbose : bool
    smoothing : float, optional
        Barrier parameter of the smoothed derivative; None for the exact one.
    """

    def __init__(
        self,
        canonical: CanonicalProblem,
        solver: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        verbose: bool = False,
        smoothing: float | None = None,
    ):
        kind = get_solver("CLARABEL" if solver is None else solver)
        missing = canonical.structure.dims.kinds - kind.cones
        if missing:
            raise UnsupportedProblemError(
                f"{kind.name} does not handle the cones {sorted(missing)} of this problem; "
                "leave solver=None for Clarabel, which handles all."
            )
        self.canonical = canonical
        self.geometry = Geometry(canonical.structure)
        self.solver = kind(canonical.structure)
        self._options = resolve_options(kind, solver_args)
        # What does not belong to this solver has been warned of once, and is left out from now on.
        own = kind.options | set(COMMON_OPTIONS)
        self.solver_args = {k: v for k, v in (solver_args or {}).items() if k in own}
        self.verbose, self.smoothing = verbose, smoothing

    def solve(
        self,
        theta: Sequence[Array],
        batch_shape: tuple[int, ...] = (),
        *,
        solver_args: Mapping[str, Any] | None = None,
        differentiable: bool = True,
        polished: bool | None = None,
        on_failure: FailurePolicy = "raise",
    ) -> Point:
        """Solve at parameter values of shape (B or 1, size), B the product of `batch_shape`.

        Parameters
        ----------
        theta : sequence of ndarray
        batch_shape : tuple of int
        solver_args : mapping, optional
            Options for this call alone, on top of the constructor's.
        differentiable : bool
            Whether derivatives will be asked for. If not, nothing of them is computed.
        polished : bool, optional
            Whether the solution is polished where the options do not say; by default, where
            derivatives will be asked for.
        on_failure : {"raise", "nan", "warn"}
            Raise if an instance is not solved, or return NaN for it, with a warning or without.

        Raises
        ------
        SolverError
            Naming the instances that were not solved, and why.
        """
        options = self._options
        if solver_args is not None:
            options = resolve_options(type(self.solver), self.solver_args, solver_args)
        verbose = self.verbose if options.verbose is None else options.verbose
        batch = math.prod(batch_shape)
        attempt = np.zeros(batch, dtype=np.int64)
        program = self.canonical.program(theta, batch)
        if batch == 0:
            solution = ConeSolution.empty(0, self.canonical.structure)
        else:
            solution = self.solver.solve(program, options.solver, verbose)
            attempt = retry(self.solver.name, program, solution, options.solver)
        if options.polish is None:
            options = replace(options, polish=differentiable if polished is None else polished)
        derivative, rows = self._finish(program, solution, options, differentiable)
        failed = solution.status != SOLVED
        if failed.any():
            if on_failure != "nan":
                error = _failure(self.solver.name, solution.status, batch_shape)
                if on_failure == "raise":
                    raise error
                warnings.warn(str(error), SolverWarning, stacklevel=2)
            for array in (solution.x, solution.z, solution.s):
                array[failed] = np.nan
        outputs = self.canonical.recover(solution.x, solution.z)
        return Point(
            solution.x,
            solution.z,
            solution.s,
            solution.status,
            solution.iterations,
            outputs,
            rows,
            derivative,
            attempt,
        )

    def inspect(self, point: Point, theta: Sequence[Array]) -> dict[str, NDArray[Any]]:
        """What became of every instance: the fields of `cvxlayers.info.Info`, shape (B,)."""
        program = self.canonical.program(theta, len(point.x))
        primal, dual, gap = residuals(self.geometry, program, point.x, point.z, point.s)
        degenerate = np.zeros(len(point.x), dtype=bool)
        if isinstance(point.derivative, ImplicitDerivative):
            some = slice(None) if point.rows is None else point.rows
            degenerate[some] = point.derivative.system.degenerate
        return {
            "status": point.status,
            "iterations": point.iterations,
            "attempt": np.zeros_like(point.status) if point.attempt is None else point.attempt,
            "primal_residual": primal,
            "dual_residual": dual,
            "gap": gap,
            "degenerate": degenerate,
        }

    def at(
        self,
        theta: Sequence[Array],
        x: Array,
        z: Array,
        s: Array,
        solver_args: Mapping[str, Any] | None = None,
    ) -> Point:
        """The point that `solve` gave, made again from its parts; instances with NaN are those
        that were not solved."""
        solution = ConeSolution.empty(len(x), self.canonical.structure)
        solution.x, solution.z, solution.s = x, z, s
        solution.status[np.isfinite(x).all(axis=1) & np.isfinite(z).all(axis=1)] = SOLVED
        program = self.canonical.program(theta, len(x))
        options = resolve_options(type(self.solver), self.solver_args, solver_args)
        rows = None
        derivative = None
        if self.smoothing is None:
            derivative = self.solver.linearize(program, solution, options.solver)
        if derivative is None:
            derivative, rows = self._derivative(program, solution)
        outputs = self.canonical.recover(x, z)
        return Point(x, z, s, solution.status, solution.iterations, outputs, rows, derivative)

    def _finish(
        self, program: ConeProgram, solution: ConeSolution, options: Options, differentiable: bool
    ) -> tuple[Linearization | None, NDArray[np.bool_] | None]:
        """Polish what is to be polished, in place, and make the derivative: it, and the instances
        that it is for (None: all)."""
        own = None
        if differentiable and self.smoothing is None:
            own = self.solver.linearize(program, solution, options.solver)
        if own is not None:
            return own, None
        almost = solution.status == ALMOST_SOLVED
        polishing = bool(options.polish)
        if not polishing and not almost.any():
            return self._derivative(program, solution) if differentiable else (None, None)
        rows = solution.solved | almost if polishing else almost
        system = None
        if rows.any():
            part, (x, z, s) = _select(program, solution, rows)
            point = polish(self.geometry, part, x, z, s)
            solution.x[rows], solution.z[rows], solution.s[rows] = point.x, point.z, point.s
            certified = np.zeros(len(rows), dtype=bool)
            certified[rows] = point.residual <= CERTIFIED
            solution.status[almost & certified] = SOLVED
            rough = np.zeros(len(rows), dtype=bool)
            rough[rows] = point.residual > ROUGH
            rough &= solution.solved
            if differentiable and rough.any():
                _warn_of_gradients(rough, float(point.residual[rough[rows]].max()))
            if np.array_equal(solution.solved, rows):
                system = point.system
        if not differentiable:
            return None, None
        return self._derivative(program, solution, system)

    def _derivative(
        self, program: ConeProgram, solution: ConeSolution, system: System | None = None
    ) -> tuple[Linearization, NDArray[np.bool_] | None]:
        rows = solution.solved
        part, (x, z, s) = _select(program, solution, rows)
        if self.smoothing is not None:
            path = central_point(self.geometry, part, x, z, s, self.smoothing)
            if not path.converged.all():
                _warn_of_path(np.flatnonzero(rows)[~path.converged], len(rows), self.smoothing)
            smoothed = SmoothedDerivative(
                self.geometry, part, path.x, path.z, path.s, self.smoothing
            )
            return smoothed, None if rows.all() else rows
        # Decided by the final points alone: whether the polish kept its factors depends on all
        # instances, and on curved cones they are not those at these points anyway.
        tau = row_scales(self.geometry, z, s)
        nearby = system if tau is None else None
        derivative = ImplicitDerivative(self.geometry, part, x, z, s, nearby, tau)
        return derivative, None if rows.all() else rows


def _warn_of_gradients(rough: NDArray[np.bool_], residual: float) -> None:
    rows = np.flatnonzero(rough)
    shown = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
    warnings.warn(
        f"The solutions of {len(rows)} of {len(rough)} instances ({shown}) could not be polished: "
        f"their optimality conditions hold to {residual:.1e} only, relative to their terms. They "
        "are as good as the solver's tolerance, but their gradients may be inaccurate. Rescale "
        "the data, so that the parameters are of similar size.",
        UserWarning,
        stacklevel=6,
    )


def _warn_of_path(rows: NDArray[np.intp], batch: int, smoothing: float) -> None:
    shown = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
    warnings.warn(
        f"The point of the central path at smoothing={smoothing:g} was not found for {len(rows)} "
        f"of {batch} instances ({shown}), so that their smoothed gradients may be inaccurate. The "
        "path exists where the constraints have an interior and the set of optima is bounded; with "
        "a larger smoothing it is easier to find.",
        UserWarning,
        stacklevel=6,
    )


def _select(
    program: ConeProgram, solution: ConeSolution, rows: NDArray[np.bool_]
) -> tuple[ConeProgram, tuple[Array, Array, Array]]:
    """The instances `rows` of a program and of its solution; copies of the latter."""
    part = program if rows.all() else program.take(np.flatnonzero(rows))
    return part, (solution.x[rows], solution.z[rows], solution.s[rows])


def _failure(solver: str, statuses: NDArray[np.int64], batch_shape: tuple[int, ...]) -> SolverError:
    failed = np.flatnonzero(statuses != Status.SOLVED)
    by_index = {
        tuple(int(k) for k in np.unravel_index(i, batch_shape)) if batch_shape else (): Status(
            int(statuses[i])
        )
        for i in failed
    }
    groups: dict[Status, list[tuple[int, ...]]] = {}
    for index, status in by_index.items():
        groups.setdefault(status, []).append(index)
    reasons = [
        f"{_rows(indices)}{status.name}: {status.sentence}" for status, indices in groups.items()
    ]
    of = f"{len(failed)} of {len(statuses)} instances were" if batch_shape else "The problem was"
    rest = "such rows" if batch_shape else "it"
    advice = f"With on_failure='nan' the answer is NaN, with zero gradients, for {rest}."
    return SolverError(f"{of} not solved by {solver}. {'; '.join(reasons)}. {advice}", by_index)


def _rows(indices: list[tuple[int, ...]]) -> str:
    if indices == [()]:
        return ""
    shown = [str(i[0]) if len(i) == 1 else str(i) for i in indices[:10]]
    more = f", … ({len(indices) - 10} more)" if len(indices) > 10 else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {', '.join(shown)}{more} "
