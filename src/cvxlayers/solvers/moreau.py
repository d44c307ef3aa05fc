"""MOREAU: an interior-point method in compiled code for batches of one structure. Optional.

Its own interface is used, because CVXPY's hands some constraints over beside A, as cones of x
itself. Our form has every constraint in A (`canonicalize`), and Moreau's cones of the slack take
it as it is: zero, nonneg, second-order, PSD (svec, upper triangle), exponential, power, in this
order of rows (`moreau_cpu._cpu.cones_to_cpu` of Moreau 0.4.1).

What was seen with Moreau 0.4.1, and what is done about it:

* Left to itself (``solver="auto"``) it solves small quadratic programs by an active-set method
  with a primal tolerance of 1e-6. On 480 of them with a singular P and rows of sizes 1e-2 to 1e2 it
  called 434 solved, 78 of these with residuals above 1e-6 and up to 1.2. The interior-point method
  is asked for by name, at 1e-8: 480 solved, to 2e-8.
* It judges certificates of infeasibility relative to their own size, as Clarabel does, and calls
  feasible problems with large data infeasible, or unbounded: 13 of 480 with values of 1e5. Only
  what is proven counts (`certificates`); the rest is left to Clarabel (`retries`).
* A bound of 1e20 counts as a number, and leads to wrong verdicts: see `csr_form.bounded`.
* Values of P shared by the batch beside values of A that are not, or the reverse, are an error.
* A compiled solver belongs to its process: its threads do not survive a fork, and a solve in the
  child waits for them forever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvxlayers.parallel import for_each, workers
from cvxlayers.program import CONES, ConeDims, ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import Solver, seconds_left
from cvxlayers.solvers.certificates import demand_proof
from cvxlayers.solvers.clarabel import OPTIONS
from cvxlayers.solvers.csr_form import CsrForm, bounded, restore_bounds
from cvxlayers.status import Status

__all__ = ["Moreau"]

Array = NDArray[np.float64]

# By the numbers of `moreau.SolverStatus`.
_STATUSES = {
    0: Status.NUMERICAL_ERROR,  # unsolved
    1: Status.SOLVED,
    2: Status.PRIMAL_INFEASIBLE,
    3: Status.DUAL_INFEASIBLE,
    4: Status.ALMOST_SOLVED,
    # A certificate at reduced accuracy proves nothing: the instance counts as not solved.
    5: Status.NUMERICAL_ERROR,
    6: Status.NUMERICAL_ERROR,
    7: Status.MAX_ITERATIONS,
    8: Status.TIME_LIMIT,
    9: Status.NUMERICAL_ERROR,
    10: Status.INSUFFICIENT_PROGRESS,
    11: Status.INTERRUPTED,
}
_HAS_POINT = (int(Status.SOLVED), int(Status.ALMOST_SOLVED))

_DEFAULTS = {"device": "cpu", "tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8}
# Stored entries of the instances that are solved in one call: one to two seconds' worth, after
# which Ctrl-C and the time limit are looked at.
WORK = 2_000_000
# Under a time limit the next call is made twice as large if the last one took less than this part
# of the time left.
SMALL = 0.05
# How many compiled solvers a layer keeps: batches come in one or two sizes.
KEPT = 4


class Moreau(Solver):
    """Moreau, https://github.com/moreau-project/moreau, by its own interface.

    Notes
    -----
    `device` is ``"cpu"``, ``"cuda"`` (with the package's CUDA backend; untested here) or
    ``"auto"``, which is Moreau's choice. Its threads are its own, one per processor, whatever
    ``CVXLAYERS_NUM_THREADS`` says; the answer for an instance does not depend on them.

    Raises
    ------
    ImportError
        The package is not installed.
    """

    name = "MOREAU"
    is_for_devices = True
    cones = CONES
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    iteration_limit = "max_iter"
    #: Those of its settings as a whole. The other options are the interior-point method's.
    general = frozenset({"device", "device_id", "max_iter"})
    options = OPTIONS | frozenset(
        {
            *general,
            "cudss_ir_steps",
            "cudss_pivot_enable",
            "max_lu_nnz",
            "chordal_decomposition_enable",
            "chordal_decomposition_merge_method",
        }
    )

    def __init__(self, structure: ProblemStructure):
        super().__init__(structure)
        _package()
        self._form = CsrForm(structure)
        # Compiled solvers by what they were made for. One is taken out while it is at work.
        self._kept: dict[tuple[Any, ...], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Moreau, (self.structure,)

    @classmethod
    def refusal(cls, structure: ProblemStructure) -> str | None:
        if structure.n == 0:
            return "MOREAU does not take a problem without variables"
        return super().refusal(structure)

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        device = _settings(options, 1, verbose).device
        program, infinite = bounded(program)
        solution = ConeSolution.empty(program.batch, self.structure)
        finite = program.is_finite()
        solution.status[~finite] = Status.NUMERICAL_ERROR
        rows = np.flatnonzero(finite)
        size = self._most(len(rows), device, verbose)
        now = size if deadline is None else min(size, workers())

        def solve_all(_: int) -> None:
            nonlocal now
            begin = 0
            while begin < len(rows):
                left, start = seconds_left(deadline), time.perf_counter()
                if left is not None and left <= 0.0:  # Moreau refuses zero
                    solution.status[rows[begin:]] = Status.TIME_LIMIT
                    return
                part = rows[begin : begin + now]
                self._solve(program, part, solution, options, verbose, left)
                begin += len(part)
                if left is not None and time.perf_counter() - start < SMALL * left:
                    now = min(2 * now, size)

        # LAPACK's eigenvalues, of semidefinite cones, are computed in all of Moreau's threads.
        psd = bool(self.structure.dims.psd)
        for_each(1, lambda: solve_all, apart=psd, blas=psd)
        demand_proof(program, solution)
        without = ~np.isin(solution.status, _HAS_POINT)
        for point in (solution.x, solution.z, solution.s):
            point[without] = np.nan
        restore_bounds(solution, infinite)
        return solution

    def _most(self, batch: int, device: str, verbose: bool) -> int:
        """How many instances are solved in one call."""
        if verbose:
            return 1  # the instances of one call print at the same time
        if device != "cpu":
            return max(batch, 1)
        entries = self.structure.P.nnz + self.structure.A.nnz + self.structure.n
        most = max(WORK // entries, 1)
        # In equal parts, so that one compiled solver serves, or two do.
        parts = max(-(-batch // most), 1)
        return max(-(-batch // parts), 1)

    def _solve(
        self,
        program: ConeProgram,
        rows: NDArray[np.intp],
        solution: ConeSolution,
        options: Mapping[str, Any],
        verbose: bool,
        left: float | None,
    ) -> None:
        """Solve the instances `rows` in one call; certificates are left in place of a point."""
        start, count = time.perf_counter(), len(rows)
        part = program.take(rows)
        P, A = part.P[:, self._form.P.source], part.A[:, self._form.A.source]
        if len(P) == len(A) == 1:
            P, A = P[0], A[0]
        else:
            P, A = _expanded(P, count), _expanded(A, count)
        key = (os.getpid(), count, verbose, *sorted(options.items()))
        # What has a time limit of its own is made for one call.
        compiled = self._kept.pop(key, None) if left is None else None
        if compiled is None:
            compiled = self._compiled(_settings(options, count, verbose, left))
        compiled.setup(P, A)
        answer = compiled.solve(
            _expanded(part.q, count), _expanded(part.b[:, self._form.order], count)
        )
        info = compiled.info
        solution.status[rows] = [
            _STATUSES.get(int(status), Status.NUMERICAL_ERROR) for status in info.status
        ]
        solution.iterations[rows] = np.asarray(info.iterations)
        solution.x[rows] = np.asarray(answer.x)
        solution.z[rows] = np.asarray(answer.z)[:, self._form.position]
        solution.s[rows] = np.asarray(answer.s)[:, self._form.position]
        if left is None:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = compiled
        # What the instances took together is all that is known.
        solution.seconds[rows] = (time.perf_counter() - start) / count

    def _compiled(self, settings: Any) -> Any:
        form = self._form
        return _package().CompiledSolver(
            self.structure.n,
            self.structure.m,
            form.P.indptr,
            form.P.indices,
            form.A.indptr,
            form.A.indices,
            _cones(form.dims),
            settings,
        )


def _expanded(values: Array, count: int) -> Array:
    return np.repeat(values, count, axis=0) if len(values) == 1 else values


def _package() -> Any:
    try:
        import moreau
    except ImportError as error:
        message = (
            f"solver='MOREAU': the package moreau cannot be imported ({error}); install it with "
            "pip install 'moreau>=0.4.1', or leave solver=None"
        )
        raise ImportError(message) from error
    return moreau


def _settings(
    options: Mapping[str, Any], batch: int, verbose: bool, time_limit: float | None = None
) -> Any:
    moreau = _package()
    named = {**_DEFAULTS, **options}
    general = {name: value for name, value in named.items() if name in Moreau.general}
    own = {name: value for name, value in named.items() if name not in Moreau.general}
    if time_limit is not None:
        general["time_limit"] = time_limit
    unknown = own.keys() - moreau.IPMSettings.model_fields.keys()
    if unknown:  # which pydantic would ignore
        raise ValueError(f"solver_args: Moreau has no option {', '.join(map(repr, unknown))}")
    try:
        settings = moreau.Settings(
            solver="ipm",
            batch_size=batch,
            verbose=verbose,
            ipm_settings=moreau.IPMSettings(**own),
            **general,
        )
    except ValueError as error:
        # That of pydantic names the option, what was expected and what came.
        message = f"solver_args: Moreau does not take {dict(options)} ({error})"
        raise ValueError(message) from error
    if settings.device != "auto" and not moreau.device_available(settings.device):
        reason = moreau.device_error(settings.device)
        message = (
            f"solver_args['device']: Moreau has no backend for {settings.device!r} here"
            f"{f' ({reason})' if reason else ''}; install it with pip install 'moreau[cuda]', or "
            "leave it at 'cpu'"
        )
        raise ValueError(message)
    return settings


def _cones(dims: ConeDims) -> Any:
    return _package().Cones(
        num_zero_cones=dims.zero,
        num_nonneg_cones=dims.nonneg,
        so_cone_dims=list(dims.soc),
        psd_dims=list(dims.psd),
        num_exp_cones=dims.exp,
        power_alphas=[float(np.asarray(alpha)) for alpha in dims.pow],
    )
