"""The smoothed derivative as a choice of the layer: it informs where the exact one is zero."""

from __future__ import annotations

from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers import CvxpyLayer
from cvxlayers.torch import CvxpyLayer as TorchLayer

MU = 0.05


def simplex(n: int = 4) -> tuple[cp.Problem, list, list]:
    """min cᵀx over the simplex: a vertex."""
    c, x = cp.Parameter(n, name="c"), cp.Variable(n)
    return cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0]), [c], [x]


def central(c: np.ndarray, mu: float = MU) -> np.ndarray:
    """x_i = μ/(c_i + ν) with ν such that they sum to one."""
    low, high = -c.min() + 1e-12, -c.min() + mu * len(c) + 1.0
    for _ in range(200):
        nu = 0.5 * (low + high)
        low, high = (nu, high) if (mu / (c + nu)).sum() > 1 else (low, nu)
    return mu / (c + low)


COSTS = np.array([[0.3, 0.1, 0.5, 0.9], [1.0, 1.2, 0.2, 0.4]])


def test_gradients_are_those_of_the_central_path_and_outputs_those_of_the_solution() -> None:
    layer = TorchLayer(*simplex(), derivative="smoothed", smoothing=MU)
    c = torch.tensor(COSTS, requires_grad=True)
    (x,) = layer(c)
    np.testing.assert_allclose(x.detach(), [[0, 1, 0, 0], [0, 0, 1, 0]], atol=1e-8)
    g = np.random.default_rng(0).standard_normal(COSTS.shape)
    (found,) = torch.autograd.grad(x, c, torch.tensor(g))
    true = np.zeros_like(COSTS)
    for i, k in np.ndindex(*COSTS.shape):
        d, h = np.eye(4)[k], 1e-5
        slope = (central(COSTS[i] + h * d) - central(COSTS[i] - h * d)) / (2 * h)
        true[i, k] = g[i] @ slope
    np.testing.assert_allclose(found, true, rtol=1e-6, atol=1e-8)
    exact = TorchLayer(*simplex())
    (zero,) = torch.autograd.grad(exact(c)[0], c, torch.tensor(g))
    assert (zero.abs() < 1e-9).all()


def test_both_modes_of_every_framework() -> None:
    layer = CvxpyLayer(*simplex(), derivative="smoothed", smoothing=MU)
    g, t = np.random.default_rng(1).standard_normal((2, *COSTS.shape))
    _, pullback = layer.vjp(COSTS)
    _, (push,) = layer.jvp([COSTS], [t])
    assert (pullback(g)[0] * t).sum() == pytest.approx((g * push).sum(), rel=1e-9)
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        loss = lambda c: (layer(c)[0] * g).sum()  # noqa: E731
        found = jax.jit(jax.grad(loss))(jax.numpy.asarray(COSTS))
    np.testing.assert_allclose(found, pullback(g)[0], rtol=1e-9, atol=1e-12)


def test_it_tends_to_the_exact_derivative() -> None:
    A, b, x = cp.Parameter((3, 2)), cp.Parameter(3), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0, cp.norm(x) <= 1])
    rng = np.random.default_rng(2)
    at, g = [rng.standard_normal((3, 2)), rng.standard_normal(3)], rng.standard_normal(2)
    exact = CvxpyLayer(problem, [A, b], [x]).vjp(*at)[1](g)
    errors = []
    for mu in (1e-2, 1e-4, 1e-6):
        layer = CvxpyLayer(problem, [A, b], [x], derivative="smoothed", smoothing=mu)
        found = layer.vjp(*at)[1](g)
        errors.append(max(np.abs(a - e).max() for a, e in zip(found, exact, strict=True)))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


# PyTorch's own, when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_second_derivative_is_an_error() -> None:
    layer = TorchLayer(*simplex(), derivative="smoothed", smoothing=MU)
    with pytest.raises(NotImplementedError, match="smoothed derivative has no derivative"):
        torch.func.hessian(lambda c: layer(c)[0].square().sum())(torch.tensor(COSTS[0]))


def test_where_there_is_no_path_a_warning_says_so() -> None:
    """x = 0 is the only feasible point: the constraints have no interior."""
    c, x = cp.Parameter(2), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) <= 0])
    layer = TorchLayer(problem, [c], [x], derivative="smoothed", smoothing=MU)
    value = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.warns(UserWarning, match="central path"):
        layer(value)
    with torch.no_grad():
        layer(value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"derivative": "smooth"}, "'exact' or 'smoothed' or 'lpgd', got 'smooth'"),
        ({"derivative": "smoothed"}, "positive number"),
        ({"derivative": "smoothed", "smoothing": 0.0}, "positive number"),
        ({"derivative": "smoothed", "smoothing": -1}, "positive number"),
        ({"derivative": "smoothed", "smoothing": float("nan")}, "positive number"),
        ({"derivative": "smoothed", "smoothing": "1"}, "positive number"),
        ({"smoothing": 0.1}, "belongs to derivative='smoothed'"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CvxpyLayer(*simplex(), **settings)


def test_it_is_saved_with_the_layer(tmp_path: Path) -> None:
    layer = CvxpyLayer(*simplex(), derivative="smoothed", smoothing=MU)
    layer.save(tmp_path / "layer")
    twin = CvxpyLayer.load(tmp_path / "layer")
    g = np.ones(4) * [1, 0, 0, 0]
    found, true = (at.vjp(COSTS[0])[1](g)[0] for at in (twin, layer))
    assert np.array_equal(found, true) and np.abs(true).max() > 0.1


@pytest.mark.parametrize("solver", [cp.SCS, cp.DIFFCP])
def test_any_solver(solver: str) -> None:
    layer = CvxpyLayer(*simplex(), solver=solver, derivative="smoothed", smoothing=MU)
    true = CvxpyLayer(*simplex(), derivative="smoothed", smoothing=MU)
    g = np.array([1.0, -2.0, 0.5, 0.0])
    found, expected = (at.vjp(COSTS[0])[1](g)[0] for at in (layer, true))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
