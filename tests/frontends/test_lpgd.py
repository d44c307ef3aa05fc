"""derivative="lpgd" as a choice of the layer: differences of solutions, the same in every
framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers import CvxpyLayer
from cvxlayers.torch import CvxpyLayer as TorchLayer

TAU = 0.5
LPGD = {"derivative": "lpgd", "smoothing": TAU}
COSTS = np.array([[0.3, 0.1, 0.5, 0.9], [1.0, 1.2, 0.2, 0.4]])
G = np.random.default_rng(0).standard_normal(COSTS.shape)


def simplex(n: int = 4) -> tuple[cp.Problem, list, list]:
    """min cᵀx over the simplex: a vertex."""
    c, x = cp.Parameter(n, name="c"), cp.Variable(n)
    return cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0]), [c], [x]


def vertices(costs: np.ndarray) -> np.ndarray:
    return np.eye(costs.shape[1])[costs.argmin(axis=1)]


TRUE = (vertices(COSTS + TAU * G) - vertices(COSTS - TAU * G)) / (2 * TAU)


def with_numpy(layer: CvxpyLayer) -> tuple[np.ndarray, np.ndarray]:
    return layer.vjp(COSTS)[1](G)[0], layer.jvp([COSTS], [G])[1][0]


def with_torch(layer: CvxpyLayer) -> tuple[np.ndarray, np.ndarray]:
    c, g = torch.tensor(COSTS, requires_grad=True), torch.tensor(G)
    (pulled,) = torch.autograd.grad(layer(c)[0], c, g)
    _, pushed = torch.func.jvp(lambda c: layer(c)[0], (c.detach(),), (g,))
    return pulled.numpy(), pushed.numpy()


def with_torch_vmap(layer: CvxpyLayer) -> tuple[np.ndarray, np.ndarray]:
    c, g = torch.tensor(COSTS), torch.tensor(G)
    pulled = torch.func.vmap(torch.func.grad(lambda c, g: layer(c)[0] @ g))(c, g)
    pushed = torch.func.vmap(lambda c, g: torch.func.jvp(lambda c: layer(c)[0], (c,), (g,))[1])(
        c, g
    )
    return pulled.numpy(), pushed.numpy()


def with_jax(layer: CvxpyLayer) -> tuple[Any, Any]:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        c, g = jax.numpy.asarray(COSTS), jax.numpy.asarray(G)
        pulled = jax.jit(jax.grad(lambda c: (layer(c)[0] * g).sum()))(c)
        pushed = jax.jit(lambda c: jax.jvp(lambda c: layer(c)[0], (c,), (g,))[1])(c)
        # A batch as instances one by one.
        each = jax.vmap(jax.grad(lambda c, g: layer(c)[0] @ g))(c, g)
        np.testing.assert_array_equal(each, pulled)
    return pulled, pushed


def with_mlx(layer: CvxpyLayer) -> tuple[Any, Any]:
    mx = pytest.importorskip("mlx.core")
    with mx.stream(mx.cpu):
        c, g = mx.array(COSTS, dtype=mx.float64), mx.array(G, dtype=mx.float64)
        pulled = mx.grad(lambda c: (layer(c)[0] * g).sum())(c)
        _, (pushed,) = mx.jvp(lambda c: layer(c)[0], [c], [g])
    return np.array(pulled), np.array(pushed)


# PyTorch's own, when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("run", [with_numpy, with_torch, with_torch_vmap, with_jax, with_mlx])
def test_both_modes_of_every_framework(run: Callable[[CvxpyLayer], tuple[Any, Any]]) -> None:
    """In q both modes are the same difference of vertices."""
    assert TRUE.any()
    pulled, pushed = run(CvxpyLayer(*simplex(), **LPGD))
    np.testing.assert_allclose(pulled, TRUE, atol=1e-9)
    np.testing.assert_allclose(pushed, TRUE, atol=1e-9)


def test_outputs_are_those_of_the_solution() -> None:
    layer, exact = CvxpyLayer(*simplex(), **LPGD), CvxpyLayer(*simplex())
    np.testing.assert_array_equal(layer.vjp(COSTS)[0][0], exact.vjp(COSTS)[0][0])
    np.testing.assert_allclose(layer(COSTS)[0], vertices(COSTS), atol=1e-8)
    np.testing.assert_allclose(exact.vjp(COSTS)[1](G)[0], 0.0, atol=1e-9)


def regression() -> tuple[cp.Problem, list, list]:
    A, b, x = cp.Parameter((4, 3), name="A"), cp.Parameter(4, name="b"), cp.Variable(3)
    r = cp.Parameter(nonneg=True, name="r")
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(A @ x - b) + x[0]), [x >= -0.1, cp.norm(x) <= r]
    )
    return problem, [A, b, r], [x]


def values(seed: int = 5) -> tuple[list[np.ndarray], np.ndarray]:
    # By default one bound and the norm's are active.
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((4, 3)),
        rng.standard_normal(4),
        np.array(0.7),
    ], rng.standard_normal(3)


def test_gradients_are_those_of_the_difference_of_optimal_values() -> None:
    """By the envelope theorem: of the values of the problem with ±τ gᵀx in its objective, found by
    CVXPY and differenced in the parameters."""
    problem, parameters, (x,) = regression()
    at, g = values()
    found = CvxpyLayer(problem, parameters, [x], **LPGD).vjp(*at)[1](g)

    def value(point: list[np.ndarray]) -> float:
        ends = []
        for parameter, number in zip(parameters, point, strict=True):
            parameter.value = number
        for t in (TAU, -TAU):
            moved = cp.Problem(cp.Minimize(problem.objective.expr + t * g @ x), problem.constraints)
            tight = dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], 1e-9)
            ends.append(moved.solve(solver=cp.CLARABEL, **tight))
        return (ends[0] - ends[1]) / (2 * TAU)

    h = 1e-3
    for k, gradient in enumerate(found):
        for i in np.ndindex(gradient.shape):
            sides = []
            for step in (h, -h):
                moved = [v.copy() for v in at]
                moved[k][i] += step
                sides.append(value(moved))
            assert gradient[i] == pytest.approx((sides[0] - sides[1]) / (2 * h), abs=1e-5)


def test_diffcp_has_the_same() -> None:
    """Its own LPGD, without regularization."""
    problem, parameters, variables = regression()
    at, g = values(7)
    own = {"mode": "lpgd", "derivative_kwargs": {"tau": TAU, "rho": 0.0}, "eps": 1e-10}
    other = CvxpyLayer(problem, parameters, variables, solver=cp.DIFFCP, solver_args=own)
    layer = CvxpyLayer(problem, parameters, variables, **LPGD)
    for a, b in zip(layer.vjp(*at)[1](g), other.vjp(*at)[1](g), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_it_tends_to_the_exact_derivative() -> None:
    at, g = values()
    exact = CvxpyLayer(*regression()).vjp(*at)[1](g)
    errors = []
    for tau in (1e-1, 1e-2, 1e-3):
        layer = CvxpyLayer(*regression(), derivative="lpgd", smoothing=tau)
        found = layer.vjp(*at)[1](g)
        errors.append(max(np.abs(a - e).max() for a, e in zip(found, exact, strict=True)))
    np.testing.assert_allclose(np.diff(np.log10(errors)), -2.0, atol=0.1)
    assert errors[2] < 1e-8


def test_parameters_that_the_batch_shares_have_the_sum() -> None:
    at, _ = values()
    g = np.random.default_rng(3).standard_normal((5, 3))
    b = np.random.default_rng(4).standard_normal((5, 4))
    layer = CvxpyLayer(*regression(), **LPGD)
    dA, db, dr = layer.vjp(at[0], b, at[2])[1](g)
    each = [layer.vjp(at[0], b[i], at[2])[1](g[i]) for i in range(5)]
    np.testing.assert_allclose(dA, sum(e[0] for e in each), atol=1e-10)
    np.testing.assert_array_equal(db, [e[1] for e in each])
    np.testing.assert_allclose(dr, sum(e[2] for e in each), atol=1e-10)


# PyTorch's own, when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_second_derivative_is_an_error() -> None:
    layer = CvxpyLayer(*simplex(), **LPGD)
    words = "has no derivative of its own"
    c = torch.tensor(COSTS[0])
    torch_loss = lambda c: layer(c)[0].square().sum()  # noqa: E731
    for transform in (
        torch.func.hessian(torch_loss),
        torch.func.jacrev(torch.func.grad(torch_loss)),
        torch.func.grad(lambda c: torch.func.jvp(torch_loss, (c,), (c,))[1]),
    ):
        with pytest.raises(NotImplementedError, match=words):
            transform(c)
    jax = pytest.importorskip("jax")
    jax_loss = lambda c: (layer(c)[0] ** 2).sum()  # noqa: E731
    with jax.enable_x64(True):
        c = jax.numpy.asarray(COSTS[0])
        for transform in (
            jax.hessian(jax_loss),
            jax.jacrev(jax.grad(jax_loss)),
            jax.grad(lambda c: jax.jvp(jax_loss, (c,), (c,))[1]),
        ):
            with pytest.raises(NotImplementedError, match=words):
                transform(c)
    mx = pytest.importorskip("mlx.core")
    mlx_loss = lambda c: (layer(c)[0] ** 2).sum()  # noqa: E731
    with mx.stream(mx.cpu), pytest.raises(NotImplementedError, match=words):
        mx.eval(mx.grad(lambda c: (mx.grad(mlx_loss)(c) ** 2).sum())(mx.array(COSTS[0])))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_nor_is_there_one_in_the_incoming_gradient() -> None:
    """What an exact derivative is linear in, a difference of solutions is not."""
    layer = CvxpyLayer(*simplex(), **LPGD)
    c, words = torch.tensor(COSTS), "has no derivative of its own"
    with pytest.raises(NotImplementedError, match=words):
        torch.func.grad(lambda g: torch.func.vjp(lambda c: layer(c)[0], c)[1](g)[0].sum())(
            torch.tensor(G)
        )
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        c, g = jax.numpy.asarray(COSTS), jax.numpy.asarray(G)
        with pytest.raises(NotImplementedError, match=words):
            jax.grad(lambda g: jax.vjp(lambda c: layer(c)[0], c)[1](g)[0].sum())(g)


def slope() -> tuple[cp.Problem, list, list]:
    """min cᵀx, x >= 0, x₁ + x₂ >= d: unbounded where c has a negative entry."""
    c, d, x = cp.Parameter(2, name="c"), cp.Parameter(name="d"), cp.Variable(2)
    return cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) >= d]), [c, d], [x]


def test_a_warning_names_the_instances_that_no_step_is_short_enough_for() -> None:
    layer = TorchLayer(*slope(), **LPGD)
    c = torch.tensor([[1.0, -1.0], [1.0, 1.05], [1.0, 1.05]], dtype=torch.float64)
    c.requires_grad_()
    d = torch.ones((), dtype=torch.float64, requires_grad=True)
    # The first has no solution, so that what is perturbed begins with the second.
    (x,) = layer(c, d, on_failure="nan")
    g = torch.tensor([[1.0, 1.0], [0.2, 0.0], [1e4, -1e4]], dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"instances \(2\)"):
        (x * g).sum().backward()
    np.testing.assert_allclose(c.grad, [[0, 0], [-1 / (2 * TAU), 1 / (2 * TAU)], [0, 0]], atol=1e-8)
    assert torch.isfinite(d.grad)


@pytest.mark.parametrize("solver", [cp.SCS, cp.DIFFCP])
def test_any_solver(solver: str) -> None:
    layer = CvxpyLayer(*simplex(), solver=solver, **LPGD)
    np.testing.assert_allclose(layer.vjp(COSTS)[1](G)[0], TRUE, atol=1e-7)


def test_it_is_saved_with_the_layer(tmp_path: Path) -> None:
    layer = CvxpyLayer(*simplex(), **LPGD)
    layer.save(tmp_path / "layer")
    np.testing.assert_array_equal(
        CvxpyLayer.load(tmp_path / "layer").vjp(COSTS)[1](G)[0], layer.vjp(COSTS)[1](G)[0]
    )


@pytest.mark.parametrize("smoothing", [None, 0.0, -1, float("nan"), float("inf"), "1"])
def test_settings_that_do_not_fit(smoothing: Any) -> None:
    with pytest.raises(ValueError, match="positive number"):
        CvxpyLayer(*simplex(), derivative="lpgd", smoothing=smoothing)
