"""What `solve` says about every instance, in every framework; and the second try."""

from __future__ import annotations

import importlib
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

import cvxlayers
import cvxlayers.torch
from cvxlayers import Info, Status
from cvxlayers.program import ConeProgram, ConeSolution
from cvxlayers.solvers.clarabel import Clarabel
from cvxlayers.solvers.retries import CHAIN

FRAMEWORKS = ("numpy", "torch", "jax", "mlx")


def box() -> tuple[cp.Problem, list, list]:
    """Projection of t on [0, u]²: infeasible where u < 0."""
    t, u, x = cp.Parameter(2, name="t"), cp.Parameter(name="u"), cp.Variable(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [x >= 0, x <= u]), [t, u], [x]


def array(name: str, value: Any) -> Any:
    if name == "torch":
        return torch.tensor(value)
    if name == "jax":
        return importlib.import_module("jax.numpy").asarray(value)
    return importlib.import_module("mlx.core").array(value) if name == "mlx" else np.array(value)


T, U = np.array([[0.5, 2.0], [0.1, 0.2], [3.0, -3.0]]), np.array([1.0, -1.0, 2.0])


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "any"])
def test_info_of_a_batch(name: str, own: bool) -> None:
    module = importlib.import_module(f"cvxlayers.{name}") if own else cvxlayers
    layer = module.CvxpyLayer(*box(), on_failure="nan")
    (x,), info = layer.solve(array(name, T), u=array(name, U))
    np.testing.assert_allclose(np.asarray(x.tolist())[0], [0.5, 1.0], atol=1e-6)
    assert isinstance(info, Info)
    assert info.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    assert info.solved.tolist() == [True, False, True]
    assert info.summary() == {"SOLVED": 2, "PRIMAL_INFEASIBLE": 1}
    good = info.solved
    assert (info.iterations[good] > 0).all() and (info.attempt == 0).all()
    for residual in (info.primal_residual, info.dual_residual, info.gap):
        assert residual.shape == (3,) and (residual[good] < 1e-6).all()
    assert not info.degenerate.any()


def test_the_table() -> None:
    layer = cvxlayers.CvxpyLayer(*box(), on_failure="nan")
    _, info = layer.solve(T, U)
    lines = str(info).splitlines()
    assert lines[0].split()[:3] == ["instance", "status", "iterations"]
    assert lines[2].split()[:2] == ["1", "PRIMAL_INFEASIBLE"]
    assert lines[-1] == "2 SOLVED, 1 PRIMAL_INFEASIBLE"
    _, info = layer.solve(np.zeros((50, 1, 2)), np.ones((1, 2)))
    assert "… and 80 more" in str(info) and str(info).endswith("100 SOLVED")
    assert info.status.shape == (50, 2) and "  0, 1" in "\n".join(
        f"  {line}" for line in str(info).splitlines()
    )
    _, info = layer.solve(np.zeros(2), 1.0)
    assert info.status.shape == () and str(info).splitlines()[1].startswith("-")


def test_residuals_are_those_of_the_optimality_conditions() -> None:
    """The solver's own answer at a loose tolerance: more than rounding, and polished away."""
    layer = cvxlayers.torch.CvxpyLayer(*box(), solver=cp.SCS, solver_args={"eps": 1e-3})
    t, u = torch.tensor(T[0]), torch.tensor(1.0, dtype=torch.float64)
    (x,), loose = layer.solve(t, u)
    program = layer.operations.canonical.program([T[:1], np.ones((1, 1))], 1)
    assert program.q.shape == (1, layer.operations.canonical.structure.n)
    assert 1e-12 < max(loose.primal_residual, loose.dual_residual) < 1e-2
    (x,), tight = layer.solve(t.requires_grad_(), u)
    assert max(tight.primal_residual, tight.dual_residual, tight.gap) < 1e-13
    (gradient,) = torch.autograd.grad(x.sum(), t)
    np.testing.assert_allclose(gradient, [1.0, 0.0], atol=1e-12)


def test_degenerate_instances_are_flagged() -> None:
    """A linear program whose face of optima has dimension one."""
    c, x = cp.Parameter(2), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0])
    layer = cvxlayers.torch.CvxpyLayer(problem, [c], [x])
    costs = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    _, info = layer.solve(costs)
    assert info.degenerate.tolist() == [True, False]


