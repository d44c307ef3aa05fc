"""Data of any scale, values that are not finite, and what surrounds a call: compilation, threads,
Ctrl-C."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers import SolverError, Status
from cvxlayers.torch import CvxpyLayer


def simplex(**settings: object) -> CvxpyLayer:
    b, y = cp.Parameter(4, name="b"), cp.Variable(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y - b)), [cp.sum(y) == 1, y >= 0])
    return CvxpyLayer(problem, [b], [y], **settings)


def projected(b: np.ndarray) -> np.ndarray:
    """Projection onto the simplex by sorting (Held, Wolfe & Crowder 1974)."""
    sorted_ = np.sort(b, axis=1)[:, ::-1]
    excess = (np.cumsum(sorted_, axis=1) - 1) / np.arange(1, b.shape[1] + 1)
    count = (sorted_ > excess).sum(axis=1)
    threshold = excess[np.arange(len(b)), count - 1]
    return np.maximum(b - threshold[:, None], 0)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3, 1e4, 1e5, 1e6])
def test_a_feasible_problem_is_solved_whatever_its_scale(size: float) -> None:
    """Clarabel alone calls half of these infeasible at 1e4 and all at 1e5."""
    b = size * np.random.default_rng(0).standard_normal((60, 4))
    (y,) = simplex()(torch.tensor(b, requires_grad=True))
    np.testing.assert_allclose(y.detach().numpy(), projected(b), rtol=0, atol=1e-9 * max(1, size))


@pytest.mark.parametrize("size", [1e7, 1e9])
def test_what_is_too_large_to_solve_is_not_called_infeasible(size: float) -> None:
    b = size * np.random.default_rng(0).standard_normal((20, 4))
    layer = simplex()
    point = layer.operations.solution_map.solve([b], (20,), on_failure="nan", differentiable=False)
    assert not set(point.status.tolist()) & {Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE}
    (y,) = layer.operations.solution_map.canonical.recover(point.x, point.z)
    np.testing.assert_allclose(y[point.solved], projected(b)[point.solved], rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_infeasible_and_unbounded_are_still_told(size: float) -> None:
    """Farkas' pairs by construction: λ > 0 with Aᵀλ = 0 and bᵀλ < 0; A d <= 0 with cᵀd < 0."""
    rng = np.random.default_rng(1)
    A, b, c = cp.Parameter((6, 4)), cp.Parameter(6), cp.Parameter(4)
    x = cp.Variable(4)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [A @ x <= b]), [A, b, c], [x])
    weights = rng.uniform(0.5, 1, (10, 6))
    rows = rng.standard_normal((10, 6, 4))
    rows[:, 5] = -np.einsum("bij,bi->bj", rows[:, :5], weights[:, :5]) / weights[:, 5:]
    right = rng.standard_normal((10, 6))
    right[:, 5] = -(np.einsum("bi,bi->b", right[:, :5], weights[:, :5]) + 1) / weights[:, 5]
    theta = [rows.reshape(10, -1), size * right, np.zeros((10, 4))]
    status = layer.operations.solution_map.solve(theta, (10,), on_failure="nan").status
    assert (status == Status.PRIMAL_INFEASIBLE).all()

    d = rng.standard_normal((10, 4))
    along = np.maximum(np.einsum("bij,bj->bi", rows, d), 0) + 0.1
    rows = rows - along[:, :, None] * d[:, None, :] / (d * d).sum(axis=1)[:, None, None]
    theta = [rows.reshape(10, -1), size * np.abs(right), -size * d]
    status = layer.operations.solution_map.solve(theta, (10,), on_failure="nan").status
    assert (status == Status.DUAL_INFEASIBLE).all()


@pytest.mark.parametrize("solver", ["CLARABEL", "SCS", "DIFFCP"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_upstream_gradient_that_is_not_finite_stays_in_its_row(solver: str, bad: float) -> None:
    layer = simplex(solver=solver)
    b = torch.tensor(np.random.default_rng(2).standard_normal((3, 4)), requires_grad=True)
    (y,) = layer(b)
    upstream = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    (clean,) = torch.autograd.grad(y, b, upstream, retain_graph=True)
    upstream[1, 2] = bad
    (found,) = torch.autograd.grad(y, b, upstream)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_layers_can_be_chained_under_the_nan_policy() -> None:
    """A row that is NaN already is a failed row: NaN, and a gradient of exactly zero."""
    layer = simplex(on_failure="nan")
    b = torch.tensor(np.random.default_rng(3).standard_normal((3, 4)))
    spoilt = b.clone()
    spoilt[1, 0] = torch.nan
    spoilt.requires_grad_()
    (y,) = layer(layer(spoilt)[0])
    (alone,) = layer(layer(b[[0, 2]].requires_grad_())[0])
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], alone)
    y[[0, 2]].square().sum().backward()
    assert spoilt.grad is not None and (spoilt.grad[1] == 0).all()
    assert (spoilt.grad[[0, 2]] != 0).any()


def test_nan_rows_of_a_geometric_program_have_zero_gradients() -> None:
    a, x = cp.Parameter(pos=True), cp.Variable(pos=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x + a / x)), [a], [x], gp=True, on_failure="nan")
    a_t = torch.tensor([4.0, torch.nan, 9.0], dtype=torch.float64, requires_grad=True)
    (x_t,) = layer(a_t)
    x_t[[0, 2]].sum().backward()
    torch.testing.assert_close(x_t[[0, 2]].detach(), torch.tensor([2.0, 3.0]).double())
    torch.testing.assert_close(a_t.grad, torch.tensor([1 / 4, 0.0, 1 / 6]).double())


@pytest.mark.parametrize("strategy", ["is_grads_batched", "vectorize"])
def test_batched_upstream_gradients_of_torch_autograd(strategy: str) -> None:
    """They map with the predecessor of torch.vmap."""
    layer, b = simplex(), torch.randn(4, dtype=torch.float64, requires_grad=True)
    true = torch.autograd.functional.jacobian(lambda b: layer(b)[0], b)
    if strategy == "vectorize":
        found = torch.autograd.functional.jacobian(lambda b: layer(b)[0], b, vectorize=True)
    else:
        eye = torch.eye(4, dtype=torch.float64)
        (found,) = torch.autograd.grad(layer(b)[0], b, eye, is_grads_batched=True)
    torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-12)


def test_the_message_of_a_solver_error_names_the_remedy() -> None:
    x, b = cp.Variable(), cp.Parameter()
    layer = CvxpyLayer(cp.Problem(cp.Minimize(x), [x >= 1, x <= b]), [b], [x])
    with pytest.raises(SolverError, match=r"(?s)PRIMAL_INFEASIBLE.*slack.*on_failure='nan'"):
        layer(torch.tensor(0.0))
