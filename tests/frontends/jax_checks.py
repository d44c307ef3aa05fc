"""What the tests of the JAX layer share: problems with closed forms, and comparisons."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvxlayers.jax import CvxpyLayer

Function = Callable[..., Any]


@pytest.fixture
def double() -> Iterator[None]:
    """Double precision."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def factorisations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each factorisation. Lanes keep none, and are left out."""
    monkeypatch.setattr(
        import_module("cvxlayers.derivative").Geometry, "engine_for", lambda *_: None
    )
    counts: list[int] = []
    factor = import_module("cvxlayers.derivative.system").factor

    def counted(*args: Any, **keywords: Any) -> Any:
        counts.append(1)
        return factor(*args, **keywords)

    for name in ("polish", "implicit"):
        monkeypatch.setattr(import_module(f"cvxlayers.derivative.{name}"), "factor", counted)
    return counts


def draw(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).uniform(0.5, 2.0, shape))


def projection_layer(n: int = 4, m: int = 2, **settings: Any) -> CvxpyLayer:
    """Projection of t on {A x = b}, and the multiplier."""
    t, A, b = cp.Parameter(n, name="t"), cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
    x = cp.Variable(n, name="x")
    constraint = A @ x == b
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - t)), [constraint])
    return CvxpyLayer(problem, [t, A, b], [x, constraint.dual_variables[0]], **settings)


def projection(t: Any, A: Any, b: Any) -> tuple[Any, Any]:
    """The closed form of `projection_layer`."""
    At = jnp.swapaxes(A, -1, -2)
    residual = (A @ t[..., None])[..., 0] - b
    multiplier = jnp.linalg.solve(A @ At, residual[..., None])
    return t - (At @ multiplier)[..., 0], multiplier[..., 0]


def softmax_layer(n: int = 3) -> CvxpyLayer:
    """The distribution of largest entropy plus tᵀx."""
    t, x = cp.Parameter(n, name="t"), cp.Variable(n)
    return CvxpyLayer(
        cp.Problem(cp.Maximize(t @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1]), [t], [x]
    )


def softmax(t: Any) -> tuple[Any]:
    """The closed form of `softmax_layer`."""
    return (jax.nn.softmax(t),)


def geometric_layer() -> CvxpyLayer:
    """Minimize p x + q y subject to x y ≥ 1."""
    p, q = cp.Parameter(pos=True, name="p"), cp.Parameter(pos=True, name="q")
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    problem = cp.Problem(cp.Minimize(p * x + q * y), [x * y >= 1])
    return CvxpyLayer(problem, [p, q], [x, y], gp=True)


def geometric(p: Any, q: Any) -> tuple[Any, Any]:
    """The closed form of `geometric_layer`."""
    return jnp.sqrt(q / p), jnp.sqrt(p / q)


def box_layer(**settings: Any) -> CvxpyLayer:
    """Projection of t on [0, u]²: infeasible where u < 0."""
    t, u, x = cp.Parameter(2, name="t"), cp.Parameter(name="u"), cp.Variable(2, name="x")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, x <= u])
    return CvxpyLayer(problem, [t, u], [x], **settings)


def loss(function: Function) -> Function:
    """A scalar that is not linear in the results, with different weights."""

    def run(*args: Any) -> Any:
        return sum(
            (jnp.arange(1.0, y.size + 1).reshape(y.shape).astype(y.dtype) * jnp.sin(y)).sum()
            for y in function(*args)
        )

    return run


def close(found: Any, true: Any, bound: float = 1e-7) -> None:
    """The same tree of arrays, of the same shapes, up to an error relative to the largest entry."""
    found, true = jax.tree.leaves(found), jax.tree.leaves(true)
    assert [a.shape for a in found] == [a.shape for a in true]
    for a, b in zip(found, true, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * max(1.0, np.abs(b).max(initial=0)))


def printed(program: str, *options: str) -> str:
    """What a program prints in an interpreter of its own, where every warning is an error."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
