"""Variables that one equality defines: their replacement leaves the same problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from cvxlayers.canonicalize import canonicalize
from cvxlayers.dense import Answer, Engine, iteration, substitution
from cvxlayers.dense.cones import Product
from cvxlayers.dense.data import Data, prepare
from cvxlayers.dense.repetition import VARIABLE
from cvxlayers.dense.substitution import Substitution
from cvxlayers.program import OUTCOMES, ConeProgram
from solvers.random_programs import dense_data, kkt_residual

B = 6


def program(problem: cp.Problem, draw: Callable[[tuple[int, ...]], Any], batch: int) -> ConeProgram:
    """The program of a problem with parameters of these values."""
    parameters = sorted(problem.parameters(), key=lambda p: p.name())
    canonical = canonicalize(problem, parameters, problem.variables(), False, None)
    return canonical.program([draw((batch, p.size)) for p in parameters], batch)


def solve(program: ConeProgram, tolerance: float = 1e-8) -> Answer:
    values = [torch.tensor(v) for v in (program.P, program.q, program.A, program.b)]
    return Engine(program.structure).solve(*values, program.batch, (tolerance,) * 3)


def normal(seed: int = 0, size: float = 1.0) -> Callable[[tuple[int, ...]], Any]:
    rng = np.random.default_rng(seed)
    return lambda shape: size * rng.standard_normal(shape)


def least_squares(more: bool = True) -> cp.Problem:
    """With what P has of its own, a linear term, inequalities and an equality."""
    x = cp.Variable(6)
    L, c, h = cp.Parameter((8, 6), name="L"), cp.Parameter(8, name="c"), cp.Parameter(6, name="h")
    objective = cp.sum_squares(L @ x - c) + cp.sum(x)
    constraints = [x <= 2 + h]
    if more:
        objective += 0.5 * cp.quad_form(x, np.eye(6) + 0.1) + cp.norm(x[:3])
        constraints += [x[0] == x[1]]
    return cp.Problem(cp.Minimize(objective), constraints)


def nothing(structure: Any) -> Any:
    return np.zeros(0, dtype=np.intp)


def count(program: ConeProgram) -> int:
    return program.structure.n - Substitution(program.structure).n


@pytest.mark.parametrize("more", [True, False], ids=["more", "alone"])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e3])
def test_optimality_conditions(more: bool, size: float) -> None:
    """Of the whole program, for each instance; with data that are small, and large."""
    given = program(least_squares(more), normal(size=size), B)
    assert count(given) >= 8
    answer = solve(given, 1e-9)
    assert (answer.outcome == OUTCOMES.index("solved")).all()
    for i in range(B):
        point = [v[i].numpy() for v in (answer.x, answer.z, answer.s)]
        P, q, A, b = dense_data(given, i)
        scale = 1.0 + max(np.abs(v).max(initial=0.0) for v in (P @ point[0], q, A, b, *point))
        assert kkt_residual(given, i, *point) < 1e-8 * scale**2


@pytest.mark.parametrize("size", [1.0, 1e-3, 30.0])
@pytest.mark.parametrize("more", [True, False], ids=["more", "alone"])
def test_the_iterates_are_those_without(
    more: bool, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step: it is the same method on the same data, judged by the same sizes; shown by the
    dual residual. The gap is another on the way, as x is counted from another point."""
    courses: list[list[torch.Tensor]] = []
    judge = iteration.judge

    def watched(*arguments: Any) -> Any:
        verdict, progress = judge(*arguments)
        courses[-1].append(progress.dual)
        return verdict, progress

    monkeypatch.setattr(iteration, "judge", watched)
    monkeypatch.setitem(iteration.COMPACT, "eager", 0.0)
    answers = []
    for is_replaced in (True, False):
        if not is_replaced:
            monkeypatch.setattr(substitution, "definitions", nothing)
        given = program(least_squares(more), normal(size=size), B)
        assert (count(given) > 0) == is_replaced
        courses.append([])
        answers.append(solve(given))
    one, other = answers
    assert torch.equal(one.iterations, other.iterations)
    for name in ("x", "z", "s"):
        found, expected = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * size)
    for v, w in zip(*courses, strict=True):
        # Beyond these, rounding has its part.
        visible = w > 1e-8
        torch.testing.assert_close(v[visible], w[visible], rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_data_without_them(size: float) -> None:
    """The objective and the rows at points of the whole program that satisfy the definitions."""
    given = program(least_squares(), normal(size=size), B)
    P, q, A, b = (torch.tensor(v) for v in (given.P, given.q, given.A, given.b))
    structure, cones = given.structure, Product(given.structure.dims, P.device)
    whole, _ = prepare(structure.P.dense(P, symmetric=True), q, structure.A.dense(A), b, cones, B)
    substitution = Substitution(structure)
    left = substitution.applied(whole)
    assert left.defined is not None and (left.defined.x0.abs().amax(1) > 0.1).all()
    x = torch.tensor(normal(1)((B, substitution.n)))
    y = left.defined.y(x, torch.ones(B, dtype=torch.float64))
    all_x = torch.zeros((B, structure.n), dtype=torch.float64)
    all_x[:, substitution._others] = x + left.defined.x0
    all_x[:, substitution._cols] = y

    def objective(data: Data, x: torch.Tensor) -> torch.Tensor:
        return ((0.5 * data.c[:, None] * (data.P @ x[..., None])[..., 0] + data.q) * x).sum(1)

    torch.testing.assert_close(objective(left, x) + left.defined.constant, objective(whole, all_x))
    rest = (whole.A @ all_x[..., None])[..., 0] - whole.b
    torch.testing.assert_close(rest[:, substitution._rows], torch.zeros_like(y))
    own = (left.A @ x[..., None])[..., 0] - left.b
    torch.testing.assert_close(rest[:, substitution._other_rows], own)


def test_iterations_that_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU records nothing: the step is done anew, on the tensors that a graph would read."""
    given = program(least_squares(), normal(), B)
    expected = solve(given)
    monkeypatch.setenv(VARIABLE, "recorded")
    monkeypatch.setitem(iteration.COMPACT, "recorded", 0.75)
    for name, value in vars(solve(given)).items():
        torch.testing.assert_close(value, vars(expected)[name], rtol=0, atol=0)


def test_no_variable_is_left_without_a_program() -> None:
    """minimize ‖y − 3‖² with y = c alone: the last variable stays."""
    y, c = cp.Variable(3), cp.Parameter(3, name="c")
    given = program(cp.Problem(cp.Minimize(cp.sum_squares(y)), [y == c]), normal(), B)
    assert (given.structure.n, count(given)) == (3, 2)
    answer = solve(given)
    assert (answer.outcome == OUTCOMES.index("solved")).all()
    for i in range(B):
        P, _, A, b = dense_data(given, i)
        np.testing.assert_allclose(A @ answer.x[i].numpy(), b, atol=1e-9)
        np.testing.assert_allclose(A.T @ answer.z[i].numpy(), -P @ answer.x[i].numpy(), atol=1e-9)


def test_a_variable_with_a_cost_alone() -> None:
    """y = x + 1 with the cost 1 and no curvature: minimize (x − c)² + y has x = c − ½."""
    x, y, c = cp.Variable(2), cp.Variable(2), cp.Parameter(2, name="c")
    objective = cp.sum_squares(x) - 2 * c @ x + cp.sum(y)
    given = program(cp.Problem(cp.Minimize(objective), [y == x + 1, x >= -9]), normal(), B)
    assert count(given) == 2
    answer = solve(given, 1e-10)
    for i in range(B):
        point, q = answer.x[i].numpy(), dense_data(given, i)[1]
        of_y = q == 1.0
        np.testing.assert_allclose(point[~of_y], -0.5 * q[~of_y] - 0.5, atol=1e-6)
        np.testing.assert_allclose(point[of_y], point[~of_y] + 1.0, atol=1e-9)
        assert kkt_residual(given, i, point, answer.z[i].numpy(), answer.s[i].numpy()) < 1e-8


@pytest.mark.parametrize("kind", ["infeasible", "contradictory", "unbounded"])
def test_certificates(kind: str) -> None:
    """They prove what they have to for the whole program."""
    x, L, c = cp.Variable(4), cp.Parameter((5, 4), name="L"), cp.Parameter(5, name="c")
    more = {
        "infeasible": [x >= 1, cp.sum(x) <= 3],
        "contradictory": [cp.sum(x) == 1, cp.sum(x[:2]) == 0, cp.sum(x[2:]) == 0],
        "unbounded": [x >= 1],
    }[kind]
    values = normal(3)
    direction = np.array([1.0, 1.0, 0.0, 0.0])

    def draw(shape: tuple[int, ...]) -> Any:
        v = values(shape)
        if kind == "unbounded" and shape[1] == 20:  # L (1, 1, 0, 0) = 0
            M = v.reshape(-1, 5, 4)
            v = (M - 0.5 * (M @ direction)[..., None] * direction).reshape(shape)
        return v

    linear = -cp.sum(x[:2]) if kind == "unbounded" else 0.0
    given = program(cp.Problem(cp.Minimize(cp.sum_squares(L @ x - c) + linear), more), draw, B)
    assert count(given) == 5
    answer = solve(given)
    dual = kind == "unbounded"
    wanted = "dual infeasible" if dual else "primal infeasible"
    assert (answer.outcome == OUTCOMES.index(wanted)).all()
    for i in range(B):
        P, q, A, b = dense_data(given, i)
        zero = given.structure.dims.zero
        if dual:
            d = answer.x[i].numpy()
            d = d / -(q @ d)
            # What is left of P d and of the rows is 1e-6 of the gain, which is one.
            assert max(np.abs(P @ d).max(), np.abs((A @ d)[:zero]).max()) < 1e-6
            assert (A @ d)[zero:].max() < 1e-6
        else:
            z = answer.z[i].numpy()
            z = z / -(b @ z)
            assert np.abs(A.T @ z).max() < 1e-7 * np.abs(z).max()
            assert (z[zero:] >= 0.0).all()


def test_the_gap_is_relative_to_the_objective_of_the_whole_program() -> None:
    """Without the constant, cᵀc = 10¹², a gap of 10⁴ would be a small part of what is left."""
    x, c = cp.Variable(), cp.Parameter(2, name="c")
    y = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y)), [y == x - c, x >= 0])
    given = program(problem, lambda shape: np.full(shape, 1e6), 1)
    assert count(given) == 2
    answer = solve(given)
    assert answer.outcome[0] == OUTCOMES.index("solved")
    P, q, _, _ = dense_data(given, 0)
    point = answer.x[0].numpy()
    assert 0.5 * point @ P @ point + q @ point < 1e-6


@pytest.mark.parametrize("name", ["q", "A", "b"])
def test_data_that_are_not_finite(name: str) -> None:
    """Where they are in what is replaced, too: only their instance is lost."""
    given = program(least_squares(), normal(), B)
    expected = solve(given)
    values = getattr(given, name)
    values = np.repeat(values, B // len(values), 0)
    entries = np.arange(values.shape[1])
    for bad in entries[:: max(1, len(entries) // 12)]:
        spoilt = values.copy()
        spoilt[2, bad] = np.nan
        answer = solve(replace(given, **{name: spoilt}))
        assert answer.outcome[2] == OUTCOMES.index("numerical error")
        assert answer.x[2].isnan().all() and answer.z[2].isnan().all()
        others = [0, 1, 3, 4, 5]
        assert (answer.outcome[others] == expected.outcome[others]).all()
        torch.testing.assert_close(answer.x[others], expected.x[others], rtol=0, atol=1e-6)


def test_matrices_of_the_batch_stay_shared() -> None:
    x, c = cp.Variable(4), cp.Parameter(5, name="c")
    L = np.random.default_rng(0).standard_normal((5, 4))
    given = program(cp.Problem(cp.Minimize(cp.sum_squares(L @ x - c)), [x >= 0]), normal(), B)
    assert count(given) == 5 and len(given.A) == len(given.P) == 1
    P, q, A, b = (torch.tensor(v) for v in (given.P, given.q, given.A, given.b))
    structure, cones = given.structure, Product(given.structure.dims, P.device)
    dense = structure.P.dense(P, symmetric=True), q, structure.A.dense(A), b
    left = Substitution(structure).applied(prepare(*dense, cones, B)[0])
    assert left.defined is not None
    assert len(left.P) == len(left.A) == len(left.defined.T) == 1 and len(left.q) == B
    answer = solve(given, 1e-10)
    for i in range(B):
        point = (v[i].numpy() for v in (answer.x, answer.z, answer.s))
        assert kkt_residual(given, i, *point) < 1e-7


@pytest.mark.parametrize("size", [1e-4, 3e-5, 1e-5])
def test_what_is_hardly_bounded_is_not_unbounded(size: float) -> None:
    """minimize ‖s x‖² − 1ᵀx, x >= 0: x = 1/(2 s²). The square of s must not pass for a zero."""
    x, L, c = cp.Variable(3), cp.Parameter((3, 3), name="L"), cp.Parameter(3, name="c")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(L @ x - c) - cp.sum(x)), [x >= 0])
    given = program(
        problem,
        lambda shape: size * np.eye(3).reshape(shape) if shape[1] == 9 else np.zeros(shape),
        1,
    )
    assert count(given) == 3
    answer = solve(given)
    assert answer.outcome[0] == OUTCOMES.index("solved")
    q = dense_data(given, 0)[1]
    np.testing.assert_allclose(answer.x[0].numpy()[q != 0.0], 0.5 / size**2, rtol=1e-3)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(
    ("weight", "size", "noise"),
    [(1.0, 1e3, 0.0), (1.0, 1e4, 1.0), (1e6, 1.0, 0.0), (1e6, 1.0, 1e-3)],
)
def test_a_fit_keeps_its_accuracy(
    weight: float, size: float, noise: float, constrained: bool
) -> None:
    """w‖L x − c‖² with an objective that is tiny beside w cᵀc: solved by itself, and the answer is
    that of least squares by QR."""
    m, n, rng = 40, 20, np.random.default_rng(0)
    L, true = rng.standard_normal((B, m, n)), size * rng.uniform(0.5, 1.5, (B, n))
    c = (L @ true[:, :, None])[:, :, 0] + noise * rng.standard_normal((B, m))
    x, of_L, of_c = cp.Variable(n), cp.Parameter((m, n), name="L"), cp.Parameter(m, name="c")
    objective = cp.Minimize(weight * cp.sum_squares(of_L @ x - of_c))
    problem = cp.Problem(objective, [x >= 0] if constrained else [])
    given = program(problem, lambda shape: (L if shape[1] == m * n else c).reshape(shape), B)
    assert count(given) == m
    answer = solve(given)
    assert (answer.outcome == OUTCOMES.index("solved")).all()
    values = answer.x.numpy()
    for i in range(B):
        expected = np.linalg.lstsq(L[i], c[i])[0]
        rest = weight * np.sum((L[i] @ expected - c[i]) ** 2)
        found = values[i][np.diag(dense_data(given, i)[0]) == 0.0]
        value = weight * np.sum((L[i] @ found - c[i]) ** 2)
        assert abs(value - rest) <= 2e-8 * (1.0 + rest)
