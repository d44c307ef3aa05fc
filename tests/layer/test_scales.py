"""The same problem in other units: rows, objective or variables multiplied by powers of ten. The
gradients have closed forms, and the units must not show in them."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers.torch import CvxpyLayer


def tensor(value: np.ndarray) -> torch.Tensor:
    return torch.tensor(value, requires_grad=True)


def gradient_through(layer: CvxpyLayer, value: np.ndarray, weights: np.ndarray) -> np.ndarray:
    leaf = tensor(value)
    (x,) = layer(leaf)
    (found,) = torch.autograd.grad((torch.as_tensor(weights) * x).sum(), leaf)
    return found.numpy()


@pytest.mark.parametrize("factor", [1e-6, 1e-5, 1.0, 1e5, 1e6])
@pytest.mark.parametrize("n", [4, 150], ids=["short", "long"])
def test_rows_of_a_ball(factor: float, n: int) -> None:
    """min ‖x − q‖², factor ‖x‖ <= factor: x = q/‖q‖, the derivative (I − x xᵀ)/‖q‖."""
    q, x = cp.Parameter(n), cp.Variable(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - q)), [cp.norm(factor * x) <= factor])
    rng = np.random.default_rng(0)
    value, weights = rng.standard_normal(n) * 2 / np.sqrt(n) + 1, rng.standard_normal(n)
    size = np.linalg.norm(value)
    unit = value / size
    true = (weights - unit * (unit @ weights)) / size
    found = gradient_through(CvxpyLayer(problem, [q], [x]), value, weights)
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-6 * np.abs(true).max())


@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 1.0, 1e3])
def test_size_of_the_variables(size: float, with_gradient: bool) -> None:
    """min ‖x − q‖², ‖x‖ <= r with r and q in proportion: x is r q/‖q‖, relative to its own size."""
    q, r, x = cp.Parameter(4), cp.Parameter(), cp.Variable(4)
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x - q)), [cp.norm(x) <= r]), [q, r], [x]
    )
    value = size * np.array([[1.0, -2.0, 0.5, 3.0], [0.1, 0.2, 0.3, 0.1]])
    leaf = torch.tensor(value, requires_grad=with_gradient)
    (found,) = layer(leaf, torch.tensor(size, dtype=torch.float64))
    true = value.copy()
    true[0] *= size / np.linalg.norm(value[0])
    bound = 1e-10 if with_gradient else 1e-5
    np.testing.assert_allclose(found.detach().numpy() / size, true / size, atol=bound)
    if with_gradient:
        weights = np.array([0.3, 1.0, -1.0, 0.2])
        (gradient,) = torch.autograd.grad((torch.as_tensor(weights) * found).sum(), leaf)
        unit = value[0] / np.linalg.norm(value[0])
        across = (weights - unit * (unit @ weights)) * size / np.linalg.norm(value[0])
        np.testing.assert_allclose(gradient.numpy(), [across, weights], atol=1e-7)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1.0, 1e3])
def test_unit_of_an_entropy(factor: float) -> None:
    """max cᵀx + entropy(x) over the simplex: softmax."""
    n = 5
    c, x = cp.Parameter(n), cp.Variable(n)
    objective = factor * (c @ x + cp.sum(cp.entr(x)))
    layer = CvxpyLayer(cp.Problem(cp.Maximize(objective), [cp.sum(x) == 1]), [c], [x])
    rng = np.random.default_rng(1)
    value, weights = rng.standard_normal(n), rng.standard_normal(n)
    p = np.exp(value) / np.exp(value).sum()
    true = p * (weights - p @ weights)
    found = gradient_through(layer, value, weights)
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-8 * np.abs(true).max())


@pytest.mark.parametrize("factor", [1e-6, 1e-5, 1.0, 1e5, 1e6])
def test_rows_of_a_semidefinite_cone(factor: float) -> None:
    """The nearest positive semidefinite matrix, checked along the change of an eigenvalue."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    C, X = cp.Parameter((3, 3), symmetric=True), cp.Variable((3, 3), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [factor * X >> 0])
    leaf = tensor(basis @ np.diag([2.0, 1.0, -1.5]) @ basis.T)
    (found,) = CvxpyLayer(problem, [C], [X])(leaf)
    true = basis @ np.diag([2.0, 1.0, 0.0]) @ basis.T
    np.testing.assert_allclose(found.detach().numpy(), true, atol=1e-10)
    # D(H) = Q (B ∘ QᵀHQ) Qᵀ, B = 1 on the positive pairs, l/(l + 1.5) across, 0 on the negative.
    G = rng.standard_normal((3, 3))
    (gradient,) = torch.autograd.grad((torch.as_tensor(G) * found).sum(), leaf)
    B = np.array([[1, 1, 2 / 3.5], [1, 1, 1 / 2.5], [2 / 3.5, 1 / 2.5, 0]])
    symmetric = (G + G.T) / 2
    expected = basis @ (B * (basis.T @ symmetric @ basis)) @ basis.T
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e4, 1e8, 1e10])
def test_unit_of_a_quadratic_objective(factor: float) -> None:
    """min factor (‖A x‖² + aᵀx), some bounds active: the reduced normal equations."""
    rng = np.random.default_rng(3)
    n = 6
    A, a = rng.standard_normal((9, n)), rng.standard_normal(n)
    p, x = cp.Parameter(n), cp.Variable(n)
    objective = cp.Minimize(factor * (cp.sum_squares(A @ x) + p @ x))
    layer = CvxpyLayer(cp.Problem(objective, [x >= -0.05]), [p], [x])
    leaf = tensor(a)
    (found,) = layer(leaf)
    free = found.detach().numpy() > -0.05 + 1e-9
    assert 0 < free.sum() < n
    weights = rng.standard_normal(n)
    true = np.zeros(n)
    true[free] = -np.linalg.solve(2 * A[:, free].T @ A[:, free], weights[free])
    (gradient,) = torch.autograd.grad((torch.as_tensor(weights) * found).sum(), leaf)
    np.testing.assert_allclose(gradient.numpy(), true, atol=1e-9)


