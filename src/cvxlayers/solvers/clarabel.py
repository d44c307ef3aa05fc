"""Clarabel: interior point, every cone, P native. For single and large problems, and what the
others fail at.

A fresh solver is made for every instance. Clarabel can update the data of an existing one, but it
keeps the equilibration of the first data then, and an answer would depend on its neighbours.

Clarabel judges a certificate of infeasibility relative to the size of the certificate, so that it
calls feasible problems infeasible when their data are large: half of the projections of vectors of
size 1e4 onto the simplex (see `certificates`). An infeasible instance is therefore tried again:
with tighter tolerances for certificates, and with b and q scaled to size one. That is the same
problem, because cones are homogeneous: (σb, σq) has the solution σ(x, z, s); small data are scaled
up from the start. If it still counts as infeasible, the
certificate must prove it for all points of a reasonable size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.parallel import for_each, is_stopped
from cvxlayers.program import CONES, ConeDims, ConeProgram, ConeSolution
from cvxlayers.solvers.base import Solver, seconds_left
from cvxlayers.solvers.certificates import is_proof, power_of
from cvxlayers.status import Status

__all__ = ["OPTIONS", "Clarabel"]

Array = NDArray[np.float64]

NUMERICAL_ERROR, TIME_LIMIT = int(Status.NUMERICAL_ERROR), int(Status.TIME_LIMIT)
STRICT = {"tol_infeas_abs": 1e-14, "tol_infeas_rel": 1e-14}
DOUBTFUL = ("PrimalInfeasible", "DualInfeasible", "AlmostPrimalInfeasible", "AlmostDualInfeasible")
ALMOST_SOLVED = int(Status.ALMOST_SOLVED)
HAS_POINT = (int(Status.SOLVED), ALMOST_SOLVED)
# Data below this size are scaled up before the solve.
TINY = 1e-2
# From this number of stored entries on a solve can last so long that Ctrl-C should reach it.
LONG = 20_000

_STATUSES = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.ALMOST_SOLVED,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    # A certificate at reduced accuracy proves nothing: the instance counts as not solved.
    "AlmostPrimalInfeasible": Status.NUMERICAL_ERROR,
    "AlmostDualInfeasible": Status.NUMERICAL_ERROR,
    "MaxIterations": Status.MAX_ITERATIONS,
    "MaxTime": Status.TIME_LIMIT,
    "NumericalError": Status.NUMERICAL_ERROR,
    "InsufficientProgress": Status.INSUFFICIENT_PROGRESS,
    "CallbackTerminated": Status.INTERRUPTED,
}
_STATUS = {name: int(status) for name, status in _STATUSES.items()}


#: Its options that others have taken over from it, under the same names.
OPTIONS = frozenset(
    {
        "max_iter",
        "max_step_fraction",
        "tol_gap_abs",
        "tol_gap_rel",
        "tol_feas",
        "tol_infeas_abs",
        "tol_infeas_rel",
        "tol_ktratio",
        "reduced_tol_gap_abs",
        "reduced_tol_gap_rel",
        "reduced_tol_feas",
        "reduced_tol_infeas_abs",
        "reduced_tol_infeas_rel",
        "reduced_tol_ktratio",
        "equilibrate_enable",
        "direct_solve_method",
    }
)


class Clarabel(Solver):
    """Goulart & Chen, *Clarabel: an interior-point solver for conic programs with quadratic
    objectives*, arXiv 2405.12762."""

    name = "CLARABEL"
    cones = CONES
    options = OPTIONS | frozenset(
        {
            "equilibrate_max_iter",
            "equilibrate_min_scaling",
            "equilibrate_max_scaling",
            "linesearch_backtrack_step",
            "min_switch_step_length",
            "min_terminate_step_length",
            "max_threads",
            "direct_kkt_solver",
            "static_regularization_enable",
            "static_regularization_constant",
            "static_regularization_proportional",
            "dynamic_regularization_enable",
            "dynamic_regularization_eps",
            "dynamic_regularization_delta",
            "iterative_refinement_enable",
            "iterative_refinement_reltol",
            "iterative_refinement_abstol",
            "iterative_refinement_max_iter",
            "iterative_refinement_stop_ratio",
            "presolve_enable",
            "input_sparse_dropzeros",
            "chordal_decomposition_enable",
            "chordal_decomposition_merge_method",
            "chordal_decomposition_compact",
            "chordal_decomposition_complete_dual",
            "pardiso_iparm",
            "pardiso_verbose",
        }
    )

    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    iteration_limit = "max_iter"

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        settings = _settings(options, verbose)
        cones = _cones(self.structure.dims)
        is_long = self.structure.P.nnz + self.structure.A.nnz >= LONG
        solution = ConeSolution.empty(program.batch, self.structure)
        # Clarabel takes a NaN in b for an infinite bound.
        finite = program.is_finite()

        def start_worker() -> Callable[[int], None]:
            # The matrices are made once per thread; each instance only exchanges their values.
            P = self.structure.P.matrix(program.P[0])
            A = self.structure.A.matrix(program.A[0])
            # A time limit is written into the settings: each thread has its own then.
            own = settings if deadline is None else _settings(options, verbose)
            stopped = is_stopped() if is_long else None
            solver = _Caller(cones, own, options, verbose, deadline, stopped)

            def body(i: int) -> None:
                if not finite[i]:
                    return
                start = time.perf_counter()
                P.data = program.P[i if len(program.P) > 1 else 0]
                A.data = program.A[i if len(program.A) > 1 else 0]
                q = program.q[i if len(program.q) > 1 else 0]
                b = program.b[i if len(program.b) > 1 else 0]
                if tiny is not None and tiny[i]:
                    units[i] = _power_of_two(sizes[i])
                    q, b = q / units[i], b / units[i]
                result = solver(P, q, A, b)
                if doubts and result is not None and str(result.status) in DOUBTFUL:
                    result, scales[i] = _second_try(solver, P, q, A, b, result, power)
                results[i] = result
                seconds[i] = time.perf_counter() - start

            return body

        power = power_of(self.structure.dims)
        # Whoever sets the tolerances for certificates knows what they mean.
        doubts = not any(name.startswith("tol_infeas") for name in options)
        results: list[Any] = [None] * program.batch
        seconds = [0.0] * program.batch
        scales: dict[int, float | None] = {}
        # Tolerances are absolute below one. Small data are solved in units of their own size.
        sizes = np.maximum(
            np.abs(program.q).max(axis=1, initial=0.0), np.abs(program.b).max(axis=1, initial=0.0)
        )
        tiny = (sizes < TINY) & (sizes > 0.0)
        units: dict[int, float] = {}
        if not tiny.any():
            tiny = None
        elif len(tiny) < program.batch:
            sizes, tiny = (np.repeat(values, program.batch) for values in (sizes, tiny))
        # It calls BLAS for the eigenvalues of semidefinite cones alone.
        for_each(program.batch, start_worker, apart=is_long, blas=bool(self.structure.dims.psd))
        # Lists become arrays for the whole batch at once: one by one it takes as long as a small
        # solve.
        statuses = [
            _STATUS.get(str(result.status), NUMERICAL_ERROR) if result else NUMERICAL_ERROR
            for result in results
        ]
        if deadline is not None:
            for i, result in enumerate(results):
                if result is None and finite[i]:
                    statuses[i] = TIME_LIMIT
        for i, sigma in scales.items():
            if sigma is None:  # no proof
                statuses[i] = NUMERICAL_ERROR
            elif sigma != 1.0:
                # Solved to the tolerance in other units: the polish has to certify it in these.
                statuses[i] = ALMOST_SOLVED
        solution.status[:] = statuses
        solution.seconds[:] = seconds
        solution.iterations[:] = [result.iterations if result else 0 for result in results]
        rows = [i for i, status in enumerate(statuses) if status in HAS_POINT]
        if rows:
            place = slice(None) if len(rows) == program.batch else rows
            solution.x[place] = [results[i].x for i in rows]
            solution.z[place] = [results[i].z for i in rows]
            solution.s[place] = [results[i].s for i in rows]
        for factors in (scales, units):
            for i, sigma in factors.items():
                if sigma is not None:
                    for point in (solution.x, solution.z, solution.s):
                        point[i] *= sigma
        return solution


class _Caller:
    """Calls of Clarabel from one thread.

    Parameters
    ----------
    cones : list
    settings : clarabel.DefaultSettings
    options, verbose
        What the settings were made of.
    deadline : float, optional
    stopped : callable, optional
        Asked in every iteration whether to end.
    """

    def __init__(
        self,
        cones: list[Any],
        settings: Any,
        options: Mapping[str, Any],
        verbose: bool,
        deadline: float | None,
        stopped: Callable[[], bool] | None,
    ):
        self._cones, self._deadline, self._stopped = cones, deadline, stopped
        self._settings, self._options, self._verbose = settings, options, verbose

    def __call__(self, P: Any, q: Array, A: Any, b: Array, strict: bool = False) -> Any:
        """The result, or None after the deadline."""
        import clarabel

        settings = self._settings
        if strict:
            settings = _settings({**self._options, **STRICT}, self._verbose)
        left = seconds_left(self._deadline)
        if left is not None:
            if left <= 0.0:
                return None
            settings.time_limit = left
        solver = clarabel.DefaultSolver(P, q, A, b, self._cones, settings)
        if self._stopped is not None:
            stopped = self._stopped
            solver.set_termination_callback(lambda _: stopped())
        return solver.solve()


def _second_try(
    solver: _Caller, P: Any, q: Array, A: Any, b: Array, first: Any, power: int
) -> tuple[Any, float | None]:
    """The result to use in place of an infeasible one, and the factor that its point has to be
    multiplied by: None if the certificate proves nothing."""
    second = solver(P, q, A, b, strict=True)
    if second is None or str(second.status) == "Solved":
        return second, 1.0
    sigma = _power_of_two(max(np.abs(q).max(initial=0), np.abs(b).max(initial=0)))
    scaled = solver(P, q / sigma, A, b / sigma, strict=True)
    if scaled is None or str(scaled.status) == "Solved":
        return scaled, sigma
    for result in (second, scaled, first):
        if str(result.status) in DOUBTFUL[:2] and _proves(result, P, q, A, b, power):
            return result, 1.0
    return first, None


def _proves(result: Any, P: Any, q: Array, A: Any, b: Array, power: int) -> bool:
    """Whether the certificate that a result is holds up."""
    x, z, s = (np.asarray(part) for part in (result.x, result.z, result.s))
    primal = str(result.status) == "PrimalInfeasible"
    return is_proof(None if primal else x, z, s, P, q, A, b, power)


def _power_of_two(size: float) -> float:
    """The power of two nearest to a positive number: scaling by it does not round."""
    return float(2.0 ** np.round(np.log2(size))) if size > 0 else 1.0


def _settings(options: Mapping[str, Any], verbose: bool) -> Any:
    import clarabel

    settings = clarabel.DefaultSettings()
    settings.verbose = verbose
    # One thread per solve: instances are what runs in parallel, and a single sparse problem with
    # n = m = 20,000 was no faster with two.
    settings.max_threads = 1
    for name, value in options.items():
        try:
            setattr(settings, name, value)
        except (TypeError, OverflowError) as error:
            message = f"solver_args[{name!r}]: Clarabel does not take {value!r} here ({error})"
            raise ValueError(message) from error
    return settings


def _cones(dims: ConeDims) -> list[Any]:
    import clarabel

    cones: list[Any] = []
    if dims.zero:
        cones.append(clarabel.ZeroConeT(dims.zero))
    if dims.nonneg:
        cones.append(clarabel.NonnegativeConeT(dims.nonneg))
    cones += [clarabel.SecondOrderConeT(q) for q in dims.soc]
    cones += [clarabel.PSDTriangleConeT(k) for k in dims.psd]
    cones += [clarabel.ExponentialConeT() for _ in range(dims.exp)]
    cones += [clarabel.PowerConeT(float(np.asarray(alpha))) for alpha in dims.pow]
    return cones
