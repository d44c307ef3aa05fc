"""Unknowns that one equality defines: what is left is the same problem."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch

from cvxlayers.canonicalize import canonicalize
from cvxlayers.lanes import Engine, elimination, engine, load
from cvxlayers.program import OUTCOMES, ConeProgram
from cvxlayers.torch import CvxpyLayer

module = load()
pytestmark = pytest.mark.skipif(module is None, reason="not compiled")

B = 5


def dense_least_squares() -> tuple[cp.Problem, list[cp.Parameter]]:
    """With a matrix that is a parameter, and a second, sparse, square."""
    x = cp.Variable(6)
    L, c, h = cp.Parameter((8, 6)), cp.Parameter(8), cp.Parameter(6)
    objective = cp.sum_squares(L @ x - c) + 0.5 * cp.sum_squares(cp.diff(x)) + cp.sum(x)
    return cp.Problem(cp.Minimize(objective), [x <= h, cp.sum(x) == 1]), [L, c, h]


def program() -> ConeProgram:
    problem, parameters = dense_least_squares()
    canonical = canonicalize(problem, parameters, problem.variables(), False, None)
    rng = np.random.default_rng(0)
    theta = [rng.standard_normal((B, 48)), rng.standard_normal((B, 8)), np.ones((1, 6))]
    return canonical.program(theta, B)


def dense(program: ConeProgram, i: int) -> tuple[np.ndarray, np.ndarray]:
    P = program.structure.P.matrix(program.P[i if len(program.P) > 1 else 0]).toarray()
    A = program.structure.A.matrix(program.A[i if len(program.A) > 1 else 0]).toarray()
    return P + np.triu(P, 1).T, A


def test_the_pattern_of_M_holds_all_products() -> None:
    """M = Lᵀ(p/a²)L by dense matrices, for every instance."""
    given = program()
    found = elimination.find_elimination(given.structure)
    assert found is not None and len(found.terms[0])
    structure = given.structure
    rows, cols = structure.A.rows[found.a_entries], structure.A.cols[found.a_entries]
    assert len(rows) == 8 + 5
    for i in range(B):
        P, A = dense(given, i)
        L = A[rows].copy()
        a = L[np.arange(len(rows)), cols].copy()
        L[np.arange(len(rows)), cols] = 0.0
        p = P[cols, cols]
        np.testing.assert_array_equal(P[cols][:, np.setdiff1d(np.arange(len(P)), cols)], 0.0)
        true = L.T @ ((p / a**2)[:, None] * L)
        M = np.zeros_like(true)
        place, row, left, right = found.terms
        A_i = given.A[i if len(given.A) > 1 else 0]
        np.add.at(M, (found.i[place], found.j[place]), (p / a**2)[row] * A_i[left] * A_i[right])
        np.testing.assert_allclose(np.triu(M), np.triu(true), atol=1e-13)


@pytest.mark.parametrize("most", [0, 200_000], ids=["by BLAS", "one by one"])
def test_the_answers_are_those_without_elimination(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = program()
    monkeypatch.setattr(engine, "find_elimination", lambda structure: None)
    plain = Engine(module, given.structure)
    monkeypatch.undo()
    monkeypatch.setattr(elimination, "MOST_PRODUCTS", most)
    # The sparse square has its own products, which BLAS is not for.
    monkeypatch.setattr(elimination, "DENSE", 0.0)
    reduced = Engine(module, given.structure)
    assert reduced.store < plain.store
    points = []
    for core in (plain, reduced):
        answer = core.solve(given, (1e-9,) * 3, 100)
        assert (answer.outcome == OUTCOMES.index("solved")).all()
        point = [answer.x.copy(), answer.z.copy(), answer.s.copy()]
        assert (core.polish(given, *point) <= 1e-14).all()
        r = np.random.default_rng(1).standard_normal
        u, v, residual = core.newton(
            given, *point, r((B, point[0].shape[1])), r((B, point[1].shape[1]))
        )
        assert (residual <= 1e-12).all()
        points.append([*point, u, v])
    for one, other in zip(*points, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_nonnegative_least_squares_with_a_dense_parameter() -> None:
    """Against SciPy's active-set method, and the gradient of least squares on the active set."""
    m, n = 60, 40
    A, b, x = cp.Parameter((m, n)), cp.Parameter(m), cp.Variable(n)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], [x])
    rng = np.random.default_rng(0)
    A_v, b_v, g = rng.standard_normal((m, n)), rng.standard_normal(m), rng.standard_normal(n)
    A_t, b_t = (torch.tensor(v, requires_grad=True) for v in (A_v, b_v))
    (found,) = layer(A_t, b_t)
    true, _ = scipy.optimize.nnls(A_v, b_v)
    np.testing.assert_allclose(found.detach(), true, atol=1e-10)
    found.backward(torch.tensor(g))
    active = true > 0
    A_a = A_v[:, active]
    u = np.zeros(n)
    u[active] = np.linalg.solve(A_a.T @ A_a, g[active])
    rest = b_v - A_v @ true
    np.testing.assert_allclose(b_t.grad, A_v @ u, atol=1e-10)
    np.testing.assert_allclose(A_t.grad, np.outer(rest, u) - np.outer(A_v @ u, true), atol=1e-10)


def test_a_coefficient_that_is_a_parameter_is_not_divided_by() -> None:
    """a y = x, y in no other row: a may become zero."""
    x, y, a = cp.Variable(2), cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1) + cp.sum_squares(y)), [a * y == x])
    canonical = canonicalize(problem, [a], [x, y], False, None)
    found = elimination.find_elimination(canonical.structure)
    assert found is not None
    fixed = canonical.structure.fixed_A
    assert fixed is not None and np.isfinite(fixed[found.a_entries]).all()
    layer = CvxpyLayer(problem, [a], [x, y])
    a_t = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    x_found, _ = layer(a_t)
    # min (a y − 1)² + y²: y = a/(a² + 1).
    value = a_t.detach()
    expected = (value**2 / (value**2 + 1))[:, None].expand(3, 2)
    torch.testing.assert_close(x_found.detach(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("curved", [True, False])
def test_an_equality_may_define_a_variable_that_adds_nothing(curved: bool) -> None:
    """y = x + 1, with p = 0 for y, beside another variable with or without a curvature."""
    x, y, c = cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    objective = cp.sum_squares(x - c) if curved else 2 * cp.norm1(x - c)
    problem = cp.Problem(cp.Minimize(objective + cp.sum(y)), [y == x + 1, x >= -3])
    layer = CvxpyLayer(problem, [c], [x, y])
    c_t = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    x_found, y_found = layer(c_t)
    # 2 (x − c) + 1 = 0; and the slope of 2 |x − c| is more than one.
    torch.testing.assert_close(x_found, c_t - 0.5 if curved else c_t, rtol=0, atol=1e-7)
    torch.testing.assert_close(y_found, x_found + 1, rtol=0, atol=1e-7)


def test_a_quadratic_form_without_linear_terms() -> None:
    """Found by a random problem: every equality that goes has p = 0, so that M is empty."""
    X, P = cp.Variable((2, 2)), cp.Parameter((4, 4), PSD=True)
    problem = cp.Problem(cp.Minimize(cp.quad_form(cp.vec(X, order="F"), P)))
    layer = CvxpyLayer(problem, [P], [X])
    (found,) = layer(torch.eye(4, dtype=torch.float64)[None].expand(3, 4, 4))
    torch.testing.assert_close(found, torch.zeros(3, 2, 2, dtype=torch.float64))
