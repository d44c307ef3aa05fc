"""The truth about one instance, from CVXPY's own modelling and solvers.

Parameters are replaced by their values before CVXPY compiles anything (``ignore_dpp``), so that
nothing is shared with the layer's maps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.atoms.affine.binary_operators import MulExpression, multiply
from cvxpy.atoms.affine.unary_operators import NegExpression

from .menu import Built
from .recipes import Array

TIGHT = {
    "tol_gap_abs": 1e-10,
    "tol_gap_rel": 1e-10,
    "tol_feas": 1e-10,
    "tol_infeas_abs": 1e-10,
    "tol_infeas_rel": 1e-10,
    "reduced_tol_gap_abs": 1e-7,
    "reduced_tol_gap_rel": 1e-7,
    "reduced_tol_feas": 1e-7,
    "max_iter": 300,
}
SOLVERS = {"CLARABEL": TIGHT, "SCS": {"eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 100_000}}
# Values of variables by their id: problems differ in the order that they list them in.
Point = dict[int, Array | None]
ACCURATE, ROUGH = (cp.OPTIMAL,), (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)


@dataclass
class Reference:
    """What a solver of CVXPY found: its status, and where it is a point, that point."""

    status: str
    value: float = np.nan
    point: Point = field(default_factory=dict)
    duals: list[Array] = field(default_factory=list)


def reference(problem: cp.Problem, solver: str = "CLARABEL") -> Reference:
    """Solve at the parameters' present values. The variables' values are left as they were."""
    before = point_of(problem)
    try:
        with warnings.catch_warnings():
            # "Solution may be inaccurate" is in the status, too; and extreme data overflow.
            warnings.simplefilter("ignore")
            problem.solve(solver=solver, ignore_dpp=True, **SOLVERS[solver])
        found = Reference(problem.status, float(problem.value))
        if problem.status in ROUGH:
            found.point = point_of(problem)
            found.duals = [_dual(con) for con in problem.constraints]
    except Exception:  # no answer, for whatever reason: Clarabel's own errors are bare Exceptions
        found = Reference("error")
    _set_point(problem, before)
    return found


def _dual(con: cp.Constraint) -> Array:
    values = [v.value for v in con.dual_variables]
    return np.concatenate([np.zeros(1), *(np.ravel(v) for v in values if v is not None)])


def set_values(leaves: list, values: list[Array]) -> None:
    """Give leaves their values, unchecked: rounding may break an attribute."""
    for leaf, value in zip(leaves, values, strict=True):
        leaf.save_value(np.asarray(value, dtype=float))


def violation(con: cp.Constraint) -> float:
    """By how much a constraint is broken at its variables' values, in the units of its terms."""
    args = [np.asarray(a.value, dtype=float) for a in con.args]
    if isinstance(con, cp.constraints.Equality):
        return _largest(np.abs(args[0] - args[1]))
    if isinstance(con, cp.constraints.Inequality):
        return _largest(args[0] - args[1])
    if isinstance(con, cp.PSD):
        return max(0.0, -float(np.linalg.eigvalsh((args[0] + args[0].T) / 2).min()))
    if isinstance(con, cp.SOC):
        return _largest(np.linalg.norm(args[1], axis=con.axis) - args[0])
    if isinstance(con, cp.ExpCone):
        return _distance(_in_exponential, args)
    if isinstance(con, cp.PowCone3D):
        alpha = np.asarray(con.alpha.value, dtype=float)
        return _distance(lambda *xyz: _in_power(alpha, *xyz), args)
    raise TypeError(f"no rule for {type(con)}")


def _in_exponential(x: Array, y: Array, z: Array, shift: float) -> bool:
    """Whether y exp(x / y) <= z after a shift into the cone."""
    x, y, z = x - shift, y + shift, z + shift
    with np.errstate(all="ignore"):
        curved = (y > 0) & (z > 0) & (x <= y * np.log(z / y))
    return bool((curved | ((y == 0) & (x <= 0) & (z >= 0))).all())


def _in_power(alpha: Array, x: Array, y: Array, z: Array, shift: float) -> bool:
    """Whether |z| <= x^alpha y^(1 - alpha) after a shift into the cone."""
    x, y = x + shift, y + shift
    inside = np.abs(z) - shift <= np.maximum(x, 0) ** alpha * np.maximum(y, 0) ** (1 - alpha)
    return bool((inside & (x >= 0) & (y >= 0)).all())


def _distance(is_inside: Callable[..., bool], point: list[Array]) -> float:
    """The shift along an axis of the cone that brings a point into it: a residual of the cone's
    function would be steep where that has a root of something small."""
    if is_inside(*point, 0.0):
        return 0.0
    low, high = 0.0, 1e-15
    while not is_inside(*point, high):
        low, high = high, 4 * high
        if high > 1e30:
            return high
    while high - low > 1e-2 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_inside(*point, middle) else (middle, high)
    return high


