"""θ ↦ v(θ): the operations that every frontend registers with its framework.

    solve(θ) → v          vjp(θ, v, g) → dθ          jvp(θ, v, t) → dv

over float64 NumPy arrays, batched. v is the whole primal-dual point; the outputs that the user
asked for are read off it by `CanonicalProblem.recover`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy import nan
from numpy.typing import NDArray

from cvxlayers.canonicalize import CanonicalProblem
from cvxlayers.derivative import Geometry, ImplicitDerivative, System, polish, row_scales
from cvxlayers.errors import SolverError, UnsupportedProblemError
from cvxlayers.program import (
    ConeProgram,
    ConeSolution,
    Linearization,
    ProgramTangent,
    Wanted,
)
from cvxlayers.solvers import get_solver
from cvxlayers.solvers.options import COMMON_OPTIONS, Options, resolve_options
from cvxlayers.status import Status

__all__ = ["FailurePolicy", "Point", "SolutionMap", "check_failure_policy"]

Array = NDArray[np.float64]
FailurePolicy = Literal["raise", "nan"]

# An answer that the solver calls almost solved counts as solved once polishing has brought the
# optimality conditions to the accuracy that the solver was asked for by default.
CERTIFIED = 1e-8
# Beyond this residual the active constraints may be others than those of the solution.
ROUGH = 1e-6

# Plain integers: NumPy takes an enum's member apart slowly enough to show in a small solve.
SOLVED = int(Status.SOLVED)
ALMOST_SOLVED = int(Status.ALMOST_SOLVED)


def check_failure_policy(policy: Any) -> FailurePolicy:
    """The policy itself, or a ValueError that lists what exists."""
    if policy not in get_args(FailurePolicy):
        choices = " or ".join(repr(choice) for choice in get_args(FailurePolicy))
        raise ValueError(f"on_failure: expected {choices}, got {policy!r}.")
    return policy


@dataclass(eq=False)
class Point:
    """v(θ) for a batch, with what the derivatives at it need.

    Attributes
    ----------
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m); rows that were not solved are NaN.
    status, iterations : ndarray of int
        Shape (B,).
    theta : sequence of ndarray
        The parameter values, as far as derivatives need them.
    derivative : Linearization or None
        The derivative at these points, for the instances `rows` alone (None: for all).
    wanted : Wanted or None
        What of the program it is a derivative with respect to.
    """

    x: Array
    z: Array
    s: Array
    status: NDArray[np.int64]
    iterations: NDArray[np.int64]
    theta: Sequence[Array] = field(repr=False)
    rows: NDArray[np.bool_] | None = field(default=None, repr=False)
    wanted: Wanted | None = field(default=None, repr=False)
    derivative: Linearization | None = field(default=None, repr=False)

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Shape (B,)."""
        return self.status == SOLVED


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
    """

    def __init__(
        self,
        canonical: CanonicalProblem,
        solver: str | None = None,
        solver_args: Mapping[str, Any] | None = None,
        verbose: bool = False,
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
        self.verbose = verbose

    def solve(
        self,
        theta: Sequence[Array],
        batch_shape: tuple[int, ...] = (),
        *,
        solver_args: Mapping[str, Any] | None = None,
        differentiable: bool = True,
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
            Whether `vjp` and `jvp` will be called. If not, nothing of the derivative is computed.
        on_failure : {"raise", "nan"}
            Raise if an instance is not solved, or return NaN for it.

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
        program = self.canonical.program(theta, batch)
        if batch == 0:
            solution = ConeSolution.empty(0, self.canonical.structure)
        else:
            solution = self.solver.solve(program, options.solver, verbose)
        derivative, rows = self._finish(program, solution, options, differentiable)
        failed = solution.status != SOLVED
        if failed.any():
            if on_failure == "raise":
                raise _failure(self.solver.name, solution.status, batch_shape)
            for array in (solution.x, solution.z, solution.s):
                array[failed] = np.nan
        return Point(
            solution.x,
            solution.z,
            solution.s,
            solution.status,
            solution.iterations,
            theta=self._remember(theta) if differentiable else theta,
            rows=rows,
            wanted=self.canonical.wanted(theta) if differentiable else None,
            derivative=derivative,
        )

    def vjp(
        self,
        point: Point,
        gradients: Sequence[Array | None],
        outputs: Sequence[Array],
    ) -> list[Array]:
        """Gradients for the parameters, shapes of `theta`, from those for the outputs.

        Instances that were not solved contribute exactly zero.
        """
        derivative, wanted, rows = self._at(point)
        gx, gz = self.canonical.recover_adjoint(gradients, outputs, point.x, point.z)
        failed = ~point.solved
        if failed.any():
            # Also what was NaN because the outputs were.
            gx[failed] = 0.0
            if gz is not None:
                gz[failed] = 0.0
        # An upstream gradient that is not finite spoils what depends on its instance, and no more.
        spoilt = np.logical_not(np.isfinite(gx).all(axis=1))
        if gz is not None:
            spoilt = np.logical_or(spoilt, ~np.isfinite(gz).all(axis=1))
        if spoilt.any():
            gx[spoilt] = 0.0
            if gz is not None:
                gz[spoilt] = 0.0
        if rows is None:
            pulled = derivative.vjp(gx, gz, wanted)
        else:
            part = derivative.vjp(gx[rows], None if gz is None else gz[rows], wanted)
            pulled = ProgramTangent(
                **{
                    name: value if name in wanted.shared else _scatter(value, rows)
                    for name, value in vars(part).items()
                }
            )
        if spoilt.any():
            pulled = ProgramTangent(
                **{
                    name: np.where(
                        spoilt[:, None] if len(value) == len(spoilt) else True, nan, value
                    )
                    for name, value in vars(pulled).items()
                }
            )
        return self.canonical.program_adjoint(pulled, point.theta)

    def jvp(self, point: Point, tangents: Sequence[Array], outputs: Sequence[Array]) -> list[Array]:
        """Change of the outputs along a change of the parameters (shapes of `theta`).

        Instances that were not solved give NaN.
        """
        derivative, wanted, rows = self._at(point)
        tangent = self.canonical.program_tangent(point.theta, tangents)
        dx, dz = np.full_like(point.x, np.nan), np.full_like(point.z, np.nan)
        if rows is None:
            dx, dz = derivative.jvp(tangent, wanted)
        else:
            part = {k: v if len(v) == 1 else v[rows] for k, v in vars(tangent).items()}
            dx[rows], dz[rows] = derivative.jvp(ProgramTangent(**part), wanted)
        return self.canonical.recover_tangent(dx, dz, outputs)

    @staticmethod
    def _at(point: Point) -> tuple[Linearization, Wanted, NDArray[np.bool_] | None]:
        if point.derivative is None or point.wanted is None:
            raise ValueError("The point was computed with differentiable=False.")
        return point.derivative, point.wanted, point.rows

    def _finish(
        self, program: ConeProgram, solution: ConeSolution, options: Options, differentiable: bool
    ) -> tuple[Linearization | None, NDArray[np.bool_] | None]:
        """Polish what is to be polished, in place, and make the derivative: it, and the instances
        that it is for (None: all)."""
        own = self.solver.linearize(program, solution, options.solver) if differentiable else None
        if own is not None:
            return own, None
        almost = solution.status == ALMOST_SOLVED
        polishing = differentiable if options.polish is None else options.polish
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
        # Decided by the final points alone: whether the polish kept its factors depends on all
        # instances, and on curved cones they are not those at these points anyway.
        tau = row_scales(self.geometry, z, s)
        nearby = system if tau is None else None
        derivative = ImplicitDerivative(self.geometry, part, x, z, s, nearby, tau)
        return derivative, None if rows.all() else rows

    def _remember(self, theta: Sequence[Array]) -> list[Array]:
        # The caller may change its arrays before it asks for a derivative. Values matter only
        # where a logarithm was taken; of the others only the shape does.
        logged = {i for i, is_log in self.canonical.parts if is_log}
        return [
            t.copy() if i in logged else np.broadcast_to(0.0, t.shape) for i, t in enumerate(theta)
        ]


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


def _select(
    program: ConeProgram, solution: ConeSolution, rows: NDArray[np.bool_]
) -> tuple[ConeProgram, tuple[Array, Array, Array]]:
    """The instances `rows` of a program and of its solution; copies of the latter."""
    part = program if rows.all() else program.take(np.flatnonzero(rows))
    return part, (solution.x[rows], solution.z[rows], solution.s[rows])


def _scatter(values: Array, rows: NDArray[np.bool_]) -> Array:
    full = np.zeros((len(rows), values.shape[1]))
    full[rows] = values
    return full


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
    advice = f"Pass on_failure='nan' to get NaN and zero gradients for {rest} instead."
    return SolverError(f"{of} not solved by {solver}. {'; '.join(reasons)}. {advice}", by_index)


def _rows(indices: list[tuple[int, ...]]) -> str:
    if indices == [()]:
        return ""
    shown = [str(i[0]) if len(i) == 1 else str(i) for i in indices[:10]]
    more = f", … ({len(indices) - 10} more)" if len(indices) > 10 else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {', '.join(shown)}{more} "
