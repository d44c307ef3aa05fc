"""Second-order cones: norm balls, sums of norms, robust constraints, means, and their duals."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Array, Built, Case, cones, positive_definite

_RNG = np.random.default_rng(13)
_FACTORS = _RNG.standard_normal((4, 8)) / 2
_GROUPS = [slice(0, 3), slice(3, 6), slice(6, 9)]


def _trust_region() -> Built:
    P, q, radius = cp.Parameter((5, 5), PSD=True), cp.Parameter(5), cp.Parameter(nonneg=True)
    x = cp.Variable(5)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.norm(x) <= radius])
    return problem, [P, q, radius], [x]


def _portfolio() -> Built:
    """Markowitz with the risk as a norm, and a limit on every position."""
    mean, factors, aversion = cp.Parameter(8), cp.Parameter((4, 8)), cp.Parameter(8, nonneg=True)
    x = cp.Variable(8)
    risk = cp.norm(cp.hstack([factors @ x, cp.multiply(aversion, x)]))
    problem = cp.Problem(cp.Maximize(mean @ x - risk), [cp.sum(x) == 1, x >= 0, x <= 0.5])
    return problem, [mean, factors, aversion], [x]


def _portfolio_values(rng: np.random.Generator) -> list[Array]:
    return [rng.uniform(0.0, 1.5, 8), _FACTORS, rng.uniform(0.5, 1.0, 8)]


def _group_lasso() -> Built:
    """Sum of norms: a group that vanishes sits at the apex of its cone."""
    A, b, weight = cp.Parameter((12, 9)), cp.Parameter(12), cp.Parameter(nonneg=True)
    x = cp.Variable(9)
    cost = 0.5 * cp.sum_squares(A @ x - b) + weight * sum(cp.norm(x[g]) for g in _GROUPS)
    return cp.Problem(cp.Minimize(cost)), [A, b, weight], [x]


def _group_lasso_values(rng: np.random.Generator) -> list[Array]:
    A = rng.standard_normal((12, 9))
    x = np.array([1.0, -2.0, 1.5, 0.0, 0.0, 0.0, 2.0, 1.0, -1.0])
    return [A, A @ x + 0.1 * rng.standard_normal(12), 4.0]


def _robust_lp() -> Built:
    c, A, b, spread = cp.Parameter(3), cp.Parameter((5, 3)), cp.Parameter(5), cp.Parameter((3, 3))
    x = cp.Variable(3)
    constraints = [A[i] @ x + cp.norm(spread @ x) <= b[i] for i in range(5)]
    return cp.Problem(cp.Minimize(c @ x), constraints), [c, A, b, spread], [x]


def _geo_mean() -> Built:
    """Equal-weight fair allocation. CVXPY writes the mean as a tree of second-order cones."""
    A, b = cp.Parameter((3, 4), nonneg=True), cp.Parameter(3, nonneg=True)
    x = cp.Variable(4)
    problem = cp.Problem(cp.Maximize(cp.geo_mean(x)), [A @ x <= b])
    return problem, [A, b], [x]


def _p_norm() -> Built:
    A, b = cp.Parameter((3, 6)), cp.Parameter(3)
    x = cp.Variable(6)
    return cp.Problem(cp.Minimize(cp.pnorm(x, 3)), [A @ x == b]), [A, b], [x]


def _quad_over_lin() -> Built:
    """Weighted power allocation: squares over a shared budget."""
    A, total = cp.Parameter((3, 4)), cp.Parameter(nonneg=True)
    x, t = cp.Variable(4), cp.Variable(2)
    cost = cp.quad_over_lin(A @ x - 1, t[0]) + cp.quad_over_lin(x, t[1])
    return cp.Problem(cp.Minimize(cost), [cp.sum(t) == total]), [A, total], [x, t]


def _soc_dual() -> Built:
    """One cone; both parts of its dual."""
    A, b, c, d = cp.Parameter((3, 4)), cp.Parameter(3), cp.Parameter(4), cp.Parameter()
    x = cp.Variable(4)
    cone = cp.SOC(c @ x + d, A @ x + b)
    cost = cp.sum_squares(x - np.array([2.0, -1.0, 1.0, 3.0]))
    return cp.Problem(cp.Minimize(cost), [cone]), [A, b, c, d], [x, *cone.dual_variables]


def _vectorised_soc_dual(axis: int) -> Built:
    """Three cones in one constraint (columns or rows): one tight, one loose, one at its apex."""
    target, limits = cp.Parameter((2, 3)), cp.Parameter(3)
    X, t = cp.Variable((2, 3)), cp.Variable(3)
    cone = cp.SOC(t, X if axis == 0 else X.T, axis=axis)
    cost = cp.sum_squares(X - target) + 2 * cp.sum_squares(t - limits)
    return cp.Problem(cp.Minimize(cost), [cone]), [target, limits], [X, t, *cone.dual_variables]


def _vectorised_soc_values(rng: np.random.Generator) -> list[Array]:
    # |target_i| against limit_i: 2.2 > 1 (boundary), 0.5 < 2 (interior), and a limit so negative
    # that minus the gradient at the origin is in the polar cone (apex): |target_i| < 2 |limit_i|.
    return [np.array([[2.0, 0.3, 0.2], [1.0, -0.4, 0.5]]), np.array([1.0, 2.0, -1.5])]


CASES = [
    Case(
        "trust_region",
        _trust_region,
        lambda rng: [positive_definite(rng, 5), 3 * rng.standard_normal(5), 0.8],
        cones("nonneg soc"),
    ),
    Case("portfolio_norm", _portfolio, _portfolio_values, cones("zero nonneg soc")),
    Case("group_lasso", _group_lasso, _group_lasso_values, cones("zero soc"), seed=8),
    Case(
        "robust_lp",
        _robust_lp,
        lambda rng: [
            np.array([-1.0, -0.6, 0.4]),
            rng.standard_normal((5, 3)),
            rng.uniform(1, 2, 5),
            0.4 * rng.standard_normal((3, 3)) + np.eye(3),
        ],
        cones("nonneg soc"),
    ),
    Case(
        "geo_mean",
        _geo_mean,
        lambda rng: [rng.uniform(0.2, 1.0, (3, 4)), rng.uniform(1.0, 1.5, 3)],
        cones("nonneg soc"),
    ),
    Case(
        "p_norm_soc",
        _p_norm,
        lambda rng: [rng.standard_normal((3, 6)), rng.standard_normal(3)],
        cones("zero nonneg soc"),
    ),
    Case(
        "quad_over_lin",
        _quad_over_lin,
        lambda rng: [rng.standard_normal((3, 4)), 2.0],
        cones("zero soc"),
    ),
    Case(
        "soc_dual",
        _soc_dual,
        lambda rng: [
            rng.standard_normal((3, 4)),
            rng.standard_normal(3),
            0.3 * rng.standard_normal(4),
            2.5,
        ],
        cones("zero soc"),
    ),
    Case(
        "soc_dual_columns",
        lambda: _vectorised_soc_dual(axis=0),
        _vectorised_soc_values,
        cones("zero soc"),
    ),
    Case(
        "soc_dual_rows",
        lambda: _vectorised_soc_dual(axis=1),
        _vectorised_soc_values,
        cones("zero soc"),
    ),
]
