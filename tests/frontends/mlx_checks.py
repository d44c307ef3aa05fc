"""What the tests of the MLX layer share: problems with closed forms, and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import mlx.core as mx
import numpy as np

from cvxlayers.mlx import CvxpyLayer

N = 3
Function = Callable[..., Any]


def ratio_layer(**settings: Any) -> CvxpyLayer:
    """min ½ a ‖x‖² - bᵀx, so x = b / a: derivatives of every order, bilinear ones too."""
    a, b, x = cp.Parameter(name="a", pos=True), cp.Parameter(N, name="b"), cp.Variable(N, name="x")
    problem = cp.Problem(cp.Minimize(a * cp.sum_squares(x) / 2 - b @ x))
    return CvxpyLayer(problem, [a, b], [x], **settings)


def ratio(a: mx.array, b: mx.array) -> tuple[mx.array]:
    """The closed form of `ratio_layer`."""
    return (b / mx.expand_dims(a, -1),)


def box_layer(**settings: Any) -> CvxpyLayer:
    """Projection of t on [0, u]²: infeasible where u < 0."""
    t, u, x = cp.Parameter(2, name="t"), cp.Parameter(name="u"), cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, x <= u])
    return CvxpyLayer(problem, [t, u], [x], **settings)


def array(value: Any, dtype: mx.Dtype = mx.float64) -> mx.array:
    return mx.array(np.asarray(value, dtype=np.float64), dtype=dtype)


def draw(*shape: int, seed: int = 0) -> mx.array:
    return array(np.random.default_rng([seed, *shape]).uniform(0.5, 2.0, shape))


def loss(function: Function) -> Function:
    """A scalar, not linear in the function's only result, with different weights."""

    def run(*args: mx.array) -> mx.array:
        (y,) = function(*args)
        weights = array(np.random.default_rng(1).uniform(1, 2, y.shape)).astype(y.dtype)
        return (weights * y * y).sum()

    return run


def along(function: Function) -> Function:
    """The derivative along a fixed direction of all arguments."""

    def run(*args: mx.array) -> Any:
        directions = [draw(*a.shape, seed=k).astype(a.dtype) for k, a in enumerate(args)]
        _, tangents = mx.jvp(function, list(args), directions)
        return tangents[0] if len(tangents) == 1 else tangents

    return run


def gradient(function: Function) -> Function:
    """The list of gradients for all arguments."""

    def run(*args: mx.array) -> list[mx.array]:
        found = mx.grad(function, argnums=tuple(range(len(args))))(*args)
        return [found] if isinstance(found, mx.array) else list(found)

    return run


def summed(function: Function) -> Function:
    """A scalar from all results, with different weights."""

    def run(*args: mx.array) -> mx.array:
        results = function(*args)
        results = results if isinstance(results, list | tuple) else [results]
        return sum((k + 1) * (r * r).sum() for k, r in enumerate(results))

    return run


def agree(found: Any, true: Any, bound: float = 1e-8) -> None:
    """Two trees of arrays are the same, shapes and all."""
    if isinstance(true, list | tuple):
        assert len(found) == len(true)
        for f, t in zip(found, true, strict=True):
            agree(f, t, bound)
        return
    assert found.shape == true.shape
    np.testing.assert_allclose(
        np.array(found, np.float64), np.array(true, np.float64), rtol=bound, atol=bound
    )
