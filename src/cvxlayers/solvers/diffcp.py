"""diffcp: its forward solve and its own derivatives, those that cvxpylayers has by default.

For comparison, and for the LPGD modes. Its implicit modes solve for the derivative by an
iteration that can stop early without a word; the library's own derivative factors instead.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.parallel import for_each
from cvxlayers.program import CONES, ConeProgram, ConeSolution, ProblemStructure
from cvxlayers.solvers.base import Solver, seconds_left
from cvxlayers.solvers.diffcp_derivative import DiffcpDerivative
from cvxlayers.solvers.diffcp_program import DiffcpProgram, lift
from cvxlayers.solvers.diffcp_settings import (
    OWN_OPTIONS,
    SOLVER_OPTIONS,
    DiffcpSettings,
    common_options,
)
from cvxlayers.solvers.scs_form import ScsForm
from cvxlayers.status import Status

__all__ = ["Diffcp"]


class Diffcp(Solver):
    """Agrawal, Barratt, Boyd, Busseti & Moursi, *Differentiating through a cone program*,
    arXiv 1904.09043. LPGD: Paulus, Martius & Musil, arXiv 2407.05920.

    Notes
    -----
    Its own options are `solve_method` (SCS, Clarabel or ECOS; default SCS), `mode` (lsqr, lsmr,
    dense, lpgd, lpgd_left or lpgd_right; default lsqr) and, for the LPGD modes,
    `derivative_kwargs`, a dict with `tau` and `rho`. All others are the solve method's, under its
    own names. `n_jobs_forward` and `n_jobs_backward` are understood and have no effect: instances
    run on this library's threads.
    """

    name = "DIFFCP"
    cones = CONES - {"pow"}
    options = OWN_OPTIONS | SOLVER_OPTIONS
    has_derivative = True

    def __init__(self, structure: ProblemStructure):
        super().__init__(structure)
        self._form = ScsForm(structure, self.name)

    @classmethod
    def common_options(cls, eps: float | None, max_iters: int | None) -> dict[str, Any]:
        return common_options(eps, max_iters)

    def solve(
        self,
        program: ConeProgram,
        options: Mapping[str, Any],
        verbose: bool = False,
        deadline: float | None = None,
    ) -> ConeSolution:
        settings = self._settings(options, verbose)
        solution = ConeSolution.empty(program.batch, self.structure)
        form = self._form

        # The quadratic stays quadratic here wherever it can: lifted, the same tolerance leaves an
        # error of its square root in x.
        lifted = settings.solve_method == "ECOS"

        def body(i: int) -> None:
            start, left = time.perf_counter(), seconds_left(deadline)
            data = self._program(program, i, lifted)
            if data is None or not data.is_convex:
                solution.status[i] = Status.NUMERICAL_ERROR
                return
            if left is not None and left <= 0.0:
                solution.status[i] = Status.TIME_LIMIT
                return
            status, result = settings.call(
                data.A, data.b, data.c, data.P, data.cones, time_limit=left
            )
            solution.status[i] = status
            solution.seconds[i] = time.perf_counter() - start
            solution.iterations[i] = result["info"]["iter"] if result else 0
            if status in (Status.SOLVED, Status.ALMOST_SOLVED):
                solution.x[i] = result["x"][: self.structure.n]
                y, s = data.drop(result["y"]), data.drop(result["s"])
                solution.z[i], solution.s[i] = form.restore(program, i, y, s)

        with warnings.catch_warnings():
            # "Solved/Inaccurate." is a status here.
            warnings.filterwarnings("ignore", message="Solved/Inaccurate")
            for_each(program.batch, lambda: body)
        return solution

    def linearize(
        self, program: ConeProgram, solution: ConeSolution, options: Mapping[str, Any]
    ) -> DiffcpDerivative:
        settings = self._settings(options, verbose=False)

        # The implicit modes refuse a quadratic.
        lifted = settings.solve_method == "ECOS" or not settings.is_lpgd

        def instance(i: int) -> DiffcpProgram | None:
            return self._program(program, i, lifted)

        return DiffcpDerivative(self._form, program, solution, settings, instance)

    def _settings(self, options: Mapping[str, Any], verbose: bool) -> DiffcpSettings:
        settings = DiffcpSettings.parse(options, verbose)
        largest = max(self.structure.dims.psd, default=0)
        if settings.solve_method == "ECOS" and largest:
            message = "diffcp's solve method ECOS has no PSD cone; choose 'solve_method': 'SCS'"
            raise UnsupportedProblemError(message)
        if settings.solve_method == "Clarabel" and largest > 3:
            # diffcp 1.1.9, permute_psd_rows, applies the inverse of the permutation that it means,
            # which is the same up to order 3 only. It then solves another problem.
            message = (
                "diffcp's solve method Clarabel is wrong for PSD cones of order 4 and more, and "
                f"this problem has one of order {largest}; choose 'solve_method': 'SCS', or the "
                "solver CLARABEL"
            )
            raise UnsupportedProblemError(message)
        return settings

    def _program(self, program: ConeProgram, i: int, lifted: bool) -> DiffcpProgram | None:
        """Instance i as diffcp takes it, or None if its data are not finite."""
        data = self._form.instance(program, i)
        if not data.is_finite:
            return None
        if lifted:
            return lift(data)
        P = data.P if data.P.nnz else None
        return DiffcpProgram(data.A, data.b, data.q, P, data.cones, len(data.q))
