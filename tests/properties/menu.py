"""What random problems are made of: objective terms, constraints, and the problem itself.

Every constraint is made to hold at a point that is drawn first, so that most problems are feasible
at the values of their design. The exceptions say so in their names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np

from .recipes import Array, Pool, Recipe

Values = dict[str, Any]


@dataclass
class Built:
    """A problem, and what is known of it from its design."""

    problem: cp.Problem
    pool: Pool
    variables: list[cp.Variable]
    duals: list[cp.Variable] = field(default_factory=list)

    @property
    def parameters(self) -> list[cp.Parameter]:
        return self.pool.parameters

    @property
    def outputs(self) -> list[cp.Variable]:
        return self.variables + self.duals


@dataclass
class Subject:
    """A variable, its entries as a vector, and their values at the point of the design."""

    variable: cp.Variable
    point: Array

    @property
    def entries(self) -> cp.Expression:
        return cp.vec(self.variable, order="F")

    @property
    def size(self) -> int:
        return self.variable.size


def _affine(pool: Pool, s: Subject, rows: int) -> tuple[cp.Expression, Array]:
    """A x of that many rows, and its value at the point."""
    A = pool.normal(rows, s.size)
    return pool.leaf(A) @ s.entries, A @ s.point


def _residual(pool: Pool, s: Subject) -> cp.Expression:
    rows = int(pool.rng.integers(1, 4))
    return _affine(pool, s, rows)[0] - pool.leaf(pool.normal(rows))


def _psd(pool: Pool, n: int) -> Array:
    G = pool.normal(n, n)
    return G @ G.T / max(n, 1) + 0.1 * np.eye(n)


def _weighted(pool: Pool, term: cp.Expression) -> cp.Expression:
    """A term times a nonnegative leaf: DPP as long as the term has no parameter itself."""
    if term.parameters():
        return term
    return pool.leaf(float(pool.rng.uniform(0.2, 2)), "nonneg") * term


def _matrix(pool: Pool, s: Subject) -> cp.Expression:
    """A 2 by 2 matrix that is affine in x."""
    return cp.reshape(_affine(pool, s, 4)[0] - pool.leaf(pool.normal(4)), (2, 2), order="F")


def _symmetric(pool: Pool, s: Subject) -> cp.Expression:
    M = _matrix(pool, s)
    return M + M.T


def _diagonal_form(pool: Pool, s: Subject) -> cp.Expression:
    D = np.diag(pool.rng.uniform(0.5, 2, s.size))
    return cp.sum_squares(pool.leaf(D, "diag") @ s.entries - pool.leaf(pool.normal(s.size)))


OBJECTIVES = {
    "linear": lambda k, s: k.leaf(k.normal(s.size)) @ s.entries,
    "sum_squares": lambda k, s: cp.sum_squares(_residual(k, s)),
    "quad_form": lambda k, s: cp.quad_form(s.entries, k.leaf(_psd(k, s.size), "PSD")),
    "diagonal": _diagonal_form,
    "norm1": lambda k, s: cp.norm1(_residual(k, s)),
    "norm2": lambda k, s: cp.norm(_residual(k, s), 2),
    "norm_inf": lambda k, s: cp.norm_inf(_residual(k, s)),
    "huber": lambda k, s: cp.sum(cp.huber(_residual(k, s), 0.7)),
    "log_sum_exp": lambda k, s: cp.log_sum_exp(_residual(k, s)),
    "logistic": lambda k, s: cp.sum(cp.logistic(_residual(k, s))),
    "exp": lambda k, s: cp.sum(cp.exp(0.3 * _residual(k, s))),
    "entropy": lambda k, s: -cp.sum(cp.entr(s.entries)),
    "log": lambda k, s: -cp.sum(cp.log(s.entries + k.leaf(2.5))),
    "geo_mean": lambda k, s: -cp.geo_mean(s.entries) if s.size > 1 else -cp.sqrt(s.entries[0]),
    "power3": lambda k, s: cp.sum(cp.power(cp.abs(_residual(k, s)), 3)),
    "power1.5": lambda k, s: cp.sum(cp.power(cp.pos(_residual(k, s)), 1.5)),
    "power4": lambda k, s: cp.sum(cp.power(s.entries, 4)),
    "inverse": lambda k, s: cp.sum(cp.inv_pos(s.entries + k.leaf(2.5))),
    "max": lambda k, s: cp.max(_residual(k, s)),
    "quad_over_lin": lambda k, s: cp.quad_over_lin(_residual(k, s), s.entries[0] + 3.0),
    "trace": lambda k, s: cp.trace(k.normal(2, 2) @ _matrix(k, s)),
    "nuclear": lambda k, s: cp.normNuc(_matrix(k, s)),
    "lambda_max": lambda k, s: cp.lambda_max(_symmetric(k, s)),
    "zero": lambda k, s: cp.Constant(0.0) * s.entries[0],
}


def _equality(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, int(k.rng.integers(1, max(2, s.size))))
    return [left == k.leaf(at)]


def _inequality(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, int(k.rng.integers(1, 5)))
    return [left <= k.leaf(at + k.rng.uniform(0, 1, at.shape))]


def _coupling(k: Pool, s: Subject, o: Subject) -> list:
    (left, at), (other, there) = _affine(k, s, 2), _affine(k, o, 2)
    return [left + other == k.leaf(at + there)]


def _box(k: Pool, s: Subject, o: Subject) -> list:
    point = s.point
    lower = s.entries >= k.leaf(point - k.rng.uniform(0.1, 2, s.size))
    return [lower, s.entries <= k.leaf(point + k.rng.uniform(0.1, 2, s.size))]


def _ball(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, 2)
    center = k.normal(2)
    radius = np.linalg.norm(at - center) + 0.3
    return [cp.norm(left - k.leaf(center)) <= k.leaf(float(radius), "nonneg")]


def _vector_cones(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, 4)
    columns = cp.reshape(left, (2, 2), order="F")
    sizes = np.linalg.norm(at.reshape(2, 2, order="F"), axis=0)
    return [cp.SOC(k.leaf(sizes + 0.5), columns, axis=0)]


def _exponential(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, 2)
    y = np.full(2, 1.5)
    return [cp.ExpCone(left, k.leaf(y), k.leaf(y * np.exp(at / y) + 0.5))]


def _power(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, 2)
    x = np.full(2, 1.3)
    y = (np.abs(at) / x**0.4) ** (1 / 0.6) + 0.4
    return [cp.PowCone3D(k.leaf(x), k.leaf(y), left, 0.4)]


def _semidefinite(k: Pool, s: Subject, o: Subject) -> list:
    M = _symmetric(k, s)
    return [M + k.leaf(6.0 * np.eye(2) * (1 + np.abs(s.point).sum()), "symmetric") >> 0]


def _repeated(k: Pool, s: Subject, o: Subject) -> list:
    (con,) = _inequality(k, s, o)
    return [con, con.args[0] <= con.args[1], 2 * con.args[0] <= 2 * con.args[1]]


def _redundant_equality(k: Pool, s: Subject, o: Subject) -> list:
    (con,) = _equality(k, s, o)
    return [con, 3 * con.args[0] == 3 * con.args[1]]


def _zero_row(k: Pool, s: Subject, o: Subject) -> list:
    A = k.normal(3, s.size)
    A[1] = 0
    right = A @ s.point
    return [k.leaf(A) @ s.entries <= k.leaf(right + np.array([0.5, 0.0, 0.0]))]


def _zero_equality(k: Pool, s: Subject, o: Subject) -> list:
    A = k.normal(2, s.size)
    A[1] = 0
    return [k.leaf(A) @ s.entries == k.leaf(A @ s.point)]


def _contradiction(k: Pool, s: Subject, o: Subject) -> list:
    left, at = _affine(k, s, 1)
    return [left >= at + 1, left <= k.leaf(at - 0.5)]


def _absurd(k: Pool, s: Subject, o: Subject) -> list:
    return [0 * s.entries[0] >= k.leaf(1.0, "nonneg")]


CONSTRAINTS = {
    "equality": _equality,
    "inequality": _inequality,
    "coupling": _coupling,
    "box": _box,
    "ball": _ball,
    "vector_cones": _vector_cones,
    "exponential": _exponential,
    "power": _power,
    "semidefinite": _semidefinite,
    "repeated": _repeated,
    "redundant_equality": _redundant_equality,
    "zero_row": _zero_row,
    "zero_equality": _zero_equality,
    "contradiction": _contradiction,
    "absurd": _absurd,
}
INFEASIBLE = ("contradiction", "absurd")


def _variable(pool: Pool, shape: tuple[int, ...], attribute: str) -> Subject:
    point = 0.7 * pool.normal(*shape)
    if attribute in ("symmetric", "PSD"):
        point = (point + point.T) / 2
    if attribute == "PSD":
        point = point @ point + 0.2 * np.eye(len(point))
    if attribute == "nonneg":
        point = np.abs(point)
    settings: Values = {attribute: True} if attribute else {}
    if attribute == "bounds":
        settings = {"bounds": [-3.0, 3.0]}
        point = np.clip(point, -2, 2)
    return Subject(cp.Variable(shape, **settings), point.ravel(order="F"))


def build(recipe: Recipe) -> Built:
    """The problem of a recipe: the same one on every call."""
    pool = Pool(recipe)
    subjects = [_variable(pool, shape, attribute) for shape, attribute in recipe.variables]
    terms, constraints = [], []
    for name, number in recipe.objective:
        terms.append(_weighted(pool, OBJECTIVES[name](pool, subjects[number % len(subjects)])))
    for name, number in recipe.constraints:
        one, other = (subjects[(number + k) % len(subjects)] for k in range(2))
        constraints += CONSTRAINTS[name](pool, one, other)
    if recipe.strict:
        for s in subjects:
            terms.append(cp.sum_squares(s.entries - pool.normal(s.size)))
            constraints += [s.entries >= s.point - 2, s.entries <= s.point + 2]
    used = {v.id for part in [*terms, *constraints] for v in part.variables()}
    # Every variable occurs, and so does some parameter.
    unused = [s for s in subjects if s.variable.id not in used]
    terms += [cp.sum_squares(s.entries - pool.normal(s.size)) for s in unused]
    if not pool.parameters:
        terms.append(pool.parameter(pool.normal(subjects[0].size)) @ subjects[0].entries)
    total = sum(terms[1:], terms[0])
    objective = cp.Maximize(-total) if recipe.maximize else cp.Minimize(total)
    problem = cp.Problem(objective, constraints)
    # A leaf that was drawn for a term may have been simplified away.
    present = {p.id for p in problem.parameters()}
    keep = [k for k, p in enumerate(pool.parameters) if p.id in present]
    for name in ("parameters", "bases", "kinds"):
        setattr(pool, name, [getattr(pool, name)[k] for k in keep])
    duals = [constraints[0].dual_variables[0]] if recipe.dual and constraints else []
    return Built(problem, pool, [s.variable for s in subjects], duals)
