"""What the tests of the torch layer share: run a layer, run a closed form, compare."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from conformance.oracle import gradient, relative_error, solution, weights
from conformance.problems import Case
from cvxlayers.torch import CvxpyLayer

Tensors = list[torch.Tensor]
VALUE = 1e-8
GRADIENT = 1e-6


def tensor(value: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A leaf that wants a gradient."""
    if torch.is_tensor(value):
        value = value.detach()
    return torch.tensor(np.asarray(value), dtype=dtype).requires_grad_()


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def run(
    function: Callable[..., Sequence[torch.Tensor]], values: Sequence[Any], **keywords: Any
) -> tuple[Tensors, Tensors]:
    """Outputs, and gradients of sum_i <c_i, output_i> with fixed random c_i."""
    leaves = [
        v.detach().clone().requires_grad_() if torch.is_tensor(v) else tensor(v) for v in values
    ]
    outputs = function(*leaves, **keywords)
    loss = sum(
        (torch.as_tensor(draw(*out.shape, seed=i)).to(out.dtype) * out).sum()
        for i, out in enumerate(outputs)
    )
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return (
        [out.detach() for out in outputs],
        [torch.zeros_like(v) if g is None else g for v, g in zip(leaves, gradients, strict=True)],
    )


def agree(
    layer: CvxpyLayer,
    closed_form: Callable[..., Sequence[torch.Tensor]],
    values: Sequence[Any],
    value_bound: float = VALUE,
    gradient_bound: float = GRADIENT,
) -> None:
    """The layer's outputs and gradients are those of the closed form, shapes and all."""
    outputs, gradients = run(layer, values)
    true_outputs, true_gradients = run(closed_form, values)
    for found, true in zip(outputs, true_outputs, strict=True):
        torch.testing.assert_close(found, true, rtol=value_bound, atol=value_bound)
    for found, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(found, true, rtol=gradient_bound, atol=gradient_bound)


def agree_with_oracle(
    build: Callable[[], tuple[cp.Problem, list, list]], *values: Any, gp: bool = False
) -> None:
    """The layer's outputs and gradients are those of tight solves and finite differences."""
    case = Case("", build, lambda rng: list(values), frozenset(), gp=gp)
    problem, parameters, variables = case.build()
    leaves = [tensor(v) for v in case.values()]
    outputs = CvxpyLayer(problem, parameters, variables, gp=gp)(*leaves)
    for found, true in zip(outputs, solution(case), strict=True):
        np.testing.assert_allclose(found.detach(), true, rtol=1e-7, atol=1e-7)
    loss = sum(
        (torch.as_tensor(c) * out).sum() for c, out in zip(weights(case), outputs, strict=True)
    )
    loss.backward()
    assert relative_error([v.grad.numpy() for v in leaves], gradient(case)) <= GRADIENT


def same_bits(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    """Equal in every bit, but for the sign of zero; NaN equals NaN."""
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.array_equal(a.numpy(), b.numpy(), equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def nonneg_least_squares(rows: int = 3, columns: int = 2) -> tuple[cp.Problem, list, list]:
    """Minimize ‖A x − b‖² subject to x ≥ 0: (problem, [A, b], [x])."""
    A, b = cp.Parameter((rows, columns), name="A"), cp.Parameter(rows, name="b")
    x = cp.Variable(columns, name="x")
    return cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0]), [A, b], [x]


def projection(n: int = 4, m: int = 2) -> tuple[cp.Problem, list, list]:
    """Projection of t on {A x = b}: (problem, [t, A, b], [x])."""
    t, A, b = cp.Parameter(n, name="t"), cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
    x = cp.Variable(n, name="x")
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - t)), [A @ x == b])
    return problem, [t, A, b], [x]


def projection_formula(t: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
    column = b.unsqueeze(-1) - A @ t.unsqueeze(-1)
    return ((t.unsqueeze(-1) + A.mT @ torch.linalg.solve(A @ A.mT, column)).squeeze(-1),)


def says(*parts: str) -> str:
    """A pattern of a message that has these parts, in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


def run_script(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
