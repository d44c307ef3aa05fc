"""What the tests of the PyTorch frontend share: small layers over every cone, and numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from cvxlayers.torch import CvxpyLayer

HERE = Path(__file__).resolve().parent
Values = tuple[torch.Tensor, ...]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape))


def leaves(values: Sequence[torch.Tensor]) -> Values:
    return tuple(v.detach().clone().requires_grad_() for v in values)


def close(found: Any, true: Any, bound: float = 1e-10) -> None:
    torch.testing.assert_close(found, true, rtol=bound, atol=bound)


def softmax(n: int = 3, **settings: Any) -> CvxpyLayer:
    """The probabilities of maximal c·p + entropy: softmax(c)."""
    c, p = cp.Parameter(n, name="c"), cp.Variable(n)
    problem = cp.Problem(cp.Maximize(c @ p + cp.sum(cp.entr(p))), [cp.sum(p) == 1])
    return CvxpyLayer(problem, [c], [p], **settings)


def least_squares(rows: int = 3, columns: int = 2, **settings: Any) -> CvxpyLayer:
    """Minimize ‖A x − b‖² subject to x ≥ 0, given (A, b)."""
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    x = cp.Variable(columns)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0])
    return CvxpyLayer(problem, [A, b], [x], **settings)


def interval(**settings: Any) -> CvxpyLayer:
    """The number in [lower, 1] that is closest to t; infeasible where lower > 1."""
    t, lower = cp.Parameter(name="t"), cp.Parameter(name="lower")
    x = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(x - t)), [x >= lower, x <= 1])
    return CvxpyLayer(problem, [t, lower], [x], **settings)


def zero_cone() -> tuple[CvxpyLayer, Values]:
    t, A, b, x = cp.Parameter(3), cp.Parameter((1, 3)), cp.Parameter(1), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [A @ x == b])
    return CvxpyLayer(problem, [t, A, b], [x]), (numbers(3), numbers(1, 3), numbers(1))


def nonneg_cone() -> tuple[CvxpyLayer, Values]:
    """With one bound active, and one not."""
    A = torch.eye(3, 2, dtype=torch.float64) + 0.1 * numbers(3, 2)
    return least_squares(), (A, torch.tensor([1.0, -1.0, 0.3], dtype=torch.float64))


def second_order_cone() -> tuple[CvxpyLayer, Values]:
    c, t, r, x = cp.Parameter(3), cp.Parameter(3), cp.Parameter(), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.norm(x - t) <= r])
    return CvxpyLayer(problem, [c, t, r], [x]), (numbers(3), numbers(3, seed=1), numbers().abs())


def psd_cone() -> tuple[CvxpyLayer, Values]:
    """The projection of an indefinite matrix."""
    P, X = cp.Parameter((2, 2)), cp.Variable((2, 2), PSD=True)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - P))), [P], [X])
    return layer, (torch.tensor([[1.0, 0.4], [0.2, -0.7]], dtype=torch.float64),)


def exponential_cone() -> tuple[CvxpyLayer, Values]:
    return softmax(), (numbers(3),)


def power_cone() -> tuple[CvxpyLayer, Values]:
    c, a, x = cp.Parameter(2), cp.Parameter(), cp.Variable(3)
    problem = cp.Problem(
        cp.Maximize(x[2] - c @ x[:2]), [cp.PowCone3D(x[0], x[1], x[2], 0.3), x[2] <= a]
    )
    c_t = torch.tensor([0.5, 0.4], dtype=torch.float64)
    return CvxpyLayer(problem, [c, a], [x]), (c_t, torch.tensor(1.3, dtype=torch.float64))


def all_cones() -> tuple[CvxpyLayer, Values]:
    a, x, X = cp.Parameter(3), cp.Variable(3), cp.Variable((2, 2), PSD=True)
    objective = (
        cp.sum_squares(x - a)
        + cp.norm(x + 1)
        + cp.sum(cp.exp(0.3 * x))
        + cp.sum_squares(X - cp.diag(x[:2]))
    )
    constraints = [cp.sum(x) == 0.4, x[2] >= -0.2, cp.PowCone3D(x[0] + 3, x[1] + 3, x[2] + 2, 0.6)]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return CvxpyLayer(problem, [a], [x]), (torch.tensor([1.0, -0.8, -1.1], dtype=torch.float64),)


def geometric() -> tuple[CvxpyLayer, Values]:
    a, c = cp.Parameter(pos=True), cp.Parameter(2, pos=True)
    x, y = cp.Variable(pos=True), cp.Variable(2, pos=True)
    problem = cp.Problem(cp.Minimize(a * x + 1 / (x * y[0] * y[1])), [c @ y <= 1])
    layer = CvxpyLayer(problem, [a, c], [x, y], gp=True)
    return layer, (torch.tensor(1.5).double(), torch.tensor([0.8, 2.0]).double())


def dual_outputs() -> tuple[CvxpyLayer, Values]:
    t, b, x = cp.Parameter(3), cp.Parameter(), cp.Variable(3)
    total, bound = cp.sum(x) == b, cp.norm(x) <= 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [total, bound])
    variables = [x, total.dual_variables[0], bound.dual_variables[0]]
    return CvxpyLayer(problem, [t, b], variables), (2 * numbers(3), numbers() / 2)


def maximize() -> tuple[CvxpyLayer, Values]:
    c, s, x = cp.Parameter(2), cp.Parameter(pos=True), cp.Variable(2)
    bound = x[0] <= 0.3
    problem = cp.Problem(cp.Maximize(c @ x - s * cp.sum_squares(x)), [bound])
    layer = CvxpyLayer(problem, [c, s], [x, bound.dual_variables[0]])
    return layer, (torch.tensor([1.0, -0.5]).double(), torch.tensor(0.7).double())


def batched() -> tuple[CvxpyLayer, Values]:
    """A shared by two instances that each have their own b."""
    layer, (A, b) = nonneg_cone()
    return layer, (A, torch.stack([b, -b.flip(0)]))


def batched_outer() -> tuple[CvxpyLayer, Values]:
    """Batch axes that broadcast against each other: (2, 1) and (2,)."""
    c, s, x = cp.Parameter(2), cp.Parameter(pos=True), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(s * cp.sum_squares(x) - c @ x + cp.sum(cp.exp(x))))
    layer = CvxpyLayer(problem, [c, s], [x])
    return layer, (numbers(2, 1, 2), torch.tensor([0.7, 1.2], dtype=torch.float64))


EVERY_CONE: list[Callable[[], tuple[CvxpyLayer, Values]]] = [
    zero_cone,
    nonneg_cone,
    second_order_cone,
    psd_cone,
    exponential_cone,
    power_cone,
    all_cones,
    geometric,
    dual_outputs,
    maximize,
    batched,
    batched_outer,
]


def python(
    code: str,
    folder: Path,
    *arguments: str,
    launcher: Sequence[str] = (),
    timeout: float = 300,
) -> str:
    """What a program prints, that runs in a new interpreter and can import this module.

    It is a file, because a spawned process imports the one that it comes from.
    """
    path = folder / "script.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(HERE)!r})\n{code}")
    return execute([*launcher, str(path), *arguments], timeout)


def execute(arguments: Sequence[str], timeout: float = 300) -> str:
    """What ``python *arguments`` prints; an error if it fails."""
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout
