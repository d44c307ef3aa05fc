"""Semidefinite programs: relaxations, projections, spectra, and PSD duals."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from .case import Array, Built, Case, cones, positive_definite, symmetric

_RNG = np.random.default_rng(14)
_MATRICES = [symmetric(_RNG, 4) for _ in range(3)]


def _max_cut() -> Built:
    laplacian = cp.Parameter((5, 5), symmetric=True)
    X = cp.Variable((5, 5), PSD=True)
    problem = cp.Problem(cp.Maximize(cp.trace(laplacian @ X) / 4), [cp.diag(X) == 1])
    return problem, [laplacian], [X]


def _max_cut_values(rng: np.random.Generator) -> list[Array]:
    weights = np.triu(rng.uniform(0.1, 1.0, (5, 5)), 1)
    weights = weights + weights.T
    return [np.diag(weights.sum(axis=1)) - weights]


def _nearest_correlation() -> Built:
    target = cp.Parameter((5, 5), symmetric=True)
    X = cp.Variable((5, 5), symmetric=True)
    unit, psd = cp.diag(X) == 1, X >> 0
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - target)), [unit, psd])
    return problem, [target], [X, unit.dual_variables[0]]


def _correlation_values(rng: np.random.Generator) -> list[Array]:
    target = 1.2 * symmetric(rng, 5)
    np.fill_diagonal(target, 1.0)
    return [target]


def _sparse_inverse_covariance() -> Built:
    covariance, weight = cp.Parameter((4, 4), PSD=True), cp.Parameter(nonneg=True)
    X = cp.Variable((4, 4), PSD=True)
    # Each pair once: with norm1(X) the two copies of an entry share one multiplier in any
    # proportion where the entry is zero, and the dual would not be unique.
    penalty = cp.norm1(cp.upper_tri(X))
    cost = -cp.log_det(X) + cp.trace(covariance @ X) + weight * penalty
    return cp.Problem(cp.Minimize(cost)), [covariance, weight], [X]


def _max_det() -> Built:
    """Largest-volume ellipsoid {Bu + d} inside a polyhedron (Boyd & Vandenberghe, 8.4.2)."""
    A, b = cp.Parameter((5, 2)), cp.Parameter(5)
    B, d = cp.Variable((2, 2), PSD=True), cp.Variable(2)
    constraints = [cp.norm(B @ A[i]) + A[i] @ d <= b[i] for i in range(5)]
    return cp.Problem(cp.Maximize(cp.log_det(B)), constraints), [A, b], [B, d]


def _max_det_values(rng: np.random.Generator) -> list[Array]:
    angles = 2 * np.pi * (np.arange(5) + rng.uniform(-0.2, 0.2, 5)) / 5
    return [np.column_stack([np.cos(angles), np.sin(angles)]), rng.uniform(0.8, 1.2, 5)]


def _lambda_max() -> Built:
    base, weight = cp.Parameter((4, 4), symmetric=True), cp.Parameter(nonneg=True)
    x = cp.Variable(3)
    pencil = base + sum(x[i] * _MATRICES[i] for i in range(3))
    cost = cp.lambda_max(pencil) + weight * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(cost)), [base, weight], [x]


def _nuclear_norm() -> Built:
    """Soft thresholding of singular values."""
    Y, weight = cp.Parameter((4, 3)), cp.Parameter(nonneg=True)
    X = cp.Variable((4, 3))
    cost = 0.5 * cp.sum_squares(X - Y) + weight * cp.normNuc(X)
    return cp.Problem(cp.Minimize(cost)), [Y, weight], [X]


def _nuclear_values(rng: np.random.Generator) -> list[Array]:
    U, _ = np.linalg.qr(rng.standard_normal((4, 3)))
    V, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return [U @ np.diag([3.0, 1.8, 0.4]) @ V.T, 1.0]


def _linear_matrix_inequality() -> Built:
    """Parametric matrices inside ``>> 0``, with its dual as output."""
    base, slope = cp.Parameter((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    c = cp.Parameter(2)
    x = cp.Variable(2)
    psd = base + x[0] * slope + x[1] * np.diag([1.0, -0.5, 0.3]) >> 0
    problem = cp.Problem(cp.Minimize(c @ x + cp.sum_squares(x)), [psd])
    return problem, [base, slope, c], [x, psd.dual_variables[0]]


def _psd_dual_standard_form() -> Built:
    """``X >> 0`` and an equality on a symmetric variable, all three outputs."""
    C, total = cp.Parameter((4, 4), symmetric=True), cp.Parameter(nonneg=True)
    X = cp.Variable((4, 4), symmetric=True)
    psd, trace = X >> 0, cp.trace(X) == total
    cost = cp.trace(C @ X) + 0.5 * cp.sum_squares(X)
    problem = cp.Problem(cp.Minimize(cost), [psd, trace])
    return problem, [C, total], [X, psd.dual_variables[0], trace.dual_variables[0]]


def _two_psd_blocks() -> Built:
    """Cones of different order: offsets and svec scalings must follow each block."""
    target, mixing = cp.Parameter((3, 3), symmetric=True), cp.Parameter((2, 3))
    X, Y = cp.Variable((3, 3), PSD=True), cp.Variable((2, 2), PSD=True)
    cost = cp.sum_squares(X - target) + cp.trace(Y @ np.array([[2.0, 0.3], [0.3, 1.0]]))
    link = Y - mixing @ X[:, :2]
    problem = cp.Problem(cp.Minimize(cost + cp.sum_squares(link)))
    return problem, [target, mixing], [X, Y]


CASES = [
    Case("max_cut", _max_cut, _max_cut_values, cones("zero psd")),
    Case("nearest_correlation", _nearest_correlation, _correlation_values, cones("zero psd")),
    Case(
        "sparse_inverse_covariance",
        _sparse_inverse_covariance,
        lambda rng: [positive_definite(rng, 4), 0.25],
        cones("nonneg psd exp"),
    ),
    Case("max_det_ellipsoid", _max_det, _max_det_values, cones("nonneg soc psd exp")),
    Case(
        "lambda_max",
        _lambda_max,
        lambda rng: [2 * symmetric(rng, 4), 0.3],
        cones("psd"),
    ),
    Case("nuclear_norm", _nuclear_norm, _nuclear_values, cones("zero psd")),
    Case(
        "linear_matrix_inequality",
        _linear_matrix_inequality,
        lambda rng: [
            symmetric(rng, 3) - 0.5 * np.eye(3),
            positive_definite(rng, 3),
            np.array([3.0, 0.5]),
        ],
        cones("psd"),
    ),
    Case(
        "psd_dual",
        _psd_dual_standard_form,
        lambda rng: [2 * symmetric(rng, 4), 1.0],
        cones("zero psd"),
    ),
    Case(
        "two_psd_blocks",
        _two_psd_blocks,
        lambda rng: [2 * symmetric(rng, 3), rng.standard_normal((2, 3))],
        cones("zero psd"),
        seed=6,
    ),
]
