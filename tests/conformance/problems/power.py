"""Three-dimensional power cones: explicit, from p-norms and powers, and their duals."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Built, Case, cones


def _power_cone() -> Built:
    """Largest z with x^0.3 y^0.7 >= |z| over a polyhedron."""
    A, b = cp.Parameter((2, 2), nonneg=True), cp.Parameter(2, nonneg=True)
    x, y, z = cp.Variable(), cp.Variable(), cp.Variable()
    room = A @ cp.hstack([x, y]) + 0.2 * cp.hstack([z, z]) <= b
    problem = cp.Problem(cp.Maximize(z), [cp.PowCone3D(x, y, z, 0.3), room])
    return problem, [A, b], [x, y, z]


def _p_norm() -> Built:
    """The 3-norm written exactly, with one power cone an entry."""
    A, b = cp.Parameter((3, 6)), cp.Parameter(3)
    x = cp.Variable(6)
    cost = cp.pnorm(x, 3, approx=False)
    return cp.Problem(cp.Minimize(cost), [A @ x == b]), [A, b], [x]


def _power_regression() -> Built:
    """Least 2.5-th powers of the residuals."""
    A, b = cp.Parameter((7, 3)), cp.Parameter(7)
    x = cp.Variable(3)
    cost = cp.sum(cp.power(cp.abs(A @ x - b), 2.5, approx=False))
    return cp.Problem(cp.Minimize(cost)), [A, b], [x]


def _power_cone_dual() -> Built:
    """Three cones of different exponents in one constraint, all three parts of the dual."""
    x0, y0, z0 = cp.Parameter(3), cp.Parameter(3), cp.Parameter(3)
    x, y, z = cp.Variable(3), cp.Variable(3), cp.Variable(3)
    cone = cp.PowCone3D(x, y, z, np.array([0.2, 0.5, 0.7]))
    cost = cp.sum_squares(x - x0) + 2 * cp.sum_squares(y - y0) + 0.5 * cp.sum_squares(z - z0)
    problem = cp.Problem(cp.Minimize(cost), [cone])
    return problem, [x0, y0, z0], [x, y, z, *cone.dual_variables]


CASES = [
    Case(
        "power_cone",
        _power_cone,
        lambda rng: [np.array([[1.0, 0.4], [0.3, 1.2]]), np.array([1.0, 1.5])],
        cones("nonneg pow"),
    ),
    Case(
        "p_norm_power",
        _p_norm,
        lambda rng: [rng.standard_normal((3, 6)), rng.standard_normal(3)],
        cones("zero nonneg pow"),
    ),
    Case(
        "power_regression",
        _power_regression,
        lambda rng: [rng.standard_normal((7, 3)), 2 * rng.standard_normal(7)],
        cones("nonneg pow"),
    ),
    Case(
        "power_cone_dual",
        _power_cone_dual,
        # Outside with z > 0, outside with z < 0, inside.
        lambda rng: [np.array([1.0, 0.5, 2.0]), np.array([0.6, 1.0, 1.0]), np.array([2, -3, 0.5])],
        cones("zero pow"),
    ),
]
