"""Traps of the gradient itself (docs/design): 1 to 5, 9 and 13."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import agree, agree_with_oracle, draw, projection, projection_formula, run

from conformance.problems.case import planted_qp, positive_definite
from cvxlayers.torch import CvxpyLayer

# --- Trap 1: the derivative of the exponential cone is wrong.


def entropy_layer(n: int, **settings: object) -> CvxpyLayer:
    c, x = cp.Parameter(n), cp.Variable(n)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) + c @ x), [cp.sum(x) == 1])
    return CvxpyLayer(problem, [c], [x], **settings)


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_trap_1_maximum_entropy_is_softmax(spread: float) -> None:
    layer = entropy_layer(6)
    agree(layer, lambda c: (torch.softmax(c, -1),), [spread * draw(2, 6)], 1e-7, 1e-6)


def test_trap_1_whole_jacobian_of_softmax() -> None:
    c = torch.as_tensor(draw(4))
    jacobian = torch.autograd.functional.jacobian(lambda c: entropy_layer(4)(c)[0], c)
    p = torch.softmax(c, 0)
    torch.testing.assert_close(jacobian, torch.diag(p) - torch.outer(p, p), rtol=1e-6, atol=1e-8)


def test_trap_1_log_sum_exp_regression() -> None:
    """Exponential cones with slack and dual in every position: logistic regression."""

    def build() -> tuple[cp.Problem, list, list]:
        X, w = cp.Parameter((6, 2)), cp.Variable(2)
        loss = cp.sum(cp.logistic(-(X @ w))) + 0.1 * cp.sum_squares(w)
        return cp.Problem(cp.Minimize(loss)), [X], [w]

    agree_with_oracle(build, draw(6, 2))


# --- Trap 2: an iterative adjoint stops early without a word.


@pytest.fixture(scope="module")
def ill_scaled_qp() -> dict[str, np.ndarray]:
    """A QP with n = 200, variables and rows scaled over six decades, and its active set's KKT."""
    rng, n, p, m, active = np.random.default_rng(2), 200, 40, 150, 60
    L, q, A, b, G, h = planted_qp(rng, n, p, m, active)
    column = 10.0 ** rng.uniform(-1.5, 1.5, n)
    row = 10.0 ** rng.uniform(-1.5, 1.5, m)
    L, q, A, G, h = L * column, q * column, A * column, row[:, None] * G * column, row * h
    E = np.vstack([A, G[:active]])
    K = np.block([[L.T @ L, E.T], [E, np.zeros((p + active, p + active))]])
    return {"L": L, "q": q, "A": A, "b": b, "G": G, "h": h, "K": K, "tight": h[:active]}


@pytest.fixture(scope="module")
def ill_scaled_layer(ill_scaled_qp: dict[str, np.ndarray]) -> CvxpyLayer:
    data = ill_scaled_qp
    q, b, h = cp.Parameter(200), cp.Parameter(40), cp.Parameter(150)
    x = cp.Variable(200)
    objective = cp.Minimize(0.5 * cp.sum_squares(data["L"] @ x) + q @ x)
    return CvxpyLayer(
        cp.Problem(objective, [data["A"] @ x == b, data["G"] @ x <= h]), [q, b, h], [x]
    )


def test_trap_2_gradient_of_an_ill_scaled_qp(
    ill_scaled_qp: dict[str, np.ndarray], ill_scaled_layer: CvxpyLayer
) -> None:
    """Against the KKT system of the active set that the problem was made from."""
    data = ill_scaled_qp
    values = [data["q"], data["b"], data["h"]]
    (x,), gradients = run(ill_scaled_layer, values)
    x = x.numpy()
    true = np.linalg.solve(data["K"], np.concatenate([-data["q"], data["b"], data["tight"]]))
    assert np.linalg.norm(x - true[:200]) <= 1e-7 * np.linalg.norm(true[:200])
    adjoint = np.linalg.solve(data["K"], np.concatenate([draw(200), np.zeros(100)]))
    dh = np.zeros(150)
    dh[:60] = adjoint[240:]
    for found, exact in zip(gradients, (-adjoint[:200], adjoint[200:240], dh), strict=True):
        assert np.linalg.norm(found.numpy() - exact) <= 1e-6 * np.linalg.norm(exact)


