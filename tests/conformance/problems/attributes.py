"""Constraints that are only attributes of a variable, and structured parameters."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Built, Case, cones, positive_definite, symmetric


def _nonneg() -> Built:
    P, q = cp.Parameter((5, 5), PSD=True), cp.Parameter(5)
    x = cp.Variable(5, nonneg=True)
    return cp.Problem(cp.Minimize(cp.quad_form(x, P) + q @ x)), [P, q], [x]


def _bounds() -> Built:
    """Constant bounds on one variable, some infinite; parametric bounds on the other."""
    target, lower, upper = cp.Parameter(5), cp.Parameter(3), cp.Parameter(3)
    x = cp.Variable(5, bounds=[np.array([-1, -1, -np.inf, -np.inf, 0]), np.inf])
    y = cp.Variable(3, bounds=[lower, upper])
    # The coupling lets the bounds of y move x too.
    cost = cp.sum_squares(x - target) + cp.sum_squares(y) + cp.square(cp.sum(x) - cp.sum(y))
    return cp.Problem(cp.Minimize(cost)), [target, lower, upper], [x, y]


def _diagonal() -> Built:
    S, q = cp.Parameter((4, 4), symmetric=True), cp.Parameter(4)
    D, x = cp.Variable((4, 4), diag=True), cp.Variable(4)
    cost = cp.sum_squares(D - S) + cp.sum_squares(x - q) + cp.sum_squares(D @ np.ones(4) - x)
    return cp.Problem(cp.Minimize(cost), [cp.diag(D) <= 0.5]), [S, q], [D, x]


def _symmetric_variable() -> Built:
    """The symmetric matrix with given row sums that is nearest to a matrix that is not."""
    target, sums = cp.Parameter((4, 4)), cp.Parameter(4)
    X = cp.Variable((4, 4), symmetric=True)
    rows = cp.sum(X, axis=1) == sums
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - target)), [rows])
    return problem, [target, sums], [X, rows.dual_variables[0]]


def _psd_variable() -> Built:
    """Projection onto PSD matrices with a given trace, through ``PSD=True`` alone."""
    target, trace = cp.Parameter((4, 4), symmetric=True), cp.Parameter(nonneg=True)
    X = cp.Variable((4, 4), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - target)), [cp.trace(X) == trace])
    return problem, [target, trace], [X]


def _matrix_variable() -> Built:
    scale, q = cp.Parameter((4, 4), PSD=True), cp.Parameter((2, 3))
    x, y = cp.Variable(4), cp.Variable((2, 3), nonneg=True)
    cost = cp.quad_form(x, scale) + cp.sum_squares(y - q) + cp.sum(x) * 0.5
    constraints = [cp.sum(x) + cp.sum(y, axis=1) == np.array([3.0, 4.0])]
    return cp.Problem(cp.Minimize(cost), constraints), [scale, q], [x, y]


CASES = [
    Case(
        "variable_nonneg",
        _nonneg,
        lambda rng: [positive_definite(rng, 5), np.array([-2.0, 1.5, -1.0, -1.5, 1.0])],
        cones("nonneg"),
    ),
    Case(
        "variable_bounds",
        _bounds,
        lambda rng: [
            np.array([-2.5, 0.7, 1.2, -1.4, -1.1]),
            np.array([0.4, -1.0, -2.0]),
            np.array([1.0, -0.5, 3.0]),
        ],
        cones("zero nonneg"),
    ),
    Case(
        "variable_diag",
        _diagonal,
        lambda rng: [symmetric(rng, 4), rng.standard_normal(4)],
        cones("zero nonneg"),
    ),
    Case(
        "variable_symmetric",
        _symmetric_variable,
        lambda rng: [rng.standard_normal((4, 4)), rng.standard_normal(4)],
        cones("zero"),
    ),
    Case(
        "variable_psd",
        _psd_variable,
        lambda rng: [symmetric(rng, 4), 1.5],
        cones("zero psd"),
    ),
    Case(
        "matrix_variable_and_quad_form",
        _matrix_variable,
        lambda rng: [positive_definite(rng, 4), rng.standard_normal((2, 3))],
        cones("zero nonneg"),
    ),
]
