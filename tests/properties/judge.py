"""Is what the layer answered right? An independent verdict on every instance of a call."""

from __future__ import annotations

import math
from collections import Counter

import cvxpy as cp
import numpy as np

from cvxlayers import ParameterValueError, SolverError, Status

from . import gradients, oracle
from .calls import Answer, call
from .menu import Built, build
from .recipes import Array, Recipe, values

# What "solved" promises, relative to the terms of the constraints and of the objective. The solver
# is asked for 1e-8 in its own norm, and float32 outputs are rounded.
FEASIBLE = {False: 1e-6, True: 1e-5}
OPTIMAL = {False: 1e-6, True: 1e-4}
# However large the other constraints are.
VISIBLE = 1e-3
# A point that breaks no constraint by more than this, relative to that constraint's own terms,
# disproves that there is none.
DISPROVED = 1e-9
# A point of this size, of data of size one, is no solution.
FAR = 1e8
# Judged of each call: a solve by CVXPY takes about as long as all of the call.
JUDGED = 3

# What became of the instances of all calls so far.
TALLY: Counter[str] = Counter()


def check(recipe: Recipe) -> list[str]:
    """Make, call and judge one recipe.

    Returns
    -------
    list of str
        What became of the instances.

    Raises
    ------
    AssertionError
        If an answer is wrong.
    """
    built = build(recipe)
    given = values(recipe, built.pool)
    answer = call(recipe, built, given)
    # Expressions of CVXPY leave their domains by rounding, and overflow; the library may not.
    with np.errstate(all="ignore"):
        labels = _check(recipe, built, given, answer)
    TALLY.update(labels)
    return labels


def _check(recipe: Recipe, built: Built, given: list[Array], answer: Answer) -> list[str]:
    # All values have their parameters' attributes, and may be NaN under this policy.
    assert answer.error is None, f"refused: {answer.error}"
    batch = np.broadcast_shapes(
        *(v.shape[: v.ndim - p.ndim] for v, p in zip(given, built.parameters, strict=True))
    )
    assert answer.status.shape == batch
    for output, variable in zip(answer.outputs, built.outputs, strict=True):
        assert output.shape == batch + variable.shape
        assert output.dtype == (np.float32 if recipe.single else np.float64)
    if not math.prod(batch):
        return ["empty"]
    _check_policy(answer, built, given)
    labels = []
    for index in _some(answer.status):
        rows = [_row(v, p.ndim, batch, index) for v, p in zip(given, built.parameters, strict=True)]
        outputs = [y[index] for y in answer.outputs]
        labels.append(_judge(recipe, built, rows, Status(int(answer.status[index])), outputs))
    labels += gradients.check(recipe, built, answer, batch)
    # Last: a wrong answer is worse.
    assert not answer.warnings, f"warned: {answer.warnings[0]}"
    return labels


def _row(value: Array, ndim: int, batch: tuple[int, ...], index: tuple[int, ...]) -> Array:
    shape = value.shape[value.ndim - ndim :]
    return np.broadcast_to(value, batch + shape)[index].astype(float)


def _some(status: Array) -> list[tuple[int, ...]]:
    """A few instances, of every status that there is."""
    order = sorted(np.ndindex(status.shape), key=lambda i: int((status == status[i]).sum()))
    return order[:JUDGED]


def _check_policy(answer: Answer, built: Built, given: list[Array]) -> None:
    """With ``on_failure="raise"`` the same call raises if an instance failed, and names it."""
    failed = answer.status != Status.SOLVED
    finite = all(np.isfinite(v).all() for v in given)
    if not failed.any() and finite:
        return
    try:
        answer.layer.solve(*given, on_failure="raise")
    except SolverError as error:
        named = {i: int(s) for i, s in error.statuses.items()}
        # Unpolished, an instance may be almost solved that the polish completes, in NumPy's layer.
        assert finite
        assert named == {i: int(answer.status[i]) for i in np.ndindex(failed.shape) if failed[i]}
    except ParameterValueError as error:
        assert not finite and any(p.name() in str(error) for p in built.parameters)
    else:
        raise AssertionError("on_failure='raise' did not raise")


def _judge(
    recipe: Recipe, built: Built, rows: list[Array], status: Status, outputs: list[Array]
) -> str:
    if status == Status.SOLVED:
        assert all(np.isfinite(y).all() for y in outputs), "a solved instance that is not finite"
    else:
        assert all(np.isnan(y).all() for y in outputs), f"numbers though {status.name}"
    if not all(np.isfinite(v).all() for v in rows):
        assert status != Status.SOLVED, "solved with values that are not finite"
        return "not finite"
    oracle.set_values(built.parameters, rows)
    if status == Status.SOLVED:
        return _judge_solved(recipe, built, outputs[: len(built.variables)])
    found = oracle.reference(built.problem)
    if status == Status.PRIMAL_INFEASIBLE:
        for solver in oracle.SOLVERS:
            least = oracle.feasibility(built, solver)
            assert least > DISPROVED, f"called infeasible; {solver} has a point within {least:.1e}"
        return "infeasible"
    if status == Status.DUAL_INFEASIBLE:
        if found.status == cp.OPTIMAL:
            assert _descends(built, found), f"called unbounded; CVXPY finds {found.value}"
            return "unbounded, against the reference"
        return "unbounded"
    if found.status != cp.OPTIMAL:
        second = oracle.reference(built.problem, "SCS")
        found = second if second.status == cp.OPTIMAL else found
    if found.status == cp.OPTIMAL and (_descends(built, found) or _is_far(found)):
        return f"{status.name}, unbounded, against the reference"
    if recipe.well_scaled and found.status == cp.OPTIMAL:
        assert not recipe.strict, f"{status.name}: a well-scaled, strictly convex problem"
        return f"{status.name}, well scaled, has a solution"
    return f"{status.name}, {'well' if recipe.well_scaled else 'badly'} scaled, {found.status}"


