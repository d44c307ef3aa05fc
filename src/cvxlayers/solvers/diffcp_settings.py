"""The options of diffcp and of the solvers that it calls, and the call."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import scipy.sparse as sp

from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.scs import SCS, is_rejection, scs_settings
from cvxlayers.solvers.scs_form import ScsInstance, status_of
from cvxlayers.status import Status

__all__ = ["OWN_OPTIONS", "SOLVER_OPTIONS", "DiffcpSettings", "common_options"]

#: Options that are not the solve method's.
OWN_OPTIONS = frozenset(
    {"solve_method", "mode", "derivative_kwargs", "n_jobs_forward", "n_jobs_backward"}
)
_ECOS = frozenset(
    {"abstol", "reltol", "feastol", "max_iters", "abstol_inacc", "reltol_inacc", "feastol_inacc"}
)
_METHODS = {"SCS": SCS.options, "Clarabel": Clarabel.options, "ECOS": _ECOS}
SOLVER_OPTIONS = SCS.options | Clarabel.options | _ECOS

_TIME_LIMITS = {"SCS": "time_limit_secs", "Clarabel": "time_limit"}

_MODES = ("lsqr", "lsmr", "dense", "lpgd", "lpgd_left", "lpgd_right")

# diffcp's words for an answer of Clarabel or ECOS. An inaccurate certificate proves nothing.
_STATUS = {
    "solved": Status.SOLVED,
    "solved/inaccurate": Status.ALMOST_SOLVED,
    "optimal inaccurate": Status.ALMOST_SOLVED,
    "infeasible": Status.PRIMAL_INFEASIBLE,
    "unbounded": Status.DUAL_INFEASIBLE,
}


def common_options(eps: float | None, max_iters: int | None) -> dict[str, Any]:
    """`eps` and `max_iters` under the names of every solve method.

    Which one it is may stand in another layer of options; `DiffcpSettings.parse` keeps the names
    of the one that is chosen.
    """
    named = SCS.common_options(eps, max_iters) | Clarabel.common_options(eps, max_iters)
    if eps is not None:
        named |= {"abstol": eps, "reltol": eps, "feastol": eps}
    return named


@dataclass(frozen=True)
class DiffcpSettings:
    """The options of a call, sorted and checked.

    Attributes
    ----------
    mode : str
        Which derivative.
    solve_method : str
        SCS, Clarabel or ECOS.
    tau, rho : float
        Strength of the perturbation and of its regularisation, for the LPGD modes.
    solver : dict
        Options of the solve method.
    """

    mode: str
    solve_method: str
    tau: float
    rho: float
    solver: Mapping[str, Any]

    @classmethod
    def parse(cls, options: Mapping[str, Any], verbose: bool) -> DiffcpSettings:
        """Sort the options of a call. Raises a ValueError for one that cannot be."""
        method = _choice("solve_method", options.get("solve_method", "SCS"), tuple(_METHODS))
        mode = _choice("mode", options.get("mode", "lsqr"), _MODES)
        named = {k: v for k, v in options.items() if k not in OWN_OPTIONS}
        misplaced = sorted(named.keys() - _METHODS[method] - common_options(1.0, 1).keys())
        if misplaced:
            message = (
                f"solver_args: diffcp's solve method {method} has no option "
                f"{', '.join(map(repr, misplaced))}; leave it out, or choose another 'solve_method'"
            )
            raise ValueError(message)
        solver = {k: v for k, v in named.items() if k in _METHODS[method]}
        if method == "SCS":
            solver = scs_settings(solver, verbose)
        else:
            solver["verbose"] = verbose
        if method == "Clarabel":
            solver.setdefault("max_threads", 1)
            _check_clarabel(solver)
        tau, rho = _perturbation(mode, options.get("derivative_kwargs") or {})
        return cls(mode, method, tau, rho, solver)

    @property
    def is_lpgd(self) -> bool:
        """Whether the mode differences solutions of perturbed programs."""
        return self.mode.startswith("lpgd")

    def call(
        self,
        A: Any,
        b: Any,
        c: Any,
        P: Any,
        cone_dict: Any,
        time_limit: float | None = None,
        **arguments: Any,
    ) -> tuple[Status, dict[str, Any]]:
        """`diffcp.solve_internal` with these options: a status of ours, and its result.

        ECOS has no time limit.
        """
        import diffcp

        arguments = {**self.solver, "solve_method": self.solve_method, **arguments}
        if time_limit is not None and self.solve_method in _TIME_LIMITS:
            arguments[_TIME_LIMITS[self.solve_method]] = time_limit
        start = time.perf_counter()
        try:
            result = diffcp.solve_internal(
                A, b, c, cone_dict, P=P, raise_on_error=False, **arguments
            )
        except diffcp.SolverError as error:  # only for ECOS: the others say it in the result
            found = re.search(r"returned status (.*)$", str(error))
            words = found.group(1).lower() if found else ""
            return _STATUS.get(words, Status.NUMERICAL_ERROR), {}
        except ValueError as error:
            if not is_rejection(error):
                raise
            return Status.NUMERICAL_ERROR, {}
        if self.solve_method == "SCS":
            upper = sp.csc_matrix((len(c), len(c))) if P is None else P
            status = status_of(result, ScsInstance(upper, c, A, b, cone_dict))
            if status is Status.INTERRUPTED:
                raise KeyboardInterrupt  # SCS has taken the Ctrl-C that was meant for Python.
            return status, result
        status = _STATUS.get(result["info"]["status"].lower(), Status.NUMERICAL_ERROR)
        if result["info"]["status"] == "Failure":
            # diffcp calls everything a failure that it has no name for.
            if self._reached_limit(result["info"]["iter"]):
                status = Status.MAX_ITERATIONS
            elif time_limit is not None and time.perf_counter() - start >= time_limit:
                status = Status.TIME_LIMIT
        return status, result

    def _reached_limit(self, iterations: int) -> bool:
        import clarabel

        limit = self.solver.get("max_iter", clarabel.DefaultSettings().max_iter)
        return self.solve_method == "Clarabel" and iterations >= limit


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    for choice in choices:
        if isinstance(value, str) and value.lower() == choice.lower():
            return choice
    message = f"solver_args[{name!r}]: expected one of {', '.join(choices)}, got {value!r}"
    raise ValueError(message)


def _perturbation(mode: str, kwargs: Mapping[str, Any]) -> tuple[float, float]:
    unknown = sorted(set(kwargs) - {"tau", "rho"})
    if unknown:
        message = f"solver_args['derivative_kwargs']: expected 'tau' and 'rho', got {unknown}"
        raise ValueError(message)
    tau, rho = float(kwargs.get("tau", 0.0)), float(kwargs.get("rho", 0.0))
    if mode.startswith("lpgd") and not (tau > 0 and rho >= 0):
        message = (
            f"solver_args: mode {mode!r} needs tau > 0 and rho >= 0, got tau={tau}, rho={rho}; "
            "give them as 'derivative_kwargs': {'tau': 0.1, 'rho': 0.1}"
        )
        raise ValueError(message)
    return tau, rho


def _check_clarabel(options: Mapping[str, Any]) -> None:
    import clarabel

    settings = clarabel.DefaultSettings()
    for name, value in options.items():
        try:
            setattr(settings, name, value)
        except TypeError as error:
            message = f"solver_args[{name!r}]: Clarabel does not take {value!r} here ({error})"
            raise ValueError(message) from error
