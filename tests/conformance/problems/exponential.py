"""Exponential cones: entropies, divergences, logistic loss, logarithms, and their duals."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Built, Case, cones

_RNG = np.random.default_rng(15)
_LABELS = np.where(_RNG.random(20) < 0.5, 1.0, -1.0)


def _entropy() -> Built:
    """Entropy-regularised choice: the solution is softmax(score)."""
    score = cp.Parameter(6)
    x = cp.Variable(6)
    problem = cp.Problem(cp.Maximize(score @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1])
    return problem, [score], [x]


def _kl_projection() -> Built:
    """Nearest distribution with a given moment, in KL divergence."""
    prior, features, moment = cp.Parameter(6, nonneg=True), cp.Parameter((2, 6)), cp.Parameter(2)
    x = cp.Variable(6)
    constraints = [cp.sum(x) == 1, features @ x == moment]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.kl_div(x, prior))), constraints)
    return problem, [prior, features, moment], [x]


def _kl_values(rng: np.random.Generator) -> list[np.ndarray]:
    prior, features = rng.dirichlet(5 * np.ones(6)), rng.standard_normal((2, 6))
    return [prior, features, features @ rng.dirichlet(3 * np.ones(6))]


def _relative_entropy() -> Built:
    """Both arguments vary; an inequality is tight."""
    p, limit = cp.Parameter(5, nonneg=True), cp.Parameter()
    x, y = cp.Variable(5), cp.Variable(5)
    cost = cp.sum(cp.rel_entr(x, y)) + cp.sum_squares(x - p) + cp.sum_squares(y - 1)
    tight = x[0] + y[1] >= limit
    problem = cp.Problem(cp.Minimize(cost), [tight])
    return problem, [p, limit], [x, y, tight.dual_variables[0]]


def _logistic() -> Built:
    features, weight = cp.Parameter((20, 4)), cp.Parameter(nonneg=True)
    w = cp.Variable(4)
    loss = cp.sum(cp.logistic(cp.multiply(-_LABELS, features @ w)))
    return cp.Problem(cp.Minimize(loss + weight * cp.norm1(w))), [features, weight], [w]


def _water_filling() -> Built:
    noise, total = cp.Parameter(6, nonneg=True), cp.Parameter(nonneg=True)
    x = cp.Variable(6)
    budget = cp.sum(x) == total
    problem = cp.Problem(cp.Maximize(cp.sum(cp.log(noise + x))), [budget, x >= 0])
    return problem, [noise, total], [x, budget.dual_variables[0]]


def _log_sum_exp() -> Built:
    A, b = cp.Parameter((6, 3)), cp.Parameter(6)
    x = cp.Variable(3)
    cost = cp.log_sum_exp(A @ x + b) + 0.5 * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(cost), [cp.sum(x) == 1]), [A, b], [x]


def _exp_cone_dual() -> Built:
    """Three cones in one constraint, y exp(x / y) <= z, all three parts of the dual."""
    x0, y0, z0 = cp.Parameter(3), cp.Parameter(3), cp.Parameter(3)
    x, y, z = cp.Variable(3), cp.Variable(3), cp.Variable(3)
    cone = cp.ExpCone(x, y, z)
    cost = cp.sum_squares(x - x0) + 2 * cp.sum_squares(y - y0) + 0.5 * cp.sum_squares(z - z0)
    problem = cp.Problem(cp.Minimize(cost), [cone])
    return problem, [x0, y0, z0], [x, y, z, *cone.dual_variables]


CASES = [
    Case("entropy_softmax", _entropy, lambda rng: [rng.standard_normal(6)], cones("zero exp")),
    Case("kl_projection", _kl_projection, _kl_values, cones("zero exp")),
    Case(
        "relative_entropy",
        _relative_entropy,
        lambda rng: [rng.uniform(0.5, 2.0, 5), 4.0],
        cones("zero nonneg exp"),
    ),
    Case(
        "logistic_l1",
        _logistic,
        lambda rng: [
            rng.standard_normal((20, 4)) + 0.5 * _LABELS[:, None] * np.array([1, 0, -1, 0]),
            2.0,
        ],
        cones("nonneg exp"),
    ),
    Case(
        "water_filling",
        _water_filling,
        lambda rng: [np.array([0.8, 1.1, 2.5, 0.6, 3.0, 1.3]), 2.0],
        cones("zero nonneg exp"),
    ),
    Case(
        "log_sum_exp",
        _log_sum_exp,
        lambda rng: [rng.standard_normal((6, 3)), rng.standard_normal(6)],
        cones("zero nonneg exp"),
    ),
    Case(
        "exp_cone_dual",
        _exp_cone_dual,
        # Outside, outside, inside: 0.5 e^{2} > 1, e > 2, and 1 < 4.
        lambda rng: [np.array([1.0, 1.0, 0.0]), np.array([0.5, 1.0, 1.0]), np.array([1, 2, 4.0])],
        cones("zero exp"),
    ),
]
