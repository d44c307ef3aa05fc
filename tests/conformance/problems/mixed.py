"""Every cone in one problem: offsets, orders and duals of all of them at once."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Built, Case, cones, symmetric


def _all_cones() -> Built:
    target, q, level = cp.Parameter((3, 3), symmetric=True), cp.Parameter(4), cp.Parameter(4)
    X, x = cp.Variable((3, 3), symmetric=True), cp.Variable(4)
    e, p = cp.Variable(3), cp.Variable(3)
    constraints = [
        cp.sum(x) + cp.trace(X) == level[0],
        x[:2] <= level[1],
        cp.SOC(level[2] + x[0], x[1:] + e),
        X >> 0,
        cp.ExpCone(e[0], e[1], e[2] + level[3]),
        cp.PowCone3D(p[0], p[1], p[2] + X[0, 1], 0.4),
    ]
    cost = (
        cp.sum_squares(X - target)
        + cp.sum_squares(x - q)
        + cp.sum_squares(e - np.array([1.0, 0.8, 0.5]))
        + cp.sum_squares(p - np.array([0.6, 0.5, 2.0]))
    )
    duals = [dual for constraint in constraints for dual in constraint.dual_variables]
    return cp.Problem(cp.Minimize(cost), constraints), [target, q, level], [X, x, e, p, *duals]


CASES = [
    Case(
        "all_cones",
        _all_cones,
        lambda rng: [
            2 * symmetric(rng, 3),
            np.array([1.5, -0.4, 1.2, 0.9]),
            np.array([3.0, 0.8, 1.0, 0.1]),
        ],
        cones("zero nonneg soc psd exp pow"),
    ),
]
