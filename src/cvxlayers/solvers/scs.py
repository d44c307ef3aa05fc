"""SCS: operator splitting, every cone, P native.

Made for large problems of moderate accuracy. For gradients the solution is polished afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from cvxlayers.parallel import for_each
from cvxlayers.program import CONES, ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import Solver, seconds_left
from cvxlayers.solvers.scs_form import ScsForm, status_of
from cvxlayers.status import Status

__all__ = ["SCS", "is_rejection", "scs_settings"]

# The defaults of SCS (1e-4) are too loose to differentiate at. On random programs over every cone,
# linear and quadratic, 1e-8 was always reached, and cost 0 to 40 % more iterations than 1e-6 (at
# most 375). At 1e-10 one linear program in forty ran into the limit of 100,000 iterations.
DEFAULTS = {"eps_abs": 1e-8, "eps_rel": 1e-8}


class SCS(Solver):
    """O'Donoghue, *Operator splitting for a homogeneous embedding of the linear complementarity
    problem*, SIAM J. Optim. 31(3), 2021.
    """

    name = "SCS"
    cones = CONES
    options = frozenset(
        {
            "normalize",
            "scale",
            "adaptive_scale",
            "rho_x",
            "max_iters",
            "eps_abs",
            "eps_rel",
            "eps_infeas",
            "alpha",
            "time_limit_secs",
            "acceleration_lookback",
            "acceleration_interval",
            "acceleration_type_1",
            "acceleration_regularization",
            "acceleration_relaxation",
            "linear_solver",
            "write_data_filename",
            "log_csv_filename",
        }
    )
    tolerances = ("eps_abs", "eps_rel")

    def __init__(self, structure: ProblemStructure):
        super().__init__(structure)
        self._form = ScsForm(structure, self.name)

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        import scs

        settings = scs_settings(options, verbose)
        form = self._form
        solution = ConeSolution.empty(program.batch, self.structure)

        def body(i: int) -> None:
            start, left = time.perf_counter(), seconds_left(deadline)
            limits = {} if left is None else {"time_limit_secs": left}
            data = form.instance(program, i)
            if not data.is_finite:
                solution.status[i] = Status.NUMERICAL_ERROR
                return
            if left is not None and left <= 0.0:  # SCS takes zero for no limit
                solution.status[i] = Status.TIME_LIMIT
                return
            named = {"P": data.P, "A": data.A, "b": data.b, "c": data.q}
            try:
                solver = scs.SCS(named, data.cones, **{**settings, **limits})
                result = solver.solve(warm_start=False)
            except ValueError as error:
                if not is_rejection(error):
                    raise
                solution.status[i] = Status.NUMERICAL_ERROR
                return
            status = status_of(result, data)
            if status is Status.INTERRUPTED:
                # SCS has taken the Ctrl-C that was meant for Python.
                raise KeyboardInterrupt
            solution.status[i] = status
            solution.iterations[i] = result["info"]["iter"]
            solution.seconds[i] = time.perf_counter() - start
            if status in (Status.SOLVED, Status.ALMOST_SOLVED):
                solution.x[i] = result["x"]
                solution.z[i], solution.s[i] = form.restore(program, i, result["y"], result["s"])

        def start_worker() -> Callable[[int], None]:
            return body

        # Only the eigenvalues of semidefinite cones are LAPACK's.
        for_each(program.batch, start_worker, blas=bool(self.structure.dims.psd))
        return solution


def is_rejection(error: ValueError) -> bool:
    """Whether SCS refused the data of an instance, such as a P that is not convex.

    Its settings have been checked by then (`scs_settings`), and its message says no more.
    """
    return "ScsWork" in str(error)


def scs_settings(options: Mapping[str, Any], verbose: bool) -> dict[str, Any]:
    """All settings for SCS, checked on a problem of size one before any instance is solved.

    Raises
    ------
    ValueError
        SCS does not have, or does not take, one of them.
    """
    import scs

    settings = {**DEFAULTS, "verbose": verbose, **options}
    if hasattr(scs, "LinearSolver"):  # SCS 3.3
        # Its automatic choice is MKL with threads of its own. Instances are what runs in parallel
        # here, and the bundled factorisation is the same on every machine.
        settings.setdefault("linear_solver", "qdldl")
    one = sp.csc_matrix(np.ones((1, 1)))
    data = {"A": one, "b": np.ones(1), "c": np.ones(1)}
    quiet = {"verbose": False, "write_data_filename": None, "log_csv_filename": None}
    try:
        scs.SCS(data, {"l": 1}, **{**settings, **quiet})
    except (TypeError, ValueError, ImportError) as error:
        message = f"solver_args: SCS does not take {dict(options)} ({error})"
        raise ValueError(message) from error
    return settings
