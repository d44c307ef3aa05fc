"""Linear programs and piecewise-linear terms: vertices, hinges, absolute values, projections."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Array, Built, Case, cones

_RNG = np.random.default_rng(12)
_DESIGN = _RNG.standard_normal((14, 4))
_LABELS = np.where(np.arange(16) % 2 == 0, 1.0, -1.0)
_STEPS = np.array([3.0] * 5 + [0.0] + [-2.0] * 5 + [-4.0] * 4)


def _lp_vertex() -> Built:
    c, A, b = cp.Parameter(5, name="c"), cp.Parameter((9, 5), name="A"), cp.Parameter(9, name="b")
    x = cp.Variable(5)
    constraint = A @ x <= b
    problem = cp.Problem(cp.Minimize(c @ x), [constraint])
    return problem, [c, A, b], [x, constraint.dual_variables[0]]


def _lp_values(rng: np.random.Generator) -> list[Array]:
    # As many tight rows as unknowns, all multipliers and all other slacks at least 0.5.
    A, x, margin = rng.standard_normal((9, 5)), rng.standard_normal(5), rng.uniform(0.5, 1.5, 9)
    tight = np.arange(9) < 5
    return [-A.T @ np.where(tight, margin, 0.0), A, A @ x + np.where(tight, 0.0, margin)]


def _simplex_projection() -> Built:
    y, total = cp.Parameter(8, name="y"), cp.Parameter(name="total")
    x = cp.Variable(8)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == total, x >= 0])
    return problem, [y, total], [x]


def _isotonic() -> Built:
    y = cp.Parameter(12)
    x = cp.Variable(12)
    rising = x[1:] >= x[:-1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [rising])
    return problem, [y], [x, rising.dual_variables[0]]


def _lasso() -> Built:
    A, b, weight = cp.Parameter((10, 6)), cp.Parameter(10), cp.Parameter(nonneg=True)
    x = cp.Variable(6)
    cost = cp.sum_squares(A @ x - b) + weight * cp.norm1(x)
    return cp.Problem(cp.Minimize(cost)), [A, b, weight], [x]


def _fused_lasso() -> Built:
    y, sparse, smooth = cp.Parameter(15), cp.Parameter(nonneg=True), cp.Parameter(nonneg=True)
    x = cp.Variable(15)
    cost = cp.sum_squares(x - y) + sparse * cp.norm1(x) + smooth * cp.norm1(cp.diff(x))
    return cp.Problem(cp.Minimize(cost)), [y, sparse, smooth], [x]


def _total_variation() -> Built:
    y, smooth = cp.Parameter(16), cp.Parameter(nonneg=True)
    x = cp.Variable(16)
    cost = cp.sum_squares(x - y) + smooth * cp.norm1(cp.diff(x))
    return cp.Problem(cp.Minimize(cost)), [y, smooth], [x]


def _huber() -> Built:
    A, b = cp.Parameter((14, 4)), cp.Parameter(14)
    x = cp.Variable(4)
    return cp.Problem(cp.Minimize(cp.sum(cp.huber(A @ x - b, 0.7)))), [A, b], [x]


def _quantile(split: bool) -> Built:
    """Quantile regression: the optimal fit passes through as many points as it has unknowns.

    Split into positive and negative parts, each of those points holds four tight constraints on
    three unknowns: the multipliers are not unique, the fit is.
    """
    A, b = cp.Parameter((14, 4)), cp.Parameter(14)
    x = cp.Variable(4)
    residual = A @ x - b
    if split:
        cost = 0.3 * cp.sum(cp.pos(residual)) + 0.7 * cp.sum(cp.neg(residual))
    else:
        cost = cp.sum(cp.maximum(0.3 * residual, -0.7 * residual))
    return cp.Problem(cp.Minimize(cost)), [A, b], [x]


def _l1_regression() -> Built:
    b, ridge = cp.Parameter(14), cp.Parameter(nonneg=True)
    x = cp.Variable(4)
    cost = cp.norm1(_DESIGN @ x - b) + ridge * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(cost)), [b, ridge], [x]


def _chebyshev() -> Built:
    A, b = cp.Parameter((10, 3)), cp.Parameter(10)
    x = cp.Variable(3)
    return cp.Problem(cp.Minimize(cp.norm_inf(A @ x - b))), [A, b], [x]


def _sum_largest() -> Built:
    A, b = cp.Parameter((9, 4)), cp.Parameter(9)
    x = cp.Variable(4)
    cost = cp.sum_largest(A @ x - b, 3) + cp.sum_squares(x)
    return cp.Problem(cp.Minimize(cost)), [A, b], [x]


def _svm() -> Built:
    features, ridge = cp.Parameter((16, 3)), cp.Parameter(nonneg=True)
    w, offset = cp.Variable(3), cp.Variable()
    margins = cp.multiply(_LABELS, features @ w + offset)
    cost = cp.sum(cp.pos(1 - margins)) + ridge * cp.sum_squares(w)
    return cp.Problem(cp.Minimize(cost)), [features, ridge], [w, offset]


CASES = [
    Case("lp_vertex", _lp_vertex, _lp_values, cones("nonneg")),
    Case(
        "simplex_projection",
        _simplex_projection,
        lambda rng: [np.array([0.7, -0.3, 0.45, 0.2, -0.6, 0.9, 0.05, 0.31]), 1.0],
        cones("zero nonneg"),
    ),
    Case(
        "isotonic_regression",
        _isotonic,
        lambda rng: [np.linspace(0, 2, 12) + rng.standard_normal(12)],
        cones("zero nonneg"),
    ),
    Case(
        "lasso",
        _lasso,
        lambda rng: [rng.standard_normal((10, 6)), rng.standard_normal(10), 3.0],
        cones("zero nonneg"),
    ),
    Case(
        "fused_lasso",
        _fused_lasso,
        # Only one entry is shrunk to zero. Two equal neighbours at zero would make the rows
        # x_i = 0, x_j = 0, x_i = x_j dependent and the multipliers not unique.
        lambda rng: [_STEPS + 0.3 * rng.standard_normal(15), 0.3, 0.8],
        cones("zero nonneg"),
    ),
    Case(
        "total_variation",
        _total_variation,
        lambda rng: [np.repeat([0.0, 2.0, 1.0, -1.0], 4) + 0.4 * rng.standard_normal(16), 0.7],
        cones("zero nonneg"),
    ),
    Case(
        "huber_regression",
        _huber,
        lambda rng: [rng.standard_normal((14, 4)), 2 * rng.standard_normal(14)],
        cones("zero nonneg"),
    ),
    Case(
        "quantile_regression",
        lambda: _quantile(split=False),
        lambda rng: [rng.standard_normal((14, 4)), rng.standard_normal(14)],
        cones("nonneg"),
    ),
    Case(
        "quantile_regression_split",
        lambda: _quantile(split=True),
        lambda rng: [rng.standard_normal((14, 4)), rng.standard_normal(14)],
        cones("nonneg"),
        regular=False,
    ),
    Case(
        "l1_regression_ridge",
        _l1_regression,
        lambda rng: [rng.standard_normal(14), 20.0],
        cones("nonneg"),
    ),
    Case(
        "chebyshev_regression",
        _chebyshev,
        lambda rng: [rng.standard_normal((10, 3)), rng.standard_normal(10)],
        cones("nonneg"),
    ),
    Case(
        "sum_largest",
        _sum_largest,
        lambda rng: [rng.standard_normal((9, 4)), rng.standard_normal(9)],
        cones("nonneg"),
    ),
    Case(
        "svm_hinge_ridge",
        _svm,
        lambda rng: [rng.standard_normal((16, 3)) + 0.6 * _LABELS[:, None], 5.0],
        cones("nonneg"),
    ),
]
