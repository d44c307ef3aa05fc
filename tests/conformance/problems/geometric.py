"""Geometric programs: parameters as coefficients, bounds and exponents."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Built, Case, cones


def _box() -> Built:
    """Largest box under limits on wall area, floor area and aspect ratios (Boyd et al., 2007)."""
    wall, floor = cp.Parameter(pos=True), cp.Parameter(pos=True)
    aspect = cp.Parameter(pos=True)
    h, w, d = cp.Variable(pos=True), cp.Variable(pos=True), cp.Variable(pos=True)
    constraints = [
        2 * (h * w + h * d) <= wall,
        w * d <= floor,
        h / w >= aspect,
        h / w <= 4,
        d / w <= 3,
    ]
    return cp.Problem(cp.Maximize(h * w * d), constraints), [wall, floor, aspect], [h, w, d]


def _exponent() -> Built:
    """Coefficients and a power are parameters."""
    c, power = cp.Parameter(3, pos=True), cp.Parameter()
    x = cp.Variable(3, pos=True)
    cost = c[0] / (x[0] * x[1]) + c[1] * x[0] ** power * x[2] + x[1] / x[2]
    return cp.Problem(cp.Minimize(cost), [c[2] * x[0] * x[1] + x[2] <= 4]), [c, power], [x]


CASES = [
    Case("gp_box", _box, lambda rng: [200.0, 20.0, 3.0], cones("nonneg exp"), gp=True),
    Case(
        "gp_exponent",
        _exponent,
        lambda rng: [np.array([1.5, 0.8, 0.7]), 1.4],
        cones("nonneg exp"),
        gp=True,
    ),
]
