"""θ ↦ v(θ) over float64 arrays with one batch axis: solved, polished, judged.

Arrays of NumPy are solved by the layer's solver; those of PyTorch, on a device, by DENSE or by a
solver for devices that was named, and all else is done there.

v is the whole primal-dual point; the outputs that the user asked for are read off it by
`CanonicalProblem.recover`. Its derivatives are in `sensitivity`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.arrays import (
    Array,
    all_finite,
    fetched,
    is_host,
    largest,
    memory_beside,
    namespace,
    put,
    sent,
    take,
)
from cvxlayers.canonicalize import CanonicalProblem
from cvxlayers.choice import Choice
from cvxlayers.chunks import Chunks, slices
from cvxlayers.derivative import (
    Geometry,
    ImplicitDerivative,
    LpgdDerivative,
    SmoothedDerivative,
    System,
    central_point,
    memory_of_factor,
    polish,
    quality,
    residuals,
)
from cvxlayers.errors import SolverWarning
from cvxlayers.failures import failure, warn_of_gradients, warn_of_path
from cvxlayers.program import ConeProgram, ConeSolution, Linearization
from cvxlayers.sensitivity import Point
from cvxlayers.settings import FailurePolicy, Settings
from cvxlayers.solvers import Solver
from cvxlayers.solvers.options import Options
from cvxlayers.solvers.retries import retry, take_over
from cvxlayers.status import Status
from cvxlayers.warning import warn

__all__ = ["SolutionMap"]

# An answer that the solver calls almost solved counts as solved once polishing has brought the
# optimality conditions to the accuracy that the solver was asked for by default.
CERTIFIED = 1e-8
# An almost solved point of this size beside the data is on its way to infinity: on −log x, say,
# where the optimality conditions hold better and better.
ABSURD = 1e10
# Beyond this residual the active constraints may be others than those of the solution, …
ROUGH = 1e-6
# … and beyond this one it is no solution, unless the caller asked for less. Tolerances of solvers
# are relative to the largest numbers of a problem: beside a value of 1e8 they allow to break a
# constraint of size one. Numbers below LARGE cannot do that.
BROKEN = 1e-4
LARGE = 1e3
# Of the machine's memory, or what is free of a device's, what a batch may take if nothing else was
# said; and what it may take in any case, because to ask a device takes time.
SHARE, LITTLE = 0.25, 2.0**26
# How many arrays of the size of a point polishing has at once, and of the size of the data.
POINTS, COPIES = 30, 4

# What arrays of the host are like.
_NUMPY = np.empty(0)

# Plain integers: NumPy takes an enum's member apart slowly enough to show in a small solve.
SOLVED, ALMOST_SOLVED = int(Status.SOLVED), int(Status.ALMOST_SOLVED)


class SolutionMap:
    """The solution of one parametrized problem as a differentiable function of its parameters.

    Parameters
    ----------
    canonical : CanonicalProblem
    settings : Settings, optional
    """

    def __init__(self, canonical: CanonicalProblem, settings: Settings | None = None):
        settings = Settings() if settings is None else settings
        self.canonical, self.choice = canonical, Choice(canonical.structure, settings)
        self.settings = replace(settings, solver_args=self.choice.solver_args)
        self.geometry = Geometry(canonical.structure, self._memory(()))

    def __reduce__(self) -> tuple[Any, ...]:
        # Solvers are chosen anew where it is loaded: there may be others there.
        return SolutionMap, (self.canonical, self.settings)

    @property
    def solver(self) -> Solver:
        """The solver of calls without options of their own."""
        return self.choice.solver

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
        theta : sequence of array
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
        polish = differentiable if polished is None else polished
        options = self.choice.options(solver_args, polish, _is_on_device(theta))
        deadline = options.deadline()
        batch = math.prod(batch_shape)
        pieces = self._pieces(theta, batch, differentiable or bool(options.polish))
        points = []
        for piece in pieces:
            numbers = np.arange(piece.start, piece.stop)
            point = self._solve(_rows(theta, piece), numbers, options, differentiable, deadline)
            points.append(point)
            if len(pieces) > 1:
                point.derivative = point.rows = None
        if len(pieces) > 1:
            point = _stacked(points)
            if differentiable:
                self._differentiate_in_pieces(point, theta, pieces, options)
        failed = point.status != SOLVED
        if failed.any():
            if on_failure != "nan":
                error = failure(options.kind.name, point.status, batch_shape)
                if on_failure == "raise":
                    raise error
                warn(str(error), SolverWarning)
            for array in (point.x, point.z, point.s):
                put(array, failed, np.nan)
        point.outputs = self.canonical.recover(point.x, point.z)
        return point

    def at(
        self,
        theta: Sequence[Array],
        solution: ConeSolution,
        solver_args: Mapping[str, Any] | None = None,
    ) -> Point:
        """The point that `solve` gave, made again from its solution."""
        point = Point.of(solution)
        options = self.choice.options(solver_args, True, _is_on_device(theta))
        pieces = self._pieces(theta, len(point.x), True)
        if len(pieces) == 1:
            numbers = np.arange(len(point.x))
            point.derivative, point.rows = self._derivative_at(theta, point, options, numbers)
        else:
            self._differentiate_in_pieces(point, theta, pieces, options)
        point.outputs = self.canonical.recover(point.x, point.z)
        return point

    def inspect(self, point: Point, theta: Sequence[Array]) -> dict[str, NDArray[Any]]:
        """What became of every instance: the arrays of `cvxlayers.info.Info`, shape (B,)."""
        batch = len(point.x)
        found = []
        for piece in self._pieces(theta, batch, False):
            program = self.canonical.program(_rows(theta, piece), piece.stop - piece.start)
            parts = (v[piece] for v in (point.x, point.z, point.s))
            found.append([fetched(v) for v in residuals(self.geometry, program, *parts)])
        primal, dual, gap = (np.concatenate(part) for part in zip(*found, strict=True))
        return {
            "status": point.status,
            "iterations": point.iterations,
            "attempt": point.attempt,
            "primal_residual": primal,
            "dual_residual": dual,
            "gap": gap,
            "solve_time": point.seconds,
            **self.quality(point),
            # Polishing has solved the same system, for a step.
            "adjoint_residual": np.full(batch, np.nan),
        }

    def quality(self, point: Point) -> dict[str, NDArray[Any]]:
        """How far the derivative at a point can be trusted, shape (B,)."""
        batch = len(point.x)
        degenerate, residual = np.zeros(batch, dtype=bool), np.full(batch, np.nan)
        if point.derivative is not None:
            some = slice(None) if point.rows is None else point.rows
            count = batch if point.rows is None else int(point.rows.sum())
            found = quality(point.derivative, count)
            degenerate[some], residual[some] = found.degenerate, found.residual
        return {"degenerate": degenerate, "adjoint_residual": residual}

    def _solve(
        self,
        theta: Sequence[Array],
        numbers: NDArray[np.intp],
        options: Options,
        differentiable: bool,
        deadline: float | None,
    ) -> Point:
        """Solve one piece of a batch, the instances `numbers`, whatever becomes of them; without
        outputs."""
        clock, batch = [time.perf_counter()], len(numbers)
        program = self._program(theta, batch)
        clock.append(time.perf_counter())
        if batch == 0:
            solution = ConeSolution.empty(0, self.canonical.structure, program.q)
        else:
            verbose = self.settings.verbose if options.verbose is None else options.verbose
            solver, own = self.choice.solver_for(options), options.solver
            solution = _solved(solver, program, own, bool(verbose), deadline)
            take_over(solver.name, program, solution, own, deadline)
            if not options.is_loose:
                self._question(program, solution)
            retry(solver.name, program, solution, own, deadline)
        clock.append(time.perf_counter())
        derivative, rows = self._finish(program, solution, options, differentiable, numbers)
        clock.append(time.perf_counter())
        parts = ("parameters", "solver", "polish")
        times = {name: b - a for name, a, b in zip(parts, clock, clock[1:], strict=False)}
        return Point.of(solution, rows=rows, derivative=derivative, times=times)

    def _program(self, theta: Sequence[Array], batch: int) -> ConeProgram:
        """The conic programs. Those of instances with a parameter that is not finite are NaN, also
        where it has no influence."""
        program = self.canonical.program(theta, batch)
        if all_finite(theta):
            return program
        xp = namespace(program.q)
        known = reduce(and_, [xp.all(xp.isfinite(t), axis=1) for t in theta])
        return replace(program, q=xp.where(known[:, None], program.q, np.nan))

    def _question(self, program: ConeProgram, solution: ConeSolution) -> None:
        """Call almost solved what a solver calls solved, but breaks a constraint or a condition of
        optimality beside larger numbers."""
        parts = (solution.x, solution.z, solution.s, *(getattr(program, name) for name in "PqAb"))
        if not _has_large(parts):
            return
        rows = solution.solved
        points = _points(solution, rows)
        primal, dual, _ = residuals(self.geometry, _taken(program, rows), *points)
        broken = np.flatnonzero(rows)[fetched(namespace(primal).maximum(primal, dual) > BROKEN)]
        solution.status[broken] = ALMOST_SOLVED

    def _pieces(self, theta: Sequence[Array], batch: int, factored: bool) -> list[slice]:
        """The batch in pieces whose intermediate results fit into the memory allowed."""
        if batch <= 1:
            return [slice(0, batch)]
        each = self.bytes_per_instance(theta, factored)
        if self.settings.max_batch_memory is None and batch * each <= LITTLE:
            return [slice(0, batch)]
        return slices(batch, each, self._memory(theta))

    def bytes_per_instance(self, theta: Sequence[Array], factored: bool) -> float:
        """Roughly what the intermediate results of one instance of a batch take at once.

        Parameters
        ----------
        theta : sequence of array
            Parameter values, shapes (B or 1, size): of them, which vary, and where they are.
        factored : bool
            Whether a KKT system is factored, to polish or to differentiate.
        """
        structure, maps = self.canonical.structure, self.canonical
        varying = sum(
            len(f.offset)
            for f in (maps.P, maps.q, maps.A, maps.b)
            if any(len(theta[maps.parts[part][0]]) > 1 for part in f.depends_on)
        )
        each = 8.0 * (COPIES * varying + POINTS * (structure.n + 2 * structure.m))
        on_device = _is_on_device(theta)
        if on_device:
            # After each other, and what one took is free when the other begins.
            solving = self.choice.on_devices.memory_per_instance
            factor = memory_of_factor(self.geometry, on_device) if factored else 0.0
            # LPGD solves on both sides at once.
            sides = 2.0 if factored and self.settings.derivative == "lpgd" else 1.0
            return sides * (each + max(solving, factor))
        in_lanes = self.geometry.engine_for(_NUMPY) is not None
        if factored and (not in_lanes or self.settings.derivative == "smoothed"):
            each += memory_of_factor(self.geometry)
        return each

    def _memory(self, theta: Sequence[Array]) -> float:
        """Bytes that the intermediate results of a batch may take where its parameters are."""
        if self.settings.max_batch_memory is not None:
            return self.settings.max_batch_memory
        return SHARE * memory_beside(theta[0] if theta else _NUMPY)

    def _differentiate_in_pieces(
        self, point: Point, theta: Sequence[Array], pieces: Sequence[slice], options: Options
    ) -> None:
        """Give a point a derivative that is made when it is asked for."""
        own = self._has_own_derivative
        covered = np.ones(len(point.x), dtype=bool) if own else point.solved
        # Not the point, which holds what is made here: a device's memory would wait for Python to
        # find the circle.
        solution = point.take(slice(None))

        def make(number: int) -> Linearization:
            piece = pieces[number]
            numbers = np.arange(piece.start, piece.stop)
            derivative, _ = self._derivative_at(
                _rows(theta, piece), solution.take(piece), options, numbers
            )
            return derivative

        point.rows = None if covered.all() else covered
        point.derivative = Chunks([int(covered[piece].sum()) for piece in pieces], make)

    def _derivative_at(
        self,
        theta: Sequence[Array],
        solution: ConeSolution,
        options: Options,
        numbers: NDArray[np.intp],
    ) -> tuple[Linearization, NDArray[np.bool_] | None]:
        """The derivative at a solution, and the instances that it is for (None: all)."""
        program = self.canonical.program(theta, len(solution.x))
        if self._has_own_derivative:
            return self.solver.linearize(program, solution, options.solver), None
        part = _taken(program, solution.solved)
        return self._derivative(part, solution, options, numbers)

    @property
    def _has_own_derivative(self) -> bool:
        """Whether the derivative is the one that the solver brings."""
        return self.solver.has_derivative and self.settings.derivative == "exact"

    def _finish(
        self,
        program: ConeProgram,
        solution: ConeSolution,
        options: Options,
        differentiable: bool,
        numbers: NDArray[np.intp],
    ) -> tuple[Linearization | None, NDArray[np.bool_] | None]:
        """Polish what is to be polished, in place, and make the derivative: it, and the instances
        that it is for (None: all)."""
        own = differentiable and self._has_own_derivative
        rows = solution.status == ALMOST_SOLVED
        if options.polish and not own:
            rows |= solution.solved
        part = system = None
        if rows.any():
            part = _taken(program, rows)
            residual, system = self._polish(part, solution, rows)
            if not residual.max() <= ROUGH:
                if not options.is_loose:
                    solution.status[solution.solved & (residual > BROKEN)] = ALMOST_SOLVED
                rough = solution.solved & (residual > ROUGH)
                if differentiable and rough.any():
                    warn_of_gradients(numbers[rough], len(numbers), float(residual[rough].max()))
        if not differentiable:
            return None, None
        if own:
            return self.solver.linearize(program, solution, options.solver), None
        if part is None or (rows != solution.solved).any():
            part, system = _taken(program, solution.solved), None
        return self._derivative(part, solution, options, numbers, system)

    def _polish(
        self, part: ConeProgram, solution: ConeSolution, rows: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], System | None]:
        """Polish the instances `rows`, at least one, in place, and judge those that are almost
        solved: the residuals, zero where nothing was polished, and the last factors. `part` are
        the programs of these instances."""
        point = polish(self.geometry, part, *_points(solution, rows))
        residual = point.residual
        if rows.all():
            solution.x, solution.z, solution.s = point.x, point.z, point.s
        else:
            for name in ("x", "z", "s"):
                put(getattr(solution, name), rows, getattr(point, name))
            residual = np.zeros(len(rows))
            residual[rows] = point.residual
        almost = solution.status[rows] == ALMOST_SOLVED
        if almost.any():
            xp = namespace(part.q)
            size = xp.maximum(largest(part.q), largest(part.b))
            bounded = fetched(largest(point.x) <= ABSURD * xp.where(size < 1.0, 1.0, size))
            certified = (point.residual <= CERTIFIED) & bounded
            solution.status[np.flatnonzero(rows)[certified & almost]] = SOLVED
        return residual, point.system

    def _derivative(
        self,
        part: ConeProgram,
        solution: ConeSolution,
        options: Options,
        numbers: NDArray[np.intp],
        system: System | None = None,
    ) -> tuple[Linearization, NDArray[np.bool_] | None]:
        """The library's own derivative, and the instances that it is for (None: all), namely
        those that are solved: `part` are their programs."""
        rows = solution.solved
        x, z, s = _points(solution, rows)
        some = None if rows.all() else rows
        smoothing = self.settings.smoothing
        if self.settings.derivative == "exact":
            return ImplicitDerivative(self.geometry, part, x, z, s, system), some
        assert smoothing is not None
        if self.settings.derivative == "lpgd":

            def resolve(program: ConeProgram) -> ConeSolution:
                return self._resolve(program, options)

            named = numbers[rows]
            lpgd = LpgdDerivative(self.geometry, part, x, z, s, smoothing, resolve, named)
            return lpgd, some
        path = central_point(self.geometry, part, x, z, s, smoothing)
        if not path.converged.all():
            warn_of_path(numbers[rows][~path.converged], len(rows), smoothing)
        points = (path.x, path.z, path.s)
        return SmoothedDerivative(self.geometry, part, *points, smoothing), some

    def _resolve(self, program: ConeProgram, options: Options) -> ConeSolution:
        """A program as accurately as can be, for differences of solutions."""
        deadline = options.deadline()
        solver = self.choice.solver_for(options)
        solution = _solved(solver, program, options.solver, False, deadline)
        take_over(solver.name, program, solution, options.solver, deadline)
        self._question(program, solution)
        retry(solver.name, program, solution, options.solver, deadline)
        rows = solution.solved | (solution.status == ALMOST_SOLVED)
        if rows.any():
            self._polish(_taken(program, rows), solution, rows)
        return solution


def _is_on_device(theta: Sequence[Array]) -> bool:
    return bool(theta) and not is_host(theta[0])


def _solved(
    solver: Solver,
    program: ConeProgram,
    options: Mapping[str, Any],
    verbose: bool,
    deadline: float | None,
) -> ConeSolution:
    """What a solver finds, beside the data, wherever it works."""
    if is_host(program.q) or solver.takes_tensors:
        return solver.solve(program, options, verbose, deadline)
    solution = solver.solve(program.on_host(), options, verbose, deadline)
    for name in ("x", "z", "s"):
        setattr(solution, name, sent(getattr(solution, name), program.q))
    return solution


def _has_large(arrays: Sequence[Array]) -> bool:
    """Whether there is a number larger than `LARGE`. NaN, of instances that are not solved, is
    not."""
    if not is_host(arrays[0]):
        xp = namespace(arrays[0])
        return bool(xp.any(xp.stack([xp.any(xp.abs(a) > LARGE) for a in arrays])))
    # The sum of squares is the cheapest bound.
    return not all(np.vdot(a, a) <= LARGE**2 for a in arrays) and any(
        (np.abs(a) > LARGE).any() for a in arrays
    )


def _rows(theta: Sequence[Array], piece: slice) -> list[Array]:
    """The parameter values of a piece of the batch."""
    return [t if len(t) == 1 else t[piece] for t in theta]


def _stacked(points: Sequence[Point]) -> Point:
    """Solutions of the pieces of a batch as one, without their derivatives."""
    names = [f.name for f in fields(ConeSolution)]
    joined: dict[str, Any] = {}
    for name in names:
        parts = [getattr(p, name) for p in points]
        joined[name] = namespace(parts[0]).concat(parts)
    times = {name: sum(p.times[name] for p in points) for name in points[0].times}
    return Point(**joined, times=times)


def _taken(program: ConeProgram, rows: NDArray[np.bool_]) -> ConeProgram:
    """The instances `rows` of a program; copies, unless they are all."""
    return program if rows.all() else program.take(np.flatnonzero(rows))


def _points(solution: ConeSolution, rows: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """The points of the instances `rows`; copies, unless they are all."""
    if rows.all():
        return solution.x, solution.z, solution.s
    return take(solution.x, rows), take(solution.z, rows), take(solution.s, rows)
