"""``python -m benchmarks.failure``: what a failing row costs the rest of its batch.

Ratios to the same batch with every instance feasible, all with on_failure="nan". What is compared
is the time of the processors, over all threads, because differences of one percent drown in what a
machine that others use does to the clock on the wall. Each batch takes turns with the one that it
is compared with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import cvxpy as cp
import numpy as np
import torch

from benchmarks.measure import Stopwatch, interleaved, limit_processors
from benchmarks.problems import Array, Benchmark, Rng
from cvxlayers.parallel import workers
from cvxlayers.torch import CvxpyLayer

COLUMNS = ("1 infeasible", "1 NaN", "10 % infeasible", "again")
PHASES = {
    "forward": ("forward",),
    "with gradient": ("with gradient",),
    "forward + backward": ("with gradient", "backward"),
}


# The last parameter of each is the sum of x >= 0, or a bound on it: no x has a negative one.


def qp(n: int = 10, batched: bool = False) -> Benchmark:
    """A dense quadratic program; its matrices are shared, or every one of them is batched."""
    x, q, h, total = cp.Variable(n), cp.Parameter(n), cp.Parameter(n), cp.Parameter()
    L, G = cp.Parameter((n, n)), cp.Parameter((n, n))
    objective = cp.Minimize(cp.sum_squares(L @ x) + q @ x)
    problem = cp.Problem(objective, [G @ x <= h, x >= 0, cp.sum(x) <= total])

    def draw(rng: Rng, B: int) -> list[Array]:
        lead = (B,) if batched else ()
        return [
            np.eye(n) + 0.3 * rng.standard_normal((*lead, n, n)),
            rng.standard_normal((*lead, n, n)),
            rng.standard_normal((B, n)),
            rng.uniform(0.1, 1.0, (B, n)),
            np.full(B, 5.0),
        ]

    return Benchmark(problem, [L, G, q, h, total], [x], draw)


def portfolio(n: int = 30, factors: int = 5) -> Benchmark:
    """Return against the standard deviation of a factor model: one second-order cone."""
    x, mean, total = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    loadings = cp.Parameter((factors, n))
    risk = cp.norm(cp.hstack([loadings @ x, 0.3 * x]))
    problem = cp.Problem(cp.Minimize(risk - mean @ x), [cp.sum(x) == total, x >= 0])

    def draw(rng: Rng, B: int) -> list[Array]:
        loadings = rng.standard_normal((factors, n)) / np.sqrt(n)
        return [loadings, 0.1 * rng.standard_normal((B, n)), np.ones(B)]

    return Benchmark(problem, [loadings, mean, total], [x], draw)


def lp(n: int = 20, inequalities: int = 20) -> Benchmark:
    """A linear program at a vertex."""
    x, c, total = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    A, b = cp.Parameter((inequalities, n)), cp.Parameter(inequalities)
    problem = cp.Problem(cp.Minimize(c @ x), [A @ x <= b, x >= 0, cp.sum(x) <= total])

    def draw(rng: Rng, B: int) -> list[Array]:
        A = rng.uniform(0.0, 1.0, (inequalities, n))
        b = rng.uniform(1.0, 2.0, (B, inequalities))
        return [A, b, rng.standard_normal((B, n)), np.full(B, 5.0)]

    return Benchmark(problem, [A, b, c, total], [x], draw)


PROBLEMS: dict[str, Callable[..., Benchmark]] = {
    "qp, shared matrices": qp,
    "qp, all batched": partial(qp, batched=True),
    "portfolio": portfolio,
    "lp": lp,
}


def batches(benchmark: Benchmark, B: int) -> dict[str, list[torch.Tensor]]:
    """The parameter values without a failing row, and with."""
    values = benchmark.draw(np.random.default_rng(1), B)
    every = {"none": values}
    for column, rows in (("1 infeasible", [B // 2]), ("10 % infeasible", range(0, B, 10))):
        total = values[-1].copy()
        total[list(rows)] = -1.0
        every[column] = [*values[:-1], total]
    spoilt = values[-2].copy()
    spoilt[B // 2, 0] = np.nan
    every["1 NaN"] = [*values[:-2], spoilt, values[-1]]
    # The same once more: what the clock makes of no difference.
    every["again"] = values
    return {
        name: [torch.tensor(v, requires_grad=True) for v in batch] for name, batch in every.items()
    }


def row(make: Callable[..., Benchmark], B: int, rounds: int) -> dict[str, dict[str, float | None]]:
    """Ratios by phase and column."""
    benchmark = make()
    problem, parameters, variables, _ = benchmark
    layer = CvxpyLayer(problem, parameters, variables, on_failure="nan")
    every = batches(benchmark, B)
    found: dict[str, dict[str, float | None]] = {phase: {} for phase in PHASES}
    for column in COLUMNS:
        competitors: dict[str, Callable[[Stopwatch], None]] = {}
        for name in ("none", column):
            competitors[f"forward {name}"] = _forward(layer, every[name], name)
            competitors[f"gradient {name}"] = _gradient(layer, every[name], name)
        times = interleaved(competitors, rounds)
        for phase, parts in PHASES.items():
            above, below = (
                "+".join(f"{part} {name}" for part in parts) for name in (column, "none")
            )
            found[phase][column] = times.ratio(above, below)
    return found


@contextmanager
def _processor(watch: Stopwatch, phase: str) -> Iterator[None]:
    start = time.process_time()
    yield
    watch.seconds[phase] += time.process_time() - start


def _forward(
    layer: CvxpyLayer, inputs: Sequence[torch.Tensor], name: str
) -> Callable[[Stopwatch], None]:
    def body(watch: Stopwatch) -> None:
        with _processor(watch, f"forward {name}"), torch.no_grad():
            layer(*inputs)

    return body


def _gradient(
    layer: CvxpyLayer, inputs: Sequence[torch.Tensor], name: str
) -> Callable[[Stopwatch], None]:
    def body(watch: Stopwatch) -> None:
        with _processor(watch, f"with gradient {name}"):
            outputs = layer(*inputs)
        with _processor(watch, f"backward {name}"):
            torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs])

    return body


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failure", description=__doc__)
    parser.add_argument("--batch", type=int, default=1000, help="default: 1000")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--threads", type=int, help="processors to run on (default: all)")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    options = parser.parse_args(arguments)
    if options.threads is not None:
        limit_processors(options.threads)
    torch.set_num_threads(workers())
    print("  ".join([f"{'':<20}", f"{'':<18}", *COLUMNS]))
    for name in options.problems:
        found = row(PROBLEMS[name], options.batch, options.rounds)
        for phase, cells in found.items():
            texts = ["-" if cells[c] is None else f"{cells[c]:.3f}" for c in COLUMNS]
            widths = [t.rjust(len(c)) for t, c in zip(texts, COLUMNS, strict=True)]
            print("  ".join([f"{name:<20}", f"{phase:<18}", *widths]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
