"""``python -m benchmarks.frontends``: what a call costs beside the solve, framework by framework.

*Binding* is a call whose solve is replaced by its recorded answer: arguments are matched with
parameters, checked, converted and flattened, and the answer becomes arrays of the framework. The
other columns are ratios to a call without gradient.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np

from benchmarks.measure import Stopwatch, interleaved
from cvxlayers.solution_map import SolutionMap

Body = Callable[[], Any]
COLUMNS = ("binding µs", "by name µs", "gradient", "directional", "Hessian product", "compiled")


def ridge(n: int = 10) -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    """Nonnegative ridge regression: a matrix, a vector and a number."""
    A, b = cp.Parameter((n, n), name="A"), cp.Parameter(n, name="b")
    lam, x = cp.Parameter(nonneg=True, name="lam"), cp.Variable(n)
    objective = cp.sum_squares(A @ x - b) + lam * cp.sum_squares(x)
    return cp.Problem(cp.Minimize(objective), [x >= 0]), [A, b, lam], [x]


def numpy_bodies(layer: Any, values: Sequence[np.ndarray]) -> dict[str, Body]:
    """The operations of NumPy's layer."""
    A, b = values
    g = np.ones(len(b))

    def gradient() -> Any:
        _, pullback = layer.vjp(A, b, 0.1)
        return pullback(g)

    return {
        "call": lambda: layer(A, b, 0.1),
        "by name": lambda: layer(A=A, b=b, lam=0.1),
        "gradient": gradient,
        "directional": lambda: layer.jvp((A, b, 0.1), (A, b, None)),
        "Hessian product": lambda: layer.hvp((A, b, 0.1), [g], (A, b, None)),
    }


def torch_bodies(layer: Any, values: Sequence[np.ndarray]) -> dict[str, Body]:
    """The transforms of PyTorch; compiled: the gradient, without optimising the rest."""
    import torch

    A, b = (torch.tensor(v) for v in values)
    leaves = tuple(v.clone().requires_grad_() for v in (A, b))

    def loss(A: Any, b: Any) -> Any:
        return layer(A, b, 0.1)[0].sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    of_loss = torch.func.grad(loss, (0, 1))
    return {
        "call": lambda: layer(A, b, 0.1),
        "by name": lambda: layer(A=A, b=b, lam=0.1),
        "gradient": lambda: torch.autograd.grad(loss(*leaves), leaves),
        "directional": lambda: torch.func.jvp(loss, (A, b), (A, b)),
        "Hessian product": lambda: torch.func.jvp(of_loss, (A, b), (A, b)),
        "compiled": lambda: torch.autograd.grad(compiled(*leaves), leaves),
    }


def jax_bodies(layer: Any, values: Sequence[np.ndarray]) -> dict[str, Body]:
    """The transforms of JAX; compiled: the gradient under jit."""
    import jax

    A, b = (jax.numpy.asarray(v) for v in values)

    def loss(A: Any, b: Any) -> Any:
        return layer(A, b, 0.1)[0].sum()

    gradient = jax.grad(loss, (0, 1))
    compiled = jax.jit(gradient)
    return {
        "call": lambda: jax.block_until_ready(layer(A, b, 0.1)),
        "by name": lambda: jax.block_until_ready(layer(A=A, b=b, lam=0.1)),
        "gradient": lambda: jax.block_until_ready(gradient(A, b)),
        "directional": lambda: jax.block_until_ready(jax.jvp(loss, (A, b), (A, b))),
        "Hessian product": lambda: jax.block_until_ready(jax.jvp(gradient, (A, b), (A, b))),
        "compiled": lambda: jax.block_until_ready(compiled(A, b)),
    }


def mlx_bodies(layer: Any, values: Sequence[np.ndarray]) -> dict[str, Body]:
    """The transforms of MLX."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    A, b = (mx.array(v, dtype=mx.float64) for v in values)

    def loss(A: Any, b: Any) -> Any:
        return layer(A, b, 0.1)[0].sum()

    def product(A: Any, b: Any) -> Any:
        dA, db = mx.grad(loss, (0, 1))(A, b)
        return (dA * A).sum() + (db * b).sum()

    return {
        "call": lambda: mx.eval(layer(A, b, 0.1)),
        "by name": lambda: mx.eval(layer(A=A, b=b, lam=0.1)),
        "gradient": lambda: mx.eval(mx.grad(loss, (0, 1))(A, b)),
        "directional": lambda: mx.eval(mx.jvp(loss, [A, b], [A, b])),
        "Hessian product": lambda: mx.eval(mx.grad(product, (0, 1))(A, b)),
    }


BODIES = {"numpy": numpy_bodies, "torch": torch_bodies, "jax": jax_bodies, "mlx": mlx_bodies}


def row(name: str, rounds: int) -> dict[str, float | None]:
    """The measurements of one framework."""
    layer = importlib.import_module(f"cvxlayers.{name}").CvxpyLayer(*ridge())
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((10, 10)), rng.standard_normal(10)]
    bodies = BODIES[name](layer, values)
    times = interleaved({phase: _timed(phase, body) for phase, body in bodies.items()}, rounds)

    solve = SolutionMap.solve
    theta = [values[0].reshape(1, -1), values[1].reshape(1, -1), np.full((1, 1), 0.1)]
    answer = solve(layer.operations.solution_map, theta, differentiable=False)
    SolutionMap.solve = lambda *_, **__: answer  # type: ignore[method-assign]
    try:
        binding = {phase: _timed(phase, bodies[phase]) for phase in ("call", "by name")}
        bound = interleaved(binding, rounds)
    finally:
        SolutionMap.solve = solve  # type: ignore[method-assign]
    found: dict[str, float | None] = {
        "binding µs": 1e6 * min(bound.rounds["call"]),
        "by name µs": 1e6 * min(bound.rounds["by name"]),
    }
    return found | {column: times.ratio(column, "call") for column in COLUMNS[2:]}


def _timed(phase: str, body: Body) -> Callable[[Stopwatch], None]:
    def competitor(watch: Stopwatch) -> None:
        with watch(phase):
            body()

    return competitor


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frontends", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--frameworks", nargs="+", choices=BODIES, default=list(BODIES))
    options = parser.parse_args(arguments)
    print("  ".join([f"{'':<8}", *COLUMNS]))
    for name in options.frameworks:
        cells = row(name, options.rounds)
        texts = ["-" if cells[c] is None else f"{cells[c]:.3g}" for c in COLUMNS]
        widths = [t.rjust(len(c)) for t, c in zip(texts, COLUMNS, strict=True)]
        print("  ".join([f"{name:<8}", *widths]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
