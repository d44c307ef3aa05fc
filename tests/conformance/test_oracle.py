"""The oracle against closed forms, and every case against what the table promises."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.utilities import scopes

from .oracle import gradient, relative_error, solution, weights
from .problems import CASES, Case
from .tight import TightSolver

Array = np.ndarray

BY_NAME = {case.name: case for case in CASES}
CONE_NAMES = {
    "zero": "zero",
    "nonneg": "nonneg",
    "soc": "soc",
    "psd": "psd",
    "exp": "exp",
    "p3d": "pow",
    "pnd": "pow of higher dimension",
}

each_case = pytest.mark.parametrize("case", CASES, ids=str)


# The table


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES) >= 34


def test_table_covers_every_cone() -> None:
    covered = frozenset().union(*(case.cones for case in CASES))
    assert covered == {"zero", "nonneg", "soc", "psd", "exp", "pow"}


@each_case
def test_problem_is_dpp_over_the_cones_it_names(case: Case) -> None:
    problem, parameters, _ = case.build()
    for parameter, value in zip(parameters, case.values(), strict=True):
        parameter.value = value
    with scopes.quad_form_dpp_scope():
        assert problem.is_dgp(dpp=True) if case.gp else problem.is_dcp(dpp=True)
        data, _, _ = problem.get_problem_data(
            cp.CLARABEL, gp=case.gp, solver_opts={"use_quad_obj": True}
        )
    emitted = {CONE_NAMES[name] for name, size in vars(data["dims"]).items() if size}
    assert emitted == case.cones


@each_case
def test_values_are_repeatable(case: Case) -> None:
    first, second = case.values(), case.values()
    for a, b in zip(first, second, strict=True):
        assert a.dtype == np.float64
        assert a is not b
        np.testing.assert_array_equal(a, b)


@each_case
def test_solution_is_nondegenerate_where_promised(case: Case) -> None:
    solver = TightSolver(case)
    solver.solve(case.values())
    assert solver.residual < 1e-13
    if case.regular:
        assert solver.regularity() > 1e-3
    else:
        assert solver.regularity() < 1e-12


# The oracle on every case


@each_case
def test_oracle_is_accurate(case: Case) -> None:
    truth = gradient(case)
    print(f"{case.name}: {truth.seconds:.2f} s, estimated error {truth.relative_error:.1e}")
    assert truth.relative_error <= 1e-7
    assert max(truth.kinks) <= 1e-5, "the solution is not differentiable here"


@each_case
def test_every_parameter_matters(case: Case) -> None:
    norms = [np.linalg.norm(d) for d in gradient(case).derivatives]
    assert min(norms) > 1e-3 * max(norms) > 0


# Closed forms


def _hedge() -> list[Array]:
    # Stationarity 2 S x + F'y = 0 and F x = e, differentiated by the adjoint of their matrix.
    problem, _, _ = BY_NAME["equality_only_hedge"].build()
    S, e = BY_NAME["equality_only_hedge"].values()
    (equality,) = problem.constraints
    equality_matrix = equality.args[0].args[0].value
    c_x, c_y = weights(BY_NAME["equality_only_hedge"])
    kkt = np.block([[2 * S, equality_matrix.T], [equality_matrix, np.zeros((3, 3))]])
    x = np.linalg.solve(kkt, np.concatenate([np.zeros(8), e]))[:8]
    u = np.linalg.solve(kkt, np.concatenate([c_x, c_y]))
    dS = -2 * np.outer(u[:8], x)
    return [(dS + dS.T) / 2, u[8:]]


def _simplex_projection() -> list[Array]:
    # On the support, x = y - (sum y - total) / k.
    case = BY_NAME["simplex_projection"]
    (c,), (x,) = weights(case), solution(case)
    support = x > 1e-6
    mean = c[support].mean()
    return [np.where(support, c - mean, 0.0), np.array(mean)]


def _softmax() -> list[Array]:
    case = BY_NAME["entropy_softmax"]
    (c,), (score,) = weights(case), case.values()
    x = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(solution(case)[0], x, rtol=1e-12)
    return [x * (c - c @ x)]


def _least_squares() -> list[Array]:
    # x = A^+ b (Golub & Pereyra 1973).
    case = BY_NAME["least_squares"]
    (c,), (A, b) = weights(case), case.values()
    x = np.linalg.lstsq(A, b, rcond=None)[0]
    u = np.linalg.solve(A.T @ A, c)
    return [np.outer(b - A @ x, u) - np.outer(A @ u, x), A @ u]


def _nuclear_norm() -> list[Array]:
    # Singular values 3, 1.8 and 0.4 shrink by the weight 1; dX / dweight = -U V' of the kept two.
    # The other gradient is left to the finite differences.
    case = BY_NAME["nuclear_norm"]
    (c,), (Y, _) = weights(case), case.values()
    U, _, Vt = np.linalg.svd(Y)
    return [np.array(-np.vdot(c, U[:, :2] @ Vt[:2]))]


@pytest.mark.parametrize(
    ("name", "closed_form"),
    [
        ("equality_only_hedge", _hedge),
        ("simplex_projection", _simplex_projection),
        ("entropy_softmax", _softmax),
        ("least_squares", _least_squares),
    ],
)
def test_oracle_agrees_with_closed_form(name, closed_form) -> None:
    assert relative_error(closed_form(), gradient(BY_NAME[name])) < 1e-9


def test_oracle_agrees_with_singular_value_thresholding() -> None:
    truth = gradient(BY_NAME["nuclear_norm"])
    np.testing.assert_allclose(
        _nuclear_norm()[0] * truth.directions[1], truth.derivatives[1], rtol=1e-8
    )


def test_relative_error_sees_a_wrong_parameter() -> None:
    right, truth = _least_squares(), gradient(BY_NAME["least_squares"])
    assert relative_error([right[0], 1.01 * right[1]], truth) == pytest.approx(0.01, rel=1e-6)
    with pytest.raises(ValueError, match="shape"):
        relative_error(right[::-1], truth)


# The duals that CVXPY returns, against stationarity written out by hand


@pytest.mark.parametrize("name", ["soc_dual_columns", "soc_dual_rows"])
def test_duals_of_stacked_second_order_cones(name: str) -> None:
    case = BY_NAME[name]
    (target, limits), (X, t, dual_t, dual_X) = case.values(), solution(case)
    if name == "soc_dual_rows":
        dual_X = dual_X.T
    # Boundary, interior and apex, one cone each.
    gaps = t - np.linalg.norm(X, axis=0)
    np.testing.assert_array_equal(np.round(t, 6) > 0, [True, True, False])
    np.testing.assert_array_equal(gaps > 1e-6, [False, True, False])
    # CVXPY's Lagrangian is cost - dual_t't - <dual_X, X>, the dual in the cone itself.
    np.testing.assert_allclose(dual_t, 4 * (t - limits), atol=1e-9)
    np.testing.assert_allclose(dual_X, 2 * (X - target), atol=1e-9)


@pytest.mark.parametrize("name", ["exp_cone_dual", "power_cone_dual"])
def test_duals_of_stacked_three_dimensional_cones(name: str) -> None:
    case = BY_NAME[name]
    x, y, z, *duals = solution(case)
    x0, y0, z0 = case.values()
    slopes = [2 * (x - x0), 4 * (y - y0), z - z0]
    for dual, slope in zip(duals, slopes, strict=True):
        np.testing.assert_allclose(dual, slope, atol=1e-9)
    np.testing.assert_array_equal(np.abs(duals).max(axis=0) > 1e-6, [True, True, False])


def test_dual_of_semidefinite_constraint() -> None:
    case = BY_NAME["psd_dual"]
    (C, _), (X, dual, multiplier) = case.values(), solution(case)
    np.testing.assert_allclose(dual, C + X + multiplier * np.eye(4), atol=1e-9)
    np.testing.assert_allclose(X @ dual, np.zeros((4, 4)), atol=1e-9)
