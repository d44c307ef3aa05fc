"""The conformance suite: problems × solvers × derivatives, through the torch layer at its default
settings, against the finite-difference oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conformance.oracle import gradient, relative_error, solution, weights
from conformance.problems import CASES, Case
from cvxlayers import UnsupportedProblemError
from cvxlayers.canonicalize import canonicalize
from cvxlayers.solvers.diffcp import Diffcp
from cvxlayers.torch import CvxpyLayer
from solvers.random_programs import dense_data, outside

GRADIENT_BOUND = 1e-5
VALUE_BOUND = 1e-7
KKT_BOUND = 1e-10
# diffcp's derivative of its own, at the accuracy of its own forward solve.
DIFFCP_BOUND = 1e-3

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def run(case: Case, **settings: object) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Gradients of the weighted outputs, and the outputs."""
    problem, parameters, variables = case.build()
    layer = CvxpyLayer(problem, parameters, variables, gp=case.gp, **settings)
    values = [torch.tensor(value, requires_grad=True) for value in case.values()]
    outputs = layer(*values)
    loss = sum(
        (torch.as_tensor(c) * output).sum()
        for c, output in zip(weights(case), outputs, strict=True)
    )
    loss.backward()
    return [value.grad.numpy() for value in values], [o.detach().numpy() for o in outputs]


def check_values(case: Case, outputs: list[np.ndarray], bound: float) -> None:
    for found, true in zip(outputs, solution(case), strict=True):
        np.testing.assert_allclose(found, true, rtol=0, atol=bound * (1 + np.abs(true).max()))


@every_case
def test_default_settings(case: Case) -> None:
    gradients, outputs = run(case)
    check_values(case, outputs, VALUE_BOUND)
    assert relative_error(gradients, gradient(case)) <= GRADIENT_BOUND


@every_case
def test_kkt_residual_after_polish(case: Case) -> None:
    """The conditions of the canonical program: dense matrices, cones by their definitions."""
    problem, parameters, variables = case.build()
    layer = CvxpyLayer(problem, parameters, variables, gp=case.gp)
    solution_map = layer.operations.solution_map
    theta = [value.reshape(1, -1) for value in case.values()]
    point = solution_map.solve(theta)
    program = solution_map.canonical.program(theta, 1)
    P, q, A, b = dense_data(program, 0)
    dims = program.structure.dims
    x, z, s = point.x[0], point.z[0], point.s[0]
    scale = 1 + max(np.abs(v).max(initial=0) for v in (x, z, s, q, b))
    assert np.abs(P @ x + q + A.T @ z).max(initial=0) <= KKT_BOUND * scale
    assert np.abs(A @ x + s - b).max(initial=0) <= KKT_BOUND * scale
    assert abs(s @ z) <= KKT_BOUND * scale**2
    assert outside(s, dims, dual=False) <= KKT_BOUND * scale
    assert outside(z, dims, dual=True) <= KKT_BOUND * scale


@every_case
def test_scs_with_the_derivative_of_the_library(case: Case) -> None:
    gradients, outputs = run(case, solver="SCS")
    check_values(case, outputs, VALUE_BOUND)
    assert relative_error(gradients, gradient(case)) <= GRADIENT_BOUND


@every_case
def test_moreau_with_the_derivative_of_the_library(case: Case) -> None:
    pytest.importorskip("moreau", reason="moreau is not installed: pip install moreau")
    gradients, outputs = run(case, solver="MOREAU")
    check_values(case, outputs, VALUE_BOUND)
    assert relative_error(gradients, gradient(case)) <= GRADIENT_BOUND


def diffcp_takes(case: Case) -> bool:
    problem, parameters, variables = case.build()
    kinds = canonicalize(problem, parameters, variables, case.gp).structure.dims.kinds
    return kinds <= Diffcp.cones


@every_case
def test_diffcp_forward_with_the_derivative_of_the_library(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any forward solver combines with our derivative."""
    if not diffcp_takes(case):
        with pytest.raises(UnsupportedProblemError, match="pow"):
            run(case, solver="DIFFCP")
        return
    monkeypatch.setattr(Diffcp, "has_derivative", False)
    gradients, outputs = run(case, solver="DIFFCP")
    check_values(case, outputs, VALUE_BOUND)
    assert relative_error(gradients, gradient(case)) <= GRADIENT_BOUND


@pytest.mark.parametrize(
    "case", [case for case in CASES if diffcp_takes(case)], ids=lambda case: case.name
)
def test_diffcp_with_its_own_derivative(case: Case) -> None:
    gradients, _ = run(case, solver="DIFFCP", solver_args={"mode": "dense"})
    assert relative_error(gradients, gradient(case)) <= DIFFCP_BOUND
