"""Every problem of the table through the torch layer at its default settings, every solver, against
the finite-difference oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conformance.oracle import gradient, relative_error, solution, weights
from conformance.problems import CASES, Case
from cvxlayers.torch import CvxpyLayer

# Judged at default settings; what the layer is measured to reach is far below.
GRADIENT_BOUND = 1e-5
VALUE_BOUND = 1e-7


def run(case: Case, **settings: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    problem, parameters, variables = case.build()
    layer = CvxpyLayer(problem, parameters, variables, gp=case.gp, **settings)
    values = [torch.tensor(value, requires_grad=True) for value in case.values()]
    outputs = layer(*values)
    loss = sum(
        (torch.as_tensor(c) * output).sum()
        for c, output in zip(weights(case), outputs, strict=True)
    )
    loss.backward()
    return [value.grad.numpy() for value in values], [output.detach().numpy() for output in outputs]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_default_settings(case: Case) -> None:
    gradients, outputs = run(case)
    for found, true in zip(outputs, solution(case), strict=True):
        np.testing.assert_allclose(found, true, rtol=0, atol=VALUE_BOUND * (1 + np.abs(true).max()))
    assert relative_error(gradients, gradient(case)) <= GRADIENT_BOUND