def attributes_violation(variable: cp.Variable) -> float:
    """By how much a variable's value misses its attributes."""
    value, has = np.asarray(variable.value, dtype=float), variable.attributes
    worst = 0.0
    if has["nonneg"]:
        worst = _largest(-value)
    if has["symmetric"] or has["PSD"]:
        worst = max(worst, _largest(np.abs(value - value.T)))
    if has["PSD"]:
        worst = max(worst, -float(np.linalg.eigvalsh((value + value.T) / 2).min()))
    if has["bounds"] is not None:
        lower, upper = has["bounds"]
        worst = max(worst, _largest(lower - value), _largest(value - upper))
    return worst


def size_of(*expressions: cp.Expression) -> float:
    """One plus the size of the terms of expressions: what rounding and tolerances are relative to.

    Sums may cancel, so that every part of an expression that has variables counts, and of a
    product the products.
    """
    return 1.0 + max((_part_size(e) for e in expressions), default=0.0)


def _part_size(e: cp.Expression) -> float:
    if not e.args or not e.variables():
        return _finite_size(e.value)
    sizes = [_part_size(a) for a in e.args if a.variables()]
    if isinstance(e, MulExpression | multiply):
        one, other = (np.abs(_dense(a.value)) for a in e.args)
        sizes = [_finite_size(one @ other if type(e) is MulExpression else one * other)]
        # A matrix between a vector and its image is no term of its own; its other factor is.
        return max(sizes)
    constants = [_finite_size(a.value) for a in e.args if not a.variables()]
    return max([_finite_size(e.value), *sizes, *constants])


def _finite_size(value: Array) -> float:
    value = np.abs(_dense(value))
    return _largest(value[np.isfinite(value)])


def _dense(value: Array) -> Array:
    return np.asarray(value.toarray() if sp.issparse(value) else value, dtype=float)


def constraint_size(problem: cp.Problem) -> float:
    """The size of the terms of all constraints, and of the variables."""
    return size_of(*(a for con in problem.constraints for a in con.args), *problem.variables())


def _largest(values: Array) -> float:
    return float(np.max(values, initial=0.0))


def worst_violation(problem: cp.Problem) -> float:
    """The largest violation of all constraints and attributes, in their own units."""
    broken = [violation(con) for con in problem.constraints]
    return max([0.0, *broken, *(attributes_violation(v) for v in problem.variables())])


def relative_violation(problem: cp.Problem) -> float:
    """The largest violation, each relative to one plus the terms of its own constraint."""
    pairs = [(violation(con), size_of(*con.args)) for con in problem.constraints]
    pairs += [(attributes_violation(v), size_of(v)) for v in problem.variables()]
    return max([0.0, *(broken / size for broken, size in pairs)])


def strict_violation(problem: cp.Problem) -> float:
    """The largest violation, each relative to the terms of its own row, however small they are: of
    tiny data a violation that is tiny may be all that there is."""
    worst = 0.0
    for con in problem.constraints:
        if isinstance(con, cp.constraints.Equality | cp.constraints.Inequality):
            left, right = (_dense(a.value) for a in con.args)
            broken = left - right
            if isinstance(con, cp.constraints.Equality):
                broken = np.abs(broken)
            terms = sum(_absolute(a) for a in con.args)
            worst = max(worst, _largest(broken / (terms + 1e-300)))
        else:
            worst = max(worst, violation(con) / (size_of(*con.args) - 1.0 + 1e-300))
    attributes = [attributes_violation(v) / (size_of(v) - 1 + 1e-300) for v in problem.variables()]
    return max([worst, *attributes])


def _absolute(e: cp.Expression) -> Array:
    """The sum of the absolute terms of an affine expression, entry by entry."""
    if not e.args or not e.is_affine() or not e.variables():
        return np.abs(_dense(e.value))
    parts = [_absolute(a) for a in e.args]
    return parts[0] if isinstance(e, NegExpression) else _dense(e.numeric(parts))


def feasibility(built: Built, solver: str) -> float:
    """The strict violation of the best point of the constraints that a solver finds; infinite if it
    finds none."""
    # Variables with attributes constrain though no constraint mentions them.
    nothing = sum(cp.sum(0 * v) for v in built.variables)
    # So does the domain of the objective: it wants x >= 0 where it has log x.
    domain = [d for d in built.problem.objective.args[0].domain if d.is_dcp()]
    problem = cp.Problem(cp.Minimize(nothing), [*built.problem.constraints, *domain])
    found = reference(problem, solver)
    if found.status not in ROUGH:
        return np.inf
    with at_point(problem, found.point):
        # Where the objective overflows there is no point to be found either.
        value = built.problem.objective.value
        return strict_violation(problem) if np.isfinite(value) else np.inf


def boxed_value(built: Built, radius: float) -> Reference:
    """The problem with all variables bounded by a radius."""
    box = [cp.abs(v) <= radius for v in built.variables]
    return reference(cp.Problem(built.problem.objective, [*built.problem.constraints, *box]))


def point_of(problem: cp.Problem) -> Point:
    """The variables' values."""
    return {v.id: v.value for v in problem.variables()}


def _set_point(problem: cp.Problem, point: Point) -> None:
    for variable in problem.variables():
        variable.save_value(point[variable.id])


@contextmanager
def at_point(problem: cp.Problem, point: Point) -> Iterator[None]:
    """The variables of a problem have these values for a while."""
    before = point_of(problem)
    _set_point(problem, point)
    yield
    _set_point(problem, before)