@pytest.mark.parametrize("n", [4, 150], ids=["short", "long"])
def test_a_cone_on_the_verge_of_binding_has_a_finite_gradient(n: int) -> None:
    """min ‖x − q‖², ‖x‖ <= 1 at ‖q‖ = 1: the derivative is one-sided, I or I − q qᵀ or between."""
    q, x = cp.Parameter(n), cp.Variable(n)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - q)), [cp.norm(x) <= 1]), [q], [x])
    for seed in range(10):
        rng = np.random.default_rng(seed)
        value = rng.standard_normal(n)
        value /= np.linalg.norm(value)
        weights = rng.standard_normal(n)
        found = gradient_through(layer, value, weights)
        across = weights - value * (value @ weights)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found - value * (value @ found), across, atol=1e-3)
        assert -1e-3 <= (value @ found) / (value @ weights) <= 1 + 1e-3


def test_outputs_may_be_changed_in_place() -> None:
    a, x = cp.Parameter(pos=True), cp.Variable(pos=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x), [x >= a]), [a], [x], gp=True)
    leaf = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    (y,) = layer(leaf)
    y.mul_(5.0)
    y.backward()
    torch.testing.assert_close(leaf.grad, torch.tensor(5.0, dtype=torch.float64))

    # The dual of a constraint that was dropped is a constant of the layer.
    p, z = cp.Parameter(3), cp.Variable(3)
    vacuous = z >= -np.inf
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(z - p)), [vacuous]),
        [p],
        [z, vacuous.dual_variables[0]],
    )
    layer(torch.ones(3))[1].add_(7.0)
    assert (layer(torch.ones(3))[1] == 0).all()


def test_neighbours_of_any_size_leave_an_instance_alone() -> None:
    """Bitwise: what one instance needs (other units, balance, another start) is its own affair."""
    q, r, x = cp.Parameter(4), cp.Parameter(), cp.Variable(4)
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x - q)), [cp.norm(x) <= r, x >= -0.5 * r]),
        [q, r],
        [x],
        on_failure="nan",
    )
    rng = np.random.default_rng(4)
    sizes = np.array([1.0, 1e-7, 1e3, 1.0, 1e-3, 1e5, 1.0])
    value = sizes[:, None] * rng.standard_normal((7, 4)) * 3
    radius = sizes * np.array([1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1e-5])  # the fourth is infeasible
    leaves = tensor(value), tensor(radius)
    (together,) = layer(*leaves)
    together[sizes * radius > 0].sum().backward()
    for i in range(7):
        alone = tensor(value[i]), tensor(radius[i])
        (found,) = layer(*alone)
        np.testing.assert_array_equal(found.detach().numpy(), together[i].detach().numpy())
        found.sum().backward()
        for one, all_ in zip(alone, leaves, strict=True):
            expected = torch.zeros_like(one) if radius[i] < 0 else one.grad
            assert torch.equal(all_.grad[i], expected)