def _judge_solved(recipe: Recipe, built: Built, outputs: list[Array]) -> str:
    problem = built.problem
    oracle.set_values(built.variables, outputs)
    size, worst = oracle.constraint_size(problem), oracle.worst_violation(problem)
    allowed = FEASIBLE[recipe.single] * size
    assert worst <= allowed, f"called solved; a constraint is off by {worst:.2e} of {size:.2e}"
    own = oracle.relative_violation(problem)
    assert own <= VISIBLE, f"called solved; a constraint is off by {own:.2e} of its own terms"
    found = oracle.reference(problem)
    if found.status not in oracle.ACCURATE:
        second = oracle.reference(problem, "SCS")
        found = second if second.status in oracle.ACCURATE else found
    if "unbounded" in found.status:
        value = float(problem.objective.value)
        lower = oracle.boxed_value(built, 1e3 * size)
        gain = (value - lower.value) * _sign(problem)
        limit = 1e-3 * oracle.size_of(problem.objective.args[0])
        assert not (lower.status == cp.OPTIMAL and gain > limit), "called solved; it is unbounded"
        return "solved, against the reference"
    if "infeasible" in found.status:
        limit = 1e-7 if recipe.well_scaled and not recipe.single else np.inf
        assert own <= limit, f"called solved; infeasible, and the point is off by {own:.1e}"
        return "solved, against the reference"
    if not found.point:
        return "solved, feasible, no reference"
    return _compare(recipe, problem, found, worst)


def _compare(recipe: Recipe, problem: cp.Problem, found: oracle.Reference, worst: float) -> str:
    """The objective against the reference's; ours is feasible to `worst`."""
    ours = oracle.point_of(problem)
    value, blend = _value(problem, found.point)
    size = oracle.size_of(problem.objective.args[0])
    allowed = OPTIMAL[recipe.single] * size
    # By how much a violation of the constraints can better the objective, to first order.
    allowed += 10 * worst * (1 + sum(np.abs(dual).sum() for dual in found.duals))
    if found.status not in oracle.ACCURATE:
        return "solved, rough reference"
    with oracle.at_point(problem, found.point):
        theirs = oracle.worst_violation(problem)
        best, _ = _value(problem, ours)
    excess = (value - best) * _sign(problem)
    # The reference has its own violation to pay for; of two rough points none is a judge.
    allowed += 10 * theirs * (1 + sum(np.abs(dual).sum() for dual in found.duals))
    if excess < -allowed and oracle.relative_violation(problem) <= DISPROVED:
        return "solved, better than the reference"
    if abs(excess) > allowed:
        second = oracle.reference(problem, "SCS")
        agrees = second.status == cp.OPTIMAL and abs(second.value - best) <= 1e-5 * size
        if recipe.well_scaled or agrees:
            raise AssertionError(
                f"called solved; the objective is {value:.9g}, the reference's {best:.9g} "
                f"(SCS: {second.status}, {second.value:.9g}; allowed {allowed:.1e}, {blend=})"
            )
        return "solved, references differ"
    return "solved"


def _sign(problem: cp.Problem) -> float:
    return 1.0 if isinstance(problem.objective, cp.Minimize) else -1.0


def _value(problem: cp.Problem, inside: oracle.Point) -> tuple[float, float]:
    """The objective at the variables' values; where rounding has left its domain, a little on the
    way to a point inside, by the share that is returned, too."""
    own = oracle.point_of(problem)
    for share in (0.0, 1e-9, 1e-7, 1e-5):
        blend = {k: (1 - share) * own[k] + share * inside[k] for k in own}
        with oracle.at_point(problem, blend):
            value = float(problem.objective.value)
        if np.isfinite(value):
            break
    return value, share


def _is_far(found: oracle.Reference) -> bool:
    """Whether it is on its way to infinity: on −log x solvers stop at 1e14, say."""
    return any(np.abs(x).max(initial=0.0) > FAR for x in found.point.values())


def _descends(built: Built, found: oracle.Reference) -> bool:
    """Whether the objective gets better than the reference's within ever larger boxes."""
    with oracle.at_point(built.problem, found.point):
        size = oracle.constraint_size(built.problem)
        scale = oracle.size_of(built.problem.objective.args[0])
    values_ = [oracle.boxed_value(built, 10**k * size).value for k in (2, 4)]
    gains = [(found.value - v) * _sign(built.problem) for v in values_]
    return bool(gains[1] > max(1e-3 * scale, 10 * gains[0], 0.0))
