"""The problems: one function each, whose arguments are the sizes.

A function returns the problem, its parameters and variables, and `draw(rng, B)`: random parameter
values for B instances. A value without the batch axis is shared by the batch. Every instance is
feasible by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

__all__ = ["LARGE", "NNLS", "OVERHEAD", "PROBLEMS", "SIZES", "SMALL", "Benchmark"]

Array = np.ndarray
Rng = np.random.Generator


class Benchmark(NamedTuple):
    """A parametrized problem and where its parameter values come from."""

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    draw: Callable[[Rng, int], list[Array]]


def simplex(n: int = 10) -> Benchmark:
    """Projection onto the simplex."""
    x, y = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, x >= 0])
    return Benchmark(problem, [y], [x], lambda rng, B: [rng.standard_normal((B, n))])


def portfolio(n: int = 50, factors: int = 10) -> Benchmark:
    """Return against the standard deviation of a factor model: one second-order cone."""
    x, mean = cp.Variable(n), cp.Parameter(n)
    loadings, own = cp.Parameter((factors, n)), cp.Parameter(n, nonneg=True)
    risk = cp.norm(cp.hstack([loadings @ x, cp.multiply(own, x)]))
    problem = cp.Problem(cp.Minimize(risk - mean @ x), [cp.sum(x) == 1, x >= 0])

    def draw(rng: Rng, B: int) -> list[Array]:
        return [
            0.1 * rng.standard_normal((B, n)),
            rng.standard_normal((factors, n)) / np.sqrt(n),
            rng.uniform(0.1, 0.5, n),
        ]

    return Benchmark(problem, [mean, loadings, own], [x], draw)


def entropy(n: int = 20, equations: int = 4) -> Benchmark:
    """Entropy maximisation under linear equations: n exponential cones."""
    x, c, b = cp.Variable(n), cp.Parameter(n), cp.Parameter(equations)
    A = np.random.default_rng(0).standard_normal((equations, n))
    objective = cp.Minimize(c @ x - cp.sum(cp.entr(x)))
    problem = cp.Problem(objective, [cp.sum(x) == 1, A @ x == b])

    def draw(rng: Rng, B: int) -> list[Array]:
        return [rng.standard_normal((B, n)), rng.dirichlet(np.full(n, 2.0), B) @ A.T]

    return Benchmark(problem, [c, b], [x], draw)


def logistic(samples: int = 30, n: int = 5) -> Benchmark:
    """Logistic regression; the data, times the labels, is the parameter."""
    w, X = cp.Variable(n), cp.Parameter((samples, n))
    loss = cp.sum(cp.logistic(-X @ w)) + 0.1 * cp.sum_squares(w)
    problem = cp.Problem(cp.Minimize(loss))
    return Benchmark(problem, [X], [w], lambda rng, B: [rng.standard_normal((B, samples, n))])


def optnet(n: int = 50, inequalities: int = 50, equations: int = 10) -> Benchmark:
    """Dense QP, everything a batched parameter (Amos & Kolter, OptNet, 2017)."""
    x, q = cp.Variable(n), cp.Parameter(n)
    L, A, b = cp.Parameter((n, n)), cp.Parameter((equations, n)), cp.Parameter(equations)
    G, h = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ x) + q @ x), [A @ x == b, G @ x <= h])

    def draw(rng: Rng, B: int) -> list[Array]:
        scale = 1 / np.sqrt(n)
        x0 = rng.standard_normal((B, n))
        A, G = rng.standard_normal((B, equations, n)), rng.standard_normal((B, inequalities, n))
        return [
            np.eye(n) + 0.5 * scale * rng.standard_normal((B, n, n)),
            rng.standard_normal((B, n)),
            scale * A,
            scale * np.einsum("bij,bj->bi", A, x0),
            scale * G,
            scale * np.einsum("bij,bj->bi", G, x0) + rng.uniform(0, 0.5, (B, inequalities)),
        ]

    return Benchmark(problem, [L, q, A, b, G, h], [x], draw)


def mpc(steps: int = 40, states: int = 8, inputs: int = 4) -> Benchmark:
    """Model predictive control: the initial state batched, the dynamics shared."""
    X, U = cp.Variable((steps + 1, states)), cp.Variable((steps, inputs))
    start = cp.Parameter(states)
    A, B = cp.Parameter((states, states)), cp.Parameter((states, inputs))
    constraints = [
        X[0] == start,
        X[1:] == X[:-1] @ A.T + U @ B.T,
        *(U >= -0.2, U <= 0.2),
        *(X >= -2.0, X <= 2.0),
    ]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X) + 0.1 * cp.sum_squares(U)), constraints)

    def draw(rng: Rng, batch: int) -> list[Array]:
        # Without input the state turns and does not grow: it stays in its box.
        rotation = np.linalg.qr(rng.standard_normal((states, states)))[0]
        start = rng.standard_normal((batch, states))
        start *= 1.5 / np.linalg.norm(start, axis=1, keepdims=True)
        return [start, 0.99 * rotation, rng.standard_normal((states, inputs))]

    return Benchmark(problem, [start, A, B], [X, U], draw)


def sdp(n: int = 8) -> Benchmark:
    """The relaxation of maximum cut."""
    X, C = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(C @ X)), [cp.diag(X) == 1, X >> 0])

    def draw(rng: Rng, B: int) -> list[Array]:
        C = rng.standard_normal((B, n, n))
        return [(C + C.swapaxes(1, 2)) / 2]

    return Benchmark(problem, [C], [X], draw)


def total_variation(n: int = 200) -> Benchmark:
    """Denoising in one dimension with a weight for every instance."""
    x, y, weight = cp.Variable(n), cp.Parameter(n), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y) + weight * cp.tv(x)))

    def draw(rng: Rng, B: int) -> list[Array]:
        signal = np.sign(np.sin(np.linspace(0, 12, n)))
        return [signal + 0.3 * rng.standard_normal((B, n)), rng.uniform(0.5, 2.0, B)]

    return Benchmark(problem, [y, weight], [x], draw)


def power(samples: int = 30, n: int = 5) -> Benchmark:
    """Regression with the loss |r|^1.5: power cones."""
    x, b = cp.Variable(n), cp.Parameter(samples)
    A = np.random.default_rng(0).standard_normal((samples, n))
    loss = cp.sum(cp.power(cp.abs(A @ x - b), 1.5, approx=False))
    problem = cp.Problem(cp.Minimize(loss))
    return Benchmark(problem, [b], [x], lambda rng, B: [rng.standard_normal((B, samples))])


def nnls(rows: int = 1000, n: int = 500) -> Benchmark:
    """Nonnegative least squares; the matrix is a parameter."""
    x, A, b = cp.Variable(n), cp.Parameter((rows, n)), cp.Parameter(rows)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])

    def draw(rng: Rng, B: int) -> list[Array]:
        A, x0 = rng.standard_normal((B, rows, n)) / np.sqrt(n), rng.standard_normal((B, n))
        noise = 0.1 * rng.standard_normal((B, rows))
        return [A, np.einsum("bij,bj->bi", A, np.maximum(x0, 0)) + noise]

    return Benchmark(problem, [A, b], [x], draw)


def tiny_qp(n: int = 10, inequalities: int = 5) -> Benchmark:
    """A QP so small that what a call costs beside the solver shows."""
    x, q, h = cp.Variable(n), cp.Parameter(n), cp.Parameter(inequalities)
    G = np.random.default_rng(0).standard_normal((inequalities, n))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + q @ x), [G @ x <= h])

    def draw(rng: Rng, B: int) -> list[Array]:
        return [rng.standard_normal((B, n)), rng.uniform(0, 1, (B, inequalities))]

    return Benchmark(problem, [q, h], [x], draw)


def sparse_qp(n: int = 20_000) -> Benchmark:
    """Diagonal P, and n inequalities of two random variables each, which fill the factors."""
    x, q, b = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    fixed = np.random.default_rng(0)
    P = sp.diags_array(fixed.uniform(0.5, 2.0, n), format="csc")
    place = np.repeat(np.arange(n), 2), fixed.integers(0, n, 2 * n)
    A = sp.csr_array((fixed.standard_normal(2 * n), place), shape=(n, n))
    objective = cp.Minimize(0.5 * cp.quad_form(x, P, assume_PSD=True) + q @ x)
    problem = cp.Problem(objective, [A @ x <= b])

    def draw(rng: Rng, B: int) -> list[Array]:
        x0 = rng.standard_normal((B, n))
        return [rng.standard_normal((B, n)), (A @ x0.T).T + rng.uniform(0, 0.5, (B, n))]

    return Benchmark(problem, [q, b], [x], draw)


# Printed for every batch size.
PROBLEMS: dict[str, Callable[..., Benchmark]] = {
    "simplex": simplex,
    "portfolio": portfolio,
    "entropy": entropy,
    "logistic": logistic,
    "optnet": optnet,
    "mpc": mpc,
    "sdp": sdp,
    "total_variation": total_variation,
    "power": power,
}
# Reported on their own: one with many parameters, what a call costs beside the solver, and one
# large instance.
NNLS: dict[str, Callable[..., Benchmark]] = {"nnls": nnls}
OVERHEAD: dict[str, Callable[..., Benchmark]] = {"tiny_qp": tiny_qp}
LARGE: dict[str, Callable[..., Benchmark]] = {"sparse_qp": sparse_qp}

# How they grow; the first number of each is what the table calls its size.
SIZES: dict[str, list[dict[str, Any]]] = {
    "simplex": [{"n": n} for n in (10, 40, 160, 640)],
    "portfolio": [{"n": n, "factors": n // 5} for n in (25, 50, 100, 200)],
    "entropy": [{"n": n, "equations": n // 5} for n in (10, 20, 40, 80)],
    "logistic": [{"samples": n} for n in (15, 30, 60, 120)],
    "optnet": [{"n": n, "inequalities": n, "equations": n // 5} for n in (10, 25, 50, 100)],
    "mpc": [{"steps": n} for n in (10, 20, 40, 80)],
    "sdp": [{"n": n} for n in (4, 8, 12, 16)],
    "total_variation": [{"n": n} for n in (50, 100, 200, 400)],
    "power": [{"samples": n} for n in (15, 30, 60, 120)],
}
# Sizes at which everything runs in a moment; the figures mean nothing then.
SMALL: dict[str, dict[str, Any]] = {
    "simplex": {"n": 4},
    "portfolio": {"n": 5, "factors": 2},
    "entropy": {"n": 5, "equations": 1},
    "logistic": {"samples": 8, "n": 2},
    "optnet": {"n": 5, "inequalities": 5, "equations": 1},
    "mpc": {"steps": 3, "states": 2, "inputs": 1},
    "sdp": {"n": 3},
    "total_variation": {"n": 10},
    "power": {"samples": 8, "n": 2},
    "nnls": {"rows": 8, "n": 4},
    "tiny_qp": {"n": 3, "inequalities": 2},
    "sparse_qp": {"n": 200},
}