def test_trap_2_the_adjoint_is_linear(
    ill_scaled_qp: dict[str, np.ndarray], ill_scaled_layer: CvxpyLayer
) -> None:
    leaves = [torch.tensor(ill_scaled_qp[k], requires_grad=True) for k in "qbh"]
    (x,) = ill_scaled_layer(*leaves)
    c1, c2 = torch.as_tensor(draw(200, seed=1)), torch.as_tensor(1e3 * draw(200, seed=2))

    def gradient(c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((c * x).sum(), leaves, retain_graph=True)

    for g1, g2, both in zip(gradient(c1), gradient(c2), gradient(c1 + c2), strict=True):
        assert torch.linalg.norm(g1 + g2 - both) <= 1e-9 * torch.linalg.norm(both)


# --- Trap 3: the gradient of b is scattered where it should be gathered.


def test_trap_3_b_is_nonzero_on_some_rows_only() -> None:
    """Parametric and zero right-hand sides alternate; the parameter's entries are permuted."""
    t, e, u = cp.Parameter(9), cp.Parameter(3), cp.Parameter(2)
    x = cp.Variable(9)
    constraints = [
        x[0] >= 0, x[1] <= u[1], x[2] >= 0, x[3] <= u[0],
        x[4] == 0, x[5] == e[2], x[6] == 0, x[[7, 8]] == e[[1, 0]],
    ]  # fmt: skip
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t)), constraints), [e, u, t], [x])

    def formula(e: torch.Tensor, u: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        zero = torch.zeros(())
        entries = [
            t[0].relu(), torch.minimum(t[1], u[1]), t[2].relu(), torch.minimum(t[3], u[0]),
            zero, e[2], zero, e[1], e[0],
        ]  # fmt: skip
        return (torch.stack(entries),)

    t_value = np.array([-1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    agree(layer, formula, [draw(3), np.array([1.0, 0.5]), t_value])
    agree(layer, formula, [draw(3), np.array([5.0, 0.5]), t_value])


def test_trap_3_right_hand_side_that_is_zero_at_the_value() -> None:
    agree(
        CvxpyLayer(*projection()), projection_formula, [draw(4), draw(2, 4), np.array([0.0, 1.0])]
    )


# --- Trap 4: parameters are taken in the problem's order, not in the list's.


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_trap_4_parameters_in_any_order(order: tuple[int, ...]) -> None:
    problem, parameters, variables = projection()
    layer = CvxpyLayer(problem, [parameters[i] for i in order], variables)
    values = [draw(4), draw(2, 4), draw(2)]

    def formula(*given: torch.Tensor) -> tuple[torch.Tensor]:
        named = dict(zip(order, given, strict=True))
        return projection_formula(named[0], named[1], named[2])

    agree(layer, formula, [values[i] for i in order])


@pytest.mark.parametrize("swapped", [False, True])
def test_trap_4_parameters_of_a_geometric_program(swapped: bool) -> None:
    """min a/(x y) + b₀ x + b₁ y: all three terms are equal to t, t³ = a b₀ b₁."""
    a, b = cp.Parameter(pos=True), cp.Parameter(2, pos=True)
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    problem = cp.Problem(cp.Minimize(a / (x * y) + b[0] * x + b[1] * y))
    parameters, values = [a, b], [np.array(2.0), np.array([0.5, 3.0])]
    if swapped:
        parameters, values = parameters[::-1], values[::-1]
    layer = CvxpyLayer(problem, parameters, [y, x], gp=True)

    def formula(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (second, first) if swapped else (first, second)
        t = (a * b[0] * b[1]) ** (1 / 3)
        return t / b[1], t / b[0]

    agree(layer, formula, values, 1e-7, 1e-6)


def test_trap_4_parameter_as_an_exponent_of_a_geometric_program() -> None:
    """min x + y with x y^a ≥ b: a enters as it is, b by its logarithm; y = a x."""
    a, b = cp.Parameter(), cp.Parameter(pos=True)
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    problem = cp.Problem(cp.Minimize(x + y), [x * y**a >= b])
    layer = CvxpyLayer(problem, [b, a], [x, y], gp=True)

    def formula(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = (b / a**a) ** (1 / (1 + a))
        return x, a * x

    agree(layer, formula, [np.array(2.0), np.array(1.7)], 1e-7, 1e-6)


# --- Trap 5: a constant P beside a parametric one is lost, or P is frozen at construction.


def test_trap_5_constant_and_parametric_quadratic_and_linear_term() -> None:
    C, S, L = draw(3, 3), cp.Parameter((3, 3), PSD=True), cp.Parameter((2, 3))
    q, x = cp.Parameter(3), cp.Variable(3)
    cost = cp.sum_squares(C @ x) + cp.quad_form(x, S) + cp.sum_squares(L @ x - 1) + q @ x
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cost)), [L, q, S], [x])

    def formula(L: torch.Tensor, q: torch.Tensor, S: torch.Tensor) -> tuple[torch.Tensor]:
        H = torch.as_tensor(C.T @ C) + (S + S.mT) / 2 + L.mT @ L
        return (torch.linalg.solve(2 * H, 2 * L.sum(0) - q),)

    for seed in range(3):  # P changes from call to call
        S_value = positive_definite(np.random.default_rng(seed), 3)
        agree(layer, formula, [draw(2, 3, seed=seed), draw(3, seed=seed), S_value])
    agree(layer, formula, [np.zeros((2, 3)), draw(3), np.zeros((3, 3))])


def test_trap_5_values_set_on_the_cvxpy_parameters_do_not_matter() -> None:
    problem, parameters, variables = projection()
    values = [draw(4), draw(2, 4), draw(2)]
    for parameter in parameters:
        parameter.value = np.full(parameter.shape, 7.0)
    layer = CvxpyLayer(problem, parameters, variables)
    agree(layer, projection_formula, values)
    assert all((parameter.value == 7.0).all() for parameter in parameters)
    assert variables[0].value is None


# --- Trap 9: an entry that is exactly zero loses its gradient.


def test_trap_9_zero_entries_of_a_keep_their_gradient() -> None:
    A = draw(2, 4)
    A[0, 1] = A[1, 3] = 0.0
    layer = CvxpyLayer(*projection())
    agree(layer, projection_formula, [draw(4), A, draw(2)])
    (_, dA, _) = run(layer, [draw(4), A, draw(2)])[1]
    assert (dA.abs() > 1e-3).all()
    agree(layer, projection_formula, [draw(4), np.eye(2, 4), draw(2)])


def test_trap_9_zero_entries_in_one_instance_of_a_batch() -> None:
    A = draw(3, 2, 4)
    A[1, :, :2] = 0.0
    agree(CvxpyLayer(*projection()), projection_formula, [draw(4), A, draw(2)])


def test_trap_9_zero_entries_of_p_keep_their_gradient() -> None:
    S, q, x = cp.Parameter((3, 3), PSD=True), cp.Parameter(3), cp.Variable(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, S) + q @ x)), [S, q], [x])
    values = [np.eye(3), np.array([1.0, 2.0, 3.0])]
    agree(layer, lambda S, q: (torch.linalg.solve((S + S.mT) / 2, -q),), values)
    assert (run(layer, values)[1][0].abs() > 1e-3).all()


