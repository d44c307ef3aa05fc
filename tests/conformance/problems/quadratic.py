"""Quadratic programs: dense, sparse, equality only, unconstrained, badly scaled."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Array, Built, Case, cones, planted_qp, positive_definite

# Constants of the problems below come from a generator of their own: building twice must give
# the same problem.
_CONSTANTS = np.random.default_rng(11)
_CONVEX = positive_definite(_CONSTANTS, 12)
_RETURNS = _CONSTANTS.standard_normal((3, 8))


def _qp(n: int, p: int, m: int, sense: str = "min", duals: bool = False) -> Built:
    L, q = cp.Parameter((n, n), name="L"), cp.Parameter(n, name="q")
    A, b = cp.Parameter((p, n), name="A"), cp.Parameter(p, name="b")
    G, h = cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")
    x = cp.Variable(n, name="x")
    constraints = [A @ x == b, G @ x <= h]
    cost = 0.5 * cp.sum_squares(L @ x) + q @ x
    objective = cp.Minimize(cost) if sense == "min" else cp.Maximize(-cost)
    outputs = [x]
    if duals:
        outputs += [constraint.dual_variables[0] for constraint in constraints]
    return cp.Problem(objective, constraints), [L, q, A, b, G, h], outputs


def _badly_scaled(rng: np.random.Generator) -> list[Array]:
    L, q, A, b, G, h = planted_qp(rng, 20, 5, 15, 8)
    # Rows and columns over 1e-1.5..1e1.5 each: the entries of A and G then span 1e-3..1e3.
    columns = 10 ** rng.uniform(-1.5, 1.5, 20)
    rows_A, rows_G = 10 ** rng.uniform(-1.5, 1.5, 5), 10 ** rng.uniform(-1.5, 1.5, 15)
    return [
        L * columns,
        q * columns,
        rows_A[:, None] * A * columns,
        rows_A * b,
        rows_G[:, None] * G * columns,
        rows_G * h,
    ]


def _exact_zeros(rng: np.random.Generator) -> list[Array]:
    n, p, m, active = 8, 2, 6, 3
    L, q, A, b, G, h = planted_qp(rng, n, p, m, active)
    x = np.linalg.solve(
        np.block([[L.T @ L, A.T, G[:active].T], [np.vstack([A, G[:active]]), np.zeros((5, 5))]]),
        np.concatenate([-q, b, h[:active]]),
    )[:n]
    # Zeros in active and inactive rows; b and h move along, so that x stays feasible and tight.
    kept_A, kept_G = rng.random(A.shape) < 0.6, rng.random(G.shape) < 0.6
    b, h = b - (A * ~kept_A) @ x, h - (G * ~kept_G) @ x
    return [L, q, A * kept_A, b, G * kept_G, h]


def _quad_form_mixed() -> Built:
    n = 12
    P, q, h = cp.Parameter((n, n), PSD=True, name="P"), cp.Parameter(n, name="q"), cp.Parameter(n)
    x = cp.Variable(n)
    cost = cp.quad_form(x, P) + 0.5 * cp.quad_form(x, _CONVEX) + q @ x
    return cp.Problem(cp.Minimize(cost), [x <= h, cp.sum(x) == 1]), [P, q, h], [x]


def _quad_form_unconstrained() -> Built:
    P, q = cp.Parameter((4, 4), PSD=True), cp.Parameter(4)
    x = cp.Variable(4)
    return cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x)), [P, q], [x]


def _least_squares() -> Built:
    A, b = cp.Parameter((12, 4)), cp.Parameter(12)
    x = cp.Variable(4)
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b))), [A, b], [x]


def _hedge() -> Built:
    """Minimum-variance hedge of three factors: equality constraints only, and their dual."""
    covariance, exposure = cp.Parameter((8, 8), PSD=True), cp.Parameter(3)
    x = cp.Variable(8)
    hedged = _RETURNS @ x == exposure
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, covariance)), [hedged])
    return problem, [covariance, exposure], [x, hedged.dual_variables[0]]


_HORIZON = 8


def _mpc(use_abs: bool) -> Built:
    """Model predictive control of a double integrator whose input saturates at first.

    Written with ``abs``, the limit has an epigraph variable that is free to move wherever the input
    is not saturated: the canonical form has many solutions, the problem one.
    """
    A, B = cp.Parameter((2, 2), name="A"), cp.Parameter((2, 1), name="B")
    start, limit = cp.Parameter(2, name="start"), cp.Parameter(nonneg=True, name="limit")
    states, inputs = cp.Variable((2, _HORIZON + 1)), cp.Variable((1, _HORIZON))
    limits = [cp.abs(inputs) <= limit] if use_abs else [inputs <= limit, -limit <= inputs]
    constraints = [
        states[:, 0] == start,
        states[:, 1:] == A @ states[:, :-1] + B @ inputs,
        *limits,
    ]
    cost = cp.sum_squares(states) + 0.1 * cp.sum_squares(inputs)
    return cp.Problem(cp.Minimize(cost), constraints), [A, B, start, limit], [states, inputs]


def _mpc_values(rng: np.random.Generator) -> list[Array]:
    A, B = np.array([[1.0, 0.4], [0.05, 0.95]]), np.array([[0.1], [0.5]])
    return [A, B, np.array([2.0, 0.3]), np.array(0.8)]


def _scalar() -> Built:
    """One variable and scalar parameters, one of them in objective, matrix and right-hand side."""
    a, b = cp.Parameter(name="a"), cp.Parameter(name="b")
    x = cp.Variable()
    limit = a * x <= b + a
    problem = cp.Problem(cp.Minimize(cp.square(x) + (a - 4 * b) * x), [limit])
    return problem, [a, b], [x, limit.dual_variables[0]]


def _maximization() -> Built:
    """Maximisation of a concave quadratic: the signs of objective and duals both turn."""
    P, c, limit = cp.Parameter((5, 5), PSD=True), cp.Parameter(5), cp.Parameter(nonneg=True)
    x = cp.Variable(5)
    budget, sign = cp.sum(x) <= limit, x >= 0
    problem = cp.Problem(cp.Maximize(c @ x - cp.quad_form(x, P)), [budget, sign])
    return problem, [P, c, limit], [x, budget.dual_variables[0], sign.dual_variables[0]]


CASES = [
    Case(
        "qp_dense",
        lambda: _qp(25, 6, 20),
        lambda rng: list(planted_qp(rng, 25, 6, 20, 9)),
        cones("zero nonneg"),
    ),
    Case(
        "qp_dense_duals",
        lambda: _qp(10, 3, 8, duals=True),
        lambda rng: list(planted_qp(rng, 10, 3, 8, 4)),
        cones("zero nonneg"),
    ),
    Case(
        "qp_badly_scaled",
        lambda: _qp(20, 5, 15, duals=True),
        _badly_scaled,
        cones("zero nonneg"),
    ),
    Case("qp_exact_zeros", lambda: _qp(8, 2, 6), _exact_zeros, cones("zero nonneg")),
    Case(
        "qp_maximize_planted",
        lambda: _qp(6, 2, 5, sense="max", duals=True),
        lambda rng: list(planted_qp(rng, 6, 2, 5, 2)),
        cones("zero nonneg"),
    ),
    Case(
        "qp_quad_form_mixed",
        _quad_form_mixed,
        lambda rng: [positive_definite(rng, 12), 2 * rng.standard_normal(12), np.full(12, 0.6)],
        cones("zero nonneg"),
    ),
    Case(
        "qp_no_constraints",
        _quad_form_unconstrained,
        lambda rng: [positive_definite(rng, 4), rng.standard_normal(4)],
        cones(),
    ),
    Case(
        "least_squares",
        _least_squares,
        lambda rng: [rng.standard_normal((12, 4)), rng.standard_normal(12)],
        cones("zero"),
    ),
    Case(
        "equality_only_hedge",
        _hedge,
        lambda rng: [positive_definite(rng, 8), rng.standard_normal(3)],
        cones("zero"),
    ),
    Case("mpc", lambda: _mpc(use_abs=False), _mpc_values, cones("zero nonneg")),
    Case("mpc_abs", lambda: _mpc(use_abs=True), _mpc_values, cones("zero nonneg"), regular=False),
    Case("scalar_shared_parameter", _scalar, lambda rng: [2.0, 1.5], cones("nonneg")),
    Case(
        "maximize_concave",
        _maximization,
        lambda rng: [positive_definite(rng, 5), np.array([2.0, 1.5, -1.0, 1.2, -0.5]), 0.7],
        cones("nonneg"),
    ),
]