def test_nothing_is_kept_on_the_layer() -> None:
    layer = cvxlayers.torch.CvxpyLayer(*box())
    before = set(vars(layer))
    layer.solve(torch.tensor(T[0]), 1.0)
    assert set(vars(layer)) == before


@pytest.mark.parametrize("way", ["jit", "vmap", "jit of vmap", "vmap of jit", "grad"])
def test_info_inside_transformations_of_jax(way: str) -> None:
    jax = pytest.importorskip("jax")
    layer = importlib.import_module("cvxlayers.jax").CvxpyLayer(*box(), on_failure="nan")
    t, u = jax.numpy.asarray(T), jax.numpy.asarray(U)
    _, expected = layer.solve(t, u)
    if way == "grad":
        total = lambda t: (layer.solve(t, u)[0][0][::2].sum(), layer.solve(t, u)[1])  # noqa: E731
        gradient, info = jax.grad(total, has_aux=True)(t)
        np.testing.assert_allclose(gradient, [[1, 0], [0, 0], [0, 0]], atol=1e-6)
    else:
        ways = {
            "jit": jax.jit(layer.solve),
            "vmap": jax.vmap(layer.solve),
            "jit of vmap": jax.jit(jax.vmap(layer.solve)),
            "vmap of jit": jax.vmap(jax.jit(layer.solve)),
        }
        (x,), info = ways[way](t, u)
        np.testing.assert_allclose(x[0], [0.5, 1.0], atol=1e-6)
    for name in ("status", "iterations", "attempt", "degenerate"):
        assert np.array_equal(getattr(info, name), getattr(expected, name)), name
    assert info.summary() == expected.summary()
    assert (np.asarray(info.primal_residual)[::2] < 1e-6).all()
    assert np.isnan(info.solve_time).all() and np.isnan(info.adjoint_residual).all()
    assert str(info).startswith("instance")


def test_times_and_the_residual_of_the_derivative() -> None:
    layer = cvxlayers.torch.CvxpyLayer(*box(), on_failure="nan")
    t = torch.tensor(T, requires_grad=True)
    (x,), info = layer.solve(t, torch.tensor(U))
    assert set(info.times) == {"parameters", "solver", "polish"}
    assert (info.solve_time > 0).all() and info.solve_time.sum() < 2 * info.times["solver"] + 1
    assert np.isnan(info.adjoint_residual).all()
    x[info.solved].sum().backward()
    assert info.times["derivative"] > 0
    assert (info.adjoint_residual[info.solved] < 1e-12).all()
    assert np.isnan(info.adjoint_residual[1]) and "adjoint_residual" in str(info)


def test_the_residual_shows_an_equation_without_a_solution() -> None:
    """Costs of a linear program with a face of optima: least squares of smallest norm."""
    c, x = cp.Parameter(2), cp.Variable(2)
    problem = cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0])
    layer = cvxlayers.torch.CvxpyLayer(problem, [c], [x])
    costs = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    (y,), info = layer.solve(costs)
    (y @ torch.tensor([1.0, 0.0], dtype=torch.float64)).sum().backward()
    assert info.adjoint_residual[0] > 0.1 and info.adjoint_residual[1] < 1e-12


# Constraints on x, values of b, and whether (b, b) lies on the boundary of what they allow.
KINKS: dict[str, tuple[Any, list[float], Any]] = {
    "nonneg": (lambda x: [x >= 0], [0.0, 0.5, -0.5], lambda b: b),
    "soc": (lambda x: [cp.norm(x) <= 1], [0.5**0.5, 0.5, 2.0], lambda b: 2 * b * b - 1),
    "psd": (lambda x: [cp.diag(x) >> 0], [0.0, 1.0, -1.0], lambda b: b),
    "exp": (lambda x: [cp.exp(x[0]) <= x[1] + 1], [0.0, -1.0, 1.0], lambda b: np.expm1(b) - b),
    "power": (
        lambda x: [cp.PowCone3D(x[0], cp.Constant(1.0), x[1], 0.5)],
        [1.0, 0.25, 4.0],
        lambda b: b**0.5 - b,
    ),
}


