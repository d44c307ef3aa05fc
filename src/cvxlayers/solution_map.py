"""θ ↦ v(θ): the operations that every frontend registers with its framework.

    solve(θ) → v          vjp(θ, v, g) → dθ          jvp(θ, v, t) → dv

over float64 NumPy arrays, batched. v is the whole primal-dual point; the outputs that the user
asked for are read off it by `CanonicalProblem.recover`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cvxlayers.canonicalize import CanonicalProblem
from cvxlayers.derivative import Geometry, ImplicitDerivative, polish
from cvxlayers.errors import SolverError, UnsupportedProblemError
from cvxlayers.program import ConeProgram, ConeSolution, Linearization, Wanted
from cvxlayers.solvers import get_solver
from cvxlayers.solvers.options import Options, resolve_options
from cvxlayers.status import Status

__all__ = ["FailurePolicy", "Point", "SolutionMap", "check_failure_policy"]

Array = NDArray[np.float64]
FailurePolicy = Literal["raise", "nan"]

# An answer that the solver calls almost solved counts as solved once polishing has brought the
# optimality conditions to the accuracy that the solver was asked for by default.
CERTIFIED = 1e-8


def check_failure_policy(policy: Any) -> FailurePolicy:
    """The policy itself, or a ValueError that lists what exists."""
    if policy not in get_args(FailurePolicy):
        choices = " or ".join(repr(choice) for choice in get_args(FailurePolicy))
        raise ValueError(f"on_failure: expected {choices}, got {policy!r}.")
    return policy  # type: ignore[no-any-return]


@dataclass(eq=False)
class Point:
    """v(θ) for a batch, with what the derivatives at it need.

    Attributes
    ----------
    x, z, s : ndarray
        Shapes (B, n), (B, m), (B, m); rows that were not solved are NaN.
    status, iterations : ndarray of int
        Shape (B,).
    """

    x: Array
    z: Array
    s: Array
    status: NDArray[np.int64]
    iterations: NDArray[np.int64]
    theta: Sequence[Array] = field(repr=False)
    wanted: Wanted | None = field(default=None, repr=False)
    derivative: Linearization | None = field(default=None, repr=False)

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Shape (B,)."""
        return self.status == Status.SOLVED


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
        self.solver_args = dict(solver_args or {})
        self.verbose = verbose
        self._options = resolve_options(kind, self.solver_args)

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
        batch = int(np.prod(batch_shape, dtype=np.int64))
        program = self.canonical.program(theta, batch)
        if batch == 0:
            solution = ConeSolution.empty(0, self.canonical.structure)
        else:
            solution = self.solver.solve(program, options.solver, self.verbose)
        derivative = self._finish(program, solution, options, differentiable)
        failed = solution.status != Status.SOLVED
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
        canonical, rows = self.canonical, point.solved
        gx, gz = canonical.recover_adjoint(gradients, outputs, point.x, point.z)
        if not rows.any() or point.derivative is None or point.wanted is None:
            return [np.zeros_like(t) for t in point.theta]
        if rows.all():
            program_gradient = point.derivative.vjp(gx, gz, point.wanted)
        else:
            part = point.derivative.vjp(gx[rows], None if gz is None else gz[rows], point.wanted)
            program_gradient = type(part)(
                *(
                    value if name in point.wanted.shared else _scatter(value, rows)
                    for name, value in vars(part).items()
                )
            )
        return canonical.program_adjoint(program_gradient, point.theta)

    def jvp(
        self, point: Point, tangents: Sequence[Array], outputs: Sequence[Array]
    ) -> list[Array]:
        """Change of the outputs along a change of the parameters (shapes of `theta`).

        Instances that were not solved give NaN.
        """
        canonical, rows = self.canonical, point.solved
        batch = len(point.x)
        dx, dz = np.full_like(point.x, np.nan), np.full_like(point.z, np.nan)
        if rows.any() and point.derivative is not None and point.wanted is not None:
            tangent = canonical.program_tangent(point.theta, tangents)
            part = type(tangent)(
                *(v if len(v) == 1 or batch == 1 else v[rows] for v in vars(tangent).values())
            )
            dx[rows], dz[rows] = point.derivative.jvp(part, point.wanted)
        return canonical.recover_tangent(dx, dz, outputs)

    def _finish(
        self, program: ConeProgram, solution: ConeSolution, options: Options, differentiable: bool
    ) -> Linearization | None:
        """Polish what is to be polished, in place, and make the derivative."""
        almost = solution.status == Status.ALMOST_SOLVED
        solved = solution.solved
        own = self.solver.linearize(program, solution, options.solver) if differentiable else None
        if own is not None:
            return own
        wants_polish = differentiable if options.polish is None else options.polish
        rows = solved | almost if wants_polish else almost
        system = None
        if rows.any():
            part = program if rows.all() else program.take(np.flatnonzero(rows))
            point = polish(
                self.geometry, part, solution.x[rows], solution.z[rows], solution.s[rows]
            )
            solution.x[rows], solution.z[rows], solution.s[rows] = point.x, point.z, point.s
            certified = np.zeros(len(rows), dtype=bool)
            certified[rows] = point.residual <= CERTIFIED
            solution.status[almost & certified] = Status.SOLVED
            if (solution.solved == rows).all():
                system = point.system
        rows = solution.solved
        if not differentiable or not rows.any():
            return None
        return ImplicitDerivative(
            self.geometry,
            program if rows.all() else program.take(np.flatnonzero(rows)),
            solution.x[rows],
            solution.z[rows],
            solution.s[rows],
            system,
        )

    def _remember(self, theta: Sequence[Array]) -> list[Array]:
        # The caller may change its arrays before it asks for a derivative. Values matter only
        # where a logarithm was taken; of the others only the shape does.
        logged = {i for i, is_log in self.canonical.parts if is_log}
        return [t.copy() if i in logged else np.broadcast_to(0.0, t.shape)
                for i, t in enumerate(theta)]


def _scatter(values: Array, rows: NDArray[np.bool_]) -> Array:
    full = np.zeros((len(rows), values.shape[1]))
    full[rows] = values
    return full


def _failure(
    solver: str, statuses: NDArray[np.int64], batch_shape: tuple[int, ...]
) -> SolverError:
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
    advice = (
        " Pass on_failure='nan' to get NaN and zero gradients for such rows instead."
        if batch_shape
        else ""
    )
    return SolverError(f"{of} not solved by {solver}. {'; '.join(reasons)}.{advice}", by_index)


def _rows(indices: list[tuple[int, ...]]) -> str:
    if indices == [()]:
        return ""
    shown = [str(i[0]) if len(i) == 1 else str(i) for i in indices[:10]]
    more = f", … ({len(indices) - 10} more)" if len(indices) > 10 else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {', '.join(shown)}{more} "
