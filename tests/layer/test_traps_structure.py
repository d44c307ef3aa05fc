"""Traps 7, 11 and 16 (docs/design): missing parts, dual variables, attributes of variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from layer_checks import agree, agree_with_oracle, draw, run

from conformance.problems.case import positive_definite, symmetric
from cvxlayers import UnsupportedProblemError
from cvxlayers.torch import CvxpyLayer

# --- Trap 7: something that most problems have is missing.


def test_trap_7_no_constraints() -> None:
    A, b, x = cp.Parameter((3, 2)), cp.Parameter(3), cp.Variable(2)
    layer = CvxpyLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x))), [A, b], [x]
    )

    def formula(A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
        H = A.mT @ A + torch.eye(2, dtype=A.dtype)
        return (torch.linalg.solve(H, A.mT @ b.unsqueeze(-1)).squeeze(-1),)

    agree(layer, formula, [draw(3, 2), draw(3)])
    agree(layer, formula, [draw(4, 3, 2), draw(3)])


def test_trap_7_neither_constraints_nor_epigraphs() -> None:
    """Not one row: the objective is ½‖x‖² + qᵀx as it is."""
    q, x = cp.Parameter(2), cp.Variable(2)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x)), [q], [x])
    for batch in ((), (1,), (3,)):
        agree(layer, lambda q: (-q,), [draw(*batch, 2)])


def test_trap_7_no_equalities() -> None:
    S, q, x = cp.Parameter((3, 3), PSD=True), cp.Parameter(3), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, S) + q @ x), [x <= 1])
    agree_with_oracle(
        lambda: (problem, [S, q], [x]),
        positive_definite(np.random.default_rng(1), 3),
        np.array([1.0, -5.0, 2.0]),
    )


def test_trap_7_no_quadratic() -> None:
    """A linear program at a nondegenerate vertex, where x = b and c has no influence."""
    c, b, x = cp.Parameter(3), cp.Parameter(3), cp.Variable(3)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(c @ x), [x >= b]), [c, b], [x])
    agree(layer, lambda c, b: (b + 0 * c,), [np.array([1.0, 2.0, 0.5]), draw(2, 3)])


def test_trap_7_infinite_bounds() -> None:
    t, x = cp.Parameter(4), cp.Variable(4, bounds=[np.array([-1, -np.inf, 0, -np.inf]), np.inf])
    upper = np.array([np.inf, 0.5, np.inf, np.inf])
    constraint = x <= upper
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - t)), [constraint])
    layer = CvxpyLayer(problem, [t], [x, constraint.dual_variables[0]])

    def formula(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lower = torch.tensor([-1, -torch.inf, 0, -torch.inf], dtype=t.dtype)
        x = torch.minimum(torch.maximum(t, lower), torch.as_tensor(upper))
        return x, torch.where(torch.isinf(torch.as_tensor(upper)), 0 * t, (t - x).relu())

    agree(layer, formula, [np.array([[-3.0, 2.0, -1.0, 5.0], [3.0, -2.0, 1.0, 5.0]])])


def test_trap_7_only_infinite_bounds() -> None:
    t, x = cp.Parameter(2), cp.Variable(2)
    constraint = x <= np.inf
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [constraint])
    layer = CvxpyLayer(problem, [t], [x, constraint.dual_variables[0]])
    agree(layer, lambda t: (t, 0 * t), [draw(2)])


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_trap_7_an_impossible_constant_is_refused(bad: float) -> None:
    t, x = cp.Parameter(2), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x <= np.array([1.0, bad])])
    with pytest.raises(UnsupportedProblemError, match="NaN" if np.isnan(bad) else "infinite"):
        CvxpyLayer(problem, [t], [x])


def test_trap_7_a_variable_without_influence_and_a_constant_objective() -> None:
    a, x, y = cp.Parameter(2), cp.Variable(2), cp.Variable(3)
    problem = cp.Problem(cp.Minimize(0), [x == a, y == 1])
    layer = CvxpyLayer(problem, [a], [y, x])
    agree(layer, lambda a: (torch.ones(*a.shape[:-1], 3, dtype=a.dtype), a), [draw(2, 2)])


# --- Trap 11: dual variables are cut out of the wrong rows.


def psd_and_exponential(sense: type) -> tuple[cp.Problem, list, list]:
    S, c = cp.Parameter((3, 3), symmetric=True), cp.Parameter(4)
    X, p = cp.Variable((3, 3), symmetric=True), cp.Variable(4)
    cost = cp.sum_squares(X - S) - cp.sum(cp.entr(p)) + c @ p
    constraints = [cp.sum(p) == 1, X >> 0.1 * np.eye(3), cp.trace(X) + p[0] <= 1, p >= 0.05]
    return cp.Problem(sense(cost if sense is cp.Minimize else -cost), constraints), [S, c], [X, p]


def vector_cones() -> tuple[cp.Problem, list, list]:
    """Vectorised second-order (both axes), exponential, power and PSD constraints at once."""
    a, M = cp.Parameter(2), cp.Parameter((3, 2))
    u, v, V, W = cp.Variable(2), cp.Variable(2), cp.Variable((3, 2)), cp.Variable((2, 3))
    x, y, z = cp.Variable(2), cp.Variable(2), cp.Variable(2)
    r, s, w, k = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Variable()
    Q = cp.Variable((2, 2), symmetric=True)
    constraints = [
        cp.SOC(u, V - M, axis=0),
        cp.SOC(0.5 * v, W - 2 * M.T, axis=1),
        cp.constraints.ExpCone(x, y, z),
        cp.constraints.PowCone3D(r, s, w, [0.3, 0.6]),
        cp.SOC(k, z - 1),
        Q >> cp.diag(a),
        y == a,
        w == 1 + a,
        Q[0, 0] + Q[0, 1] <= 0.2,
    ]
    cost = (
        cp.sum_squares(V) + cp.sum_squares(W) + 0.1 * cp.sum(u + v) + cp.sum_squares(x - 1)
        + cp.sum(z) + cp.sum_squares(r) + cp.sum_squares(s) + k + cp.sum_squares(Q)
    )  # fmt: skip
    return cp.Problem(cp.Minimize(cost), constraints), [a, M], [V, W, x, z, r, s, Q]


def duals_equal_those_of_cvxpy(build: Callable, values: list[np.ndarray]) -> None:
    problem, parameters, variables = build()
    duals = [dual for constraint in problem.constraints for dual in constraint.dual_variables]
    layer = CvxpyLayer(problem, parameters, [*variables, *duals])
    outputs, _ = run(layer, [np.stack([v, v]) for v in values])
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value = value
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    for leaf, found in zip([*variables, *duals], outputs, strict=True):
        true = np.reshape(leaf.value, leaf.shape)
        assert np.linalg.norm(true) > 1e-6, "the dual is zero and shows nothing"
        np.testing.assert_allclose(found, np.stack([true, true]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sense", [cp.Minimize, cp.Maximize])
def test_trap_11_psd_and_exponential_duals(sense: type) -> None:
    S = np.array([[2.0, 1.0, 0.3], [1.0, -1.0, 0.5], [0.3, 0.5, 0.4]])
    duals_equal_those_of_cvxpy(lambda: psd_and_exponential(sense), [S, np.array([0, 1.0, 2, 5])])


def test_trap_11_duals_of_vectorised_cones() -> None:
    duals_equal_those_of_cvxpy(vector_cones, [np.array([0.5, 0.8]), draw(3, 2)])


def test_trap_11_gradients_through_duals_of_vectorised_cones() -> None:
    def build() -> tuple[cp.Problem, list, list]:
        problem, parameters, _ = vector_cones()
        wanted = (0, 1, 2, 3, 5)
        return (
            problem,
            parameters,
            [dual for i in wanted for dual in problem.constraints[i].dual_variables],
        )

    agree_with_oracle(build, np.array([0.5, 0.8]), draw(3, 2))


def test_trap_11_gradients_through_duals_of_psd_and_exponential() -> None:
    def build() -> tuple[cp.Problem, list, list]:
        problem, parameters, variables = psd_and_exponential(cp.Maximize)
        return problem, parameters, [c.dual_variables[0] for c in problem.constraints] + variables

    S = np.array([[2.0, 1.0, 0.3], [1.0, -1.0, 0.5], [0.3, 0.5, 0.4]])
    agree_with_oracle(build, S, np.array([0, 1.0, 2, 5]))


# --- Trap 16: constraints that are only attributes of a variable.


def eigenvalue_clip(lower: float, upper: float) -> Callable:
    def formula(T: torch.Tensor) -> tuple[torch.Tensor]:
        values, vectors = torch.linalg.eigh((T + T.mT) / 2)
        return ((vectors * values.clamp(lower, upper).unsqueeze(-2)) @ vectors.mT,)

    return formula


ATTRIBUTES: dict[str, tuple[dict[str, Any], Callable]] = {
    "nonneg": ({"nonneg": True}, lambda T: (T.relu(),)),
    "nonpos": ({"nonpos": True}, lambda T: (-(-T).relu(),)),
    "bounds": ({"bounds": [-0.5, 0.7]}, lambda T: (T.clamp(-0.5, 0.7),)),
    "symmetric": ({"symmetric": True}, lambda T: ((T + T.mT) / 2,)),
    "diag": ({"diag": True}, lambda T: (T * torch.eye(3, dtype=T.dtype),)),
    "PSD": ({"PSD": True}, eigenvalue_clip(0, torch.inf)),
    "NSD": ({"NSD": True}, eigenvalue_clip(-torch.inf, 0)),
    "sparsity": (
        {"sparsity": [(0, 2, 1), (0, 1, 2)]},
        lambda T: (T * torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]]),),
    ),
}


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
@pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY expression")
def test_trap_16_attribute_of_a_variable(attribute: str, batch: tuple[int, ...]) -> None:
    keywords, formula = ATTRIBUTES[attribute]
    T, X = cp.Parameter((3, 3)), cp.Variable((3, 3), **keywords)
    layer = CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - T))), [T], [X])
    agree(layer, formula, [draw(*batch, 3, 3)], 1e-7, 1e-6)


def test_trap_16_duals_beside_attributes_equal_those_of_cvxpy() -> None:
    def build() -> tuple[cp.Problem, list, list]:
        T, X = cp.Parameter((3, 3), symmetric=True), cp.Variable((3, 3), PSD=True)
        y, z = cp.Variable(3, nonneg=True), cp.Variable(3, bounds=[-0.1, 0.2])
        constraints = [cp.trace(X) == 1 + cp.sum(y), X[0, 1] + z <= -0.2, y - z >= 0.9]
        cost = cp.sum_squares(X - T) + cp.sum_squares(y - 1) + cp.sum_squares(z - 0.3)
        return cp.Problem(cp.Minimize(cost), constraints), [T], [X, y, z]

    duals_equal_those_of_cvxpy(build, [symmetric(np.random.default_rng(0), 3)])


@pytest.mark.parametrize(
    ("attribute", "word"),
    [("complex", "complex"), ("hermitian", "complex"), ("imag", "complex"),
     ("integer", "integer"), ("boolean", "boolean")],
)  # fmt: skip
def test_trap_16_attributes_without_a_derivative_are_refused(attribute: str, word: str) -> None:
    T, X = cp.Parameter((2, 2)), cp.Variable((2, 2), name="X", **{attribute: True})
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.abs(X - T))))
    with pytest.raises(UnsupportedProblemError, match=f"Variable 'X' is {word}"):
        CvxpyLayer(problem, [T], [X])


def test_trap_16_complex_parameter_is_refused() -> None:
    T, X = cp.Parameter(2, complex=True, name="T"), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.abs(X - T))))
    with pytest.raises(UnsupportedProblemError, match="Parameter 'T' is complex"):
        CvxpyLayer(problem, [T], [X])