@pytest.mark.parametrize("name", KINKS)
def test_where_complementarity_is_not_strict(name: str) -> None:
    """Projection of a point that lies on the boundary already, and of points off it."""
    constraints, values, distance = KINKS[name]
    x, b = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), constraints(x))
    layer = cvxlayers.torch.CvxpyLayer(problem, [b], [x])
    b_t = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (y,), info = layer.solve(b_t)
    y.sum().backward()
    assert info.degenerate.tolist() == [abs(distance(v)) < 1e-9 for v in values]
    assert b_t.grad is not None and b_t.grad.isfinite().all()


# --- The second try.


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clarabel at its own settings fails on instance 1 of three; the batch sizes of all calls."""
    sizes: list[int] = []
    solve = Clarabel.solve

    def broken(self: Clarabel, program: ConeProgram, options: Any, *rest: Any, **more: Any) -> Any:
        sizes.append(program.batch)
        solution = solve(self, program, options, *rest, **more)
        if program.batch == 3:
            for point in (solution.x, solution.z, solution.s):
                point[1] = np.nan
            solution.status[1] = Status.NUMERICAL_ERROR
        return solution

    monkeypatch.setattr(Clarabel, "solve", broken)
    return sizes


def test_only_what_failed_is_tried_again(failing: list[int]) -> None:
    layer = cvxlayers.CvxpyLayer(*box(), solver="CLARABEL")
    (x,), info = layer.solve(T, 1.0)
    assert failing == [3, 1]
    np.testing.assert_allclose(x, np.clip(T, 0, 1), atol=1e-6)
    assert info.attempt.tolist() == [0, 1, 0] and info.solved.all()
    leaves = torch.tensor(T, requires_grad=True)
    layer(leaves, 1.0)[0].sum().backward()
    np.testing.assert_allclose(leaves.grad, (T > 0) & (T < 1), atol=1e-9)


def test_the_chain_goes_on_to_another_solver(
    failing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHAIN, "CLARABEL", (CHAIN["CLARABEL"][1],))
    (x,), info = cvxlayers.CvxpyLayer(*box(), solver="CLARABEL").solve(T, 1.0)
    assert failing == [3] and info.attempt.tolist() == [0, 1, 0]
    np.testing.assert_allclose(x, np.clip(T, 0, 1), atol=1e-6)


def test_an_answer_of_the_chain_counts_if_it_is_one(
    failing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimality conditions are checked: a wrong point is no solution."""
    from cvxlayers.solvers.scs import SCS

    def nonsense(self: SCS, program: ConeProgram, *_: Any, **__: Any) -> ConeSolution:
        solution = ConeSolution.empty(program.batch, program.structure)
        for point in (solution.x, solution.z, solution.s):
            point[...] = 1e3
        solution.status[:] = Status.SOLVED
        return solution

    monkeypatch.setattr(SCS, "solve", nonsense)
    monkeypatch.setattr("cvxlayers.solution_map.polish", _no_steps)
    monkeypatch.setitem(CHAIN, "CLARABEL", (CHAIN["CLARABEL"][1],))
    (x,), info = cvxlayers.CvxpyLayer(*box(), solver="CLARABEL", on_failure="nan").solve(T, 1.0)
    assert info.status[1] == Status.ALMOST_SOLVED and np.isnan(x[1]).all()
    assert np.isfinite(x[[0, 2]]).all()


def _no_steps(geometry: Any, program: Any, x: Any, z: Any, s: Any) -> Any:
    from cvxlayers.derivative import Polished
    from cvxlayers.derivative.polish import residual

    return Polished(x, z, s, residual(geometry, program, x, z, s)[2], None)


def test_infeasible_instances_and_chosen_limits_are_not_tried_again(failing: list[int]) -> None:
    layer = cvxlayers.CvxpyLayer(*box(), solver="CLARABEL", on_failure="nan")
    layer.solve(T[:2], U[:2])
    assert failing == [2]  # infeasible is an answer
    _, info = layer.solve(T[:2], 1.0, solver_args={"max_iters": 2})
    assert failing == [2, 2] and info.summary() == {"MAX_ITERATIONS": 2}
