"""Is the problem disciplined and parametrized (DPP), and if not, which expression is to blame?

DPP is what makes (P, q, A, b) affine in the parameters: Agrawal, Amos, Barratt, Boyd, Diamond &
Kolter, *Differentiable convex optimization layers*, 2019, section 4.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import cvxpy as cp
from cvxpy.utilities import scopes

from cvxlayers.errors import NotDPPError, UnsupportedProblemError

__all__ = ["check_problem"]


def check_problem(problem: cp.Problem, gp: bool) -> None:
    """Raise unless the problem is continuous, real and DPP (log-log DPP with `gp`)."""
    _check_domain(problem)
    is_disciplined = problem.is_dgp if gp else problem.is_dcp
    if not is_disciplined():
        rules, other = ("DGP", "") if gp else ("DCP", _geometric_hint(problem))
        where = _offender(problem, gp, dpp=False)
        raise NotDPPError(
            f"The problem is not {rules}: CVXPY's rules do not show that it is "
            f"{'log-log ' if gp else ''}convex. To blame: {where}.{other}"
        )
    # A quadratic form stays in the objective as P, so its matrix may be a parameter there.
    is_dpp = problem.is_dpp("dgp") if gp else problem.is_dpp("dcp", quad_form_dpp="qp")
    if not is_dpp:
        where = _offender(problem, gp, dpp=True)
        raise NotDPPError(f"The problem is convex but not DPP: {where}. {_REMEDY}")


_REMEDY = (
    "Parameters must enter affinely: give a product of two parameters, or a nonlinear function of "
    "one, a cp.Parameter of its own and compute its value outside the layer; or put the "
    "parametric factor on a new variable (y == A @ x) first. A parametric quad_form(x, P) is "
    "possible in the objective; in a constraint write cp.sum_squares(L @ x) with a parameter L, "
    "L.T @ L == P, instead."
)


def _check_domain(problem: cp.Problem) -> None:
    for variable in problem.variables():
        for kind in ("boolean", "integer"):
            if variable.attributes[kind]:
                raise UnsupportedProblemError(
                    f"Variable {variable.name()!r} is {kind}; the solution of a discrete problem "
                    "has no derivative. Relax it to a continuous variable."
                )
    for leaf in [*problem.variables(), *problem.parameters()]:
        if leaf.is_complex():
            raise UnsupportedProblemError(
                f"{type(leaf).__name__} {leaf.name()!r} is complex. Write the problem in its real "
                "and imaginary parts."
            )


def _geometric_hint(problem: cp.Problem) -> str:
    return " It is a geometric program: pass gp=True." if problem.is_dgp() else ""


def _offender(problem: cp.Problem, gp: bool, dpp: bool) -> str:
    """The smallest expression that breaks the rules, in words."""
    for number, root in enumerate([problem.objective, *problem.constraints]):
        in_objective = number == 0
        with ExitStack() as scope:
            if dpp:
                scope.enter_context(scopes.dpp_scope())
                if in_objective and not gp:
                    scope.enter_context(scopes.quad_form_dpp_scope())
            if root.is_dgp() if gp else root.is_dcp():
                continue
            place = "in the objective" if in_objective else f"in constraint {number - 1} ({root})"
            culprit = _smallest(root, gp)
            if culprit is None:
                return f"{root} has the wrong curvature ({place})"
            return f"the expression {culprit} {place} breaks the rules"
    return "the problem as a whole breaks the rules"


def _smallest(root: Any, gp: bool) -> Any:
    for argument in root.args:
        if not _has_curvature(argument, gp):
            return _smallest(argument, gp) or argument
    return None


def _has_curvature(expression: Any, gp: bool) -> bool:
    if gp:
        return bool(expression.is_log_log_convex() or expression.is_log_log_concave())
    return bool(expression.is_convex() or expression.is_concave())