# --- Trap 13: the gradient of a symmetric parameter is not symmetric.


@pytest.mark.parametrize("attribute", ["symmetric", "PSD", "NSD"])
def test_trap_13_gradient_of_a_symmetric_parameter(attribute: str) -> None:
    """Nearest matrix under a bound: the parameter enters A's side, off-diagonals and all."""
    S, X = cp.Parameter((3, 3), **{attribute: True}), cp.Variable((3, 3))
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(X - S)), [X[0, 1] <= -5.0, X[2, 2] <= -4.0]), [S], [X]
    )
    value = positive_definite(np.random.default_rng(0), 3)
    value = -value if attribute == "NSD" else value

    def formula(S: torch.Tensor) -> tuple[torch.Tensor]:
        cap = torch.full((3, 3), torch.inf, dtype=S.dtype)
        cap[0, 1], cap[2, 2] = -5.0, -4.0
        return (torch.minimum((S + S.mT) / 2, cap),)

    agree(layer, formula, [value])
    gradient = run(layer, [value])[1][0]
    assert torch.equal(gradient, gradient.mT)


def test_trap_13_gradient_of_a_quadratic_forms_matrix() -> None:
    S, x = cp.Parameter((4, 4), PSD=True), cp.Variable(4)
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, S)), [cp.sum(x) == 1])
    layer = CvxpyLayer(problem, [S], [x])

    def formula(S: torch.Tensor) -> tuple[torch.Tensor]:
        y = torch.linalg.solve((S + S.mT) / 2, torch.ones(4, dtype=S.dtype))
        return (y / y.sum(-1, keepdim=True),)

    value = np.stack([positive_definite(np.random.default_rng(seed), 4) for seed in range(2)])
    agree(layer, formula, [value])
    gradient = run(layer, [value])[1][0]
    assert torch.equal(gradient, gradient.mT)
