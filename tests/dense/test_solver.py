"""The solver DENSE: options, statuses, limits, and what becomes of what it leaves."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp

import cvxlayers.numpy
from cvxlayers import SolverError, Status
from cvxlayers.errors import UnsupportedProblemError
from cvxlayers.program import ConeDims, ConeProgram, Pattern, ProblemStructure
from cvxlayers.solvers.dense import Dense
from cvxlayers.solvers.retries import take_over
from solvers.random_programs import CONES, interior_points, pattern, random_program
from solvers.toys import ONE_VARIABLE, program_of, scalar_batch

Array = np.ndarray


def solve(program: ConeProgram, **options: Any) -> Any:
    return Dense(program.structure).solve(program, options)


def program_from(
    P: Array, q: Array, A: Array, b: Array, dims: ConeDims, batch: int = 1
) -> ConeProgram:
    """A batch of one instance, repeated."""
    upper = pattern(np.triu(np.ones_like(P)) if P.any() else np.zeros_like(P))
    full = pattern(np.ones_like(A))
    structure = ProblemStructure(dims, upper, full)
    values = (P[upper.rows, upper.cols], q, A[full.rows, full.cols], b)
    return ConeProgram(structure, *(np.tile(v, (batch, 1)).astype(float) for v in values), batch)


# ---- answers ----


def test_every_row_has_its_own_status() -> None:
    program, expected = scalar_batch()
    found = solve(program)
    assert found.status.tolist() == expected
    for point in (found.x, found.z, found.s):
        assert np.isfinite(point[[0, 3]]).all() and np.isnan(point[[1, 2]]).all()
    np.testing.assert_allclose(found.x[[0, 3], 0], [1.0, 1.5], atol=1e-7)
    assert (found.seconds > 0.0).all()


def test_projection_onto_a_second_order_cone() -> None:
    """Of (3, 4, 0) onto {(t, x): ‖x‖ ≤ t}: half the sum with its mirror image."""
    q = np.array([0.0, -3.0, -4.0])
    program = program_from(np.eye(3), q, -np.eye(3), np.zeros(3), ConeDims(soc=(3,)))
    np.testing.assert_allclose(solve(program).x[0], [2.5, 1.5, 2.0], atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 5, 20])
def test_projection_onto_semidefinite_matrices(order: int) -> None:
    """The positive part of the spectrum, at any order."""
    rng = np.random.default_rng(order)
    C = rng.standard_normal((order, order))
    C = C + C.T
    X, T = cp.Variable((order, order), symmetric=True), cp.Parameter((order, order), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - T)), [X >> 0])
    layer = cvxlayers.numpy.CvxpyLayer(problem, [T], [X], solver="DENSE")
    values, vectors = np.linalg.eigh(C)
    expected = (vectors * np.maximum(values, 0.0)) @ vectors.T
    np.testing.assert_allclose(layer(C)[0], expected, atol=1e-7)


@pytest.mark.parametrize("batch", [1, 9])
def test_equalities_alone(batch: int) -> None:
    rng = np.random.default_rng(1)
    A, q, b = rng.standard_normal((2, 4)), rng.standard_normal(4), rng.standard_normal(2)
    found = solve(program_from(np.eye(4), q, A, b, ConeDims(zero=2), batch))
    expected = np.linalg.solve(np.block([[np.eye(4), A.T], [A, np.zeros((2, 2))]]), [*-q, *b])
    assert found.solved.all() and (found.iterations == 0).all()
    np.testing.assert_allclose(found.x[-1], expected[:4], atol=1e-10)
    np.testing.assert_allclose(found.z[-1], expected[4:], atol=1e-10)


@pytest.mark.parametrize("batch", [1, 3])
def test_no_constraints(batch: int) -> None:
    rng = np.random.default_rng(0)
    F, q = rng.standard_normal((4, 4)), rng.standard_normal(4)
    found = solve(program_from(F @ F.T, q, np.zeros((0, 4)), np.zeros(0), ConeDims(), batch))
    assert found.solved.all() and found.z.shape == (batch, 0)
    np.testing.assert_allclose(found.x, np.tile(-np.linalg.solve(F @ F.T, q), (batch, 1)), 1e-6)


@pytest.mark.parametrize(("dims", "A", "b", "x"), ONE_VARIABLE)
def test_one_variable(dims: ConeDims, A: list[list[float]], b: list[float], x: float) -> None:
    """min x, bounded from below by one constraint of every kind."""
    for P in (0.0, 1.0):
        program = program_from(
            np.array([[P]]), np.array([1.0]), np.array(A), np.array(b), dims, batch=3
        )
        found = solve(program)
        assert found.solved.all(), (P, found.status)
        np.testing.assert_allclose(found.x[:, 0], x, atol=1e-6)


@pytest.mark.parametrize("cone", ["nonneg", "soc", "psd", "exp", "pow", "mixed"])
def test_verdicts_over_every_cone(cone: str) -> None:
    """Rows s ∈ K with A = 0 and b outside K; and a direction of descent inside K."""
    dims = CONES[cone]
    program = random_program(dims, 6, batch=3)
    s, z = interior_points(dims, np.random.default_rng(7))
    outside = replace(program, A=0.0 * program.A, b=np.tile(-z - s, (3, 1)), q=0.0 * program.q)
    assert (solve(outside).status == Status.PRIMAL_INFEASIBLE).all()
    # One variable t with s = b + t d, d ∈ int K, min −t.
    t = program_from(np.zeros((1, 1)), np.array([-1.0]), -s[:, None], s, dims, batch=3)
    assert (solve(t).status == Status.DUAL_INFEASIBLE).all()


@pytest.mark.parametrize("size", [1e-6, 1e-12])
@pytest.mark.parametrize("cone", CONES)
def test_tiny_data(cone: str, size: float) -> None:
    """All of the answer is of the size of q and b; so is its error."""
    program = random_program(CONES[cone], 6, batch=4, rank=6, seed=3)
    expected = solve(program)
    found = solve(replace(program, q=program.q * size, b=program.b * size))
    assert expected.solved.all() and found.solved.all()
    for i in range(4):
        scale = 1.0 + np.abs(expected.x[i]).max()
        assert np.abs(found.x[i] / size - expected.x[i]).max() < 1e-4 * scale


@pytest.mark.parametrize("bound", [1e20, 1e30])
def test_bounds_that_are_none_are_left_to_clarabel(bound: float) -> None:
    program = program_of([[1.0], [-1.0]], ConeDims(nonneg=2), batch=3)
    program.q[:], program.b[:] = -1.0, [[2.0, 1.0], [2.0, bound], [3.0, 1.0]]
    found = solve(program)
    assert found.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    take_over("DENSE", program, found, {})
    assert found.solved.all() and found.attempt.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.x[:, 0], [2.0, 2.0, 3.0], atol=1e-6)


def test_an_empty_batch() -> None:
    program = random_program(CONES["mixed"], 6, batch=2).take(np.zeros(0, dtype=np.intp))
    found = solve(program)
    assert found.x.shape == (0, 6) and found.status.shape == (0,)


def test_data_are_not_written_to() -> None:
    program = random_program(CONES["mixed"], 6, batch=3, rank=3)
    before = [v.copy() for v in (program.P, program.q, program.A, program.b)]
    for values in (program.P, program.q, program.A, program.b):
        values.flags.writeable = False
    assert solve(program).solved.all()
    for one, other in zip(before, (program.P, program.q, program.A, program.b), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_layer_names_the_rows_that_fail() -> None:
    x, b = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(x), [x >= b, x <= 1])
    layer = cvxlayers.numpy.CvxpyLayer(problem, [b], [x], solver="DENSE")
    with pytest.raises(SolverError, match=r"not solved by DENSE.*PRIMAL_INFEASIBLE"):
        layer(np.array([0.0, 2.0]))


# ---- options ----


def test_a_looser_tolerance_takes_fewer_iterations() -> None:
    program = random_program(CONES["mixed"], 6, batch=8, rank=3)
    loose = solve(program, tol_gap_abs=1e-3, tol_gap_rel=1e-3, tol_feas=1e-3)
    tight = solve(program, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert loose.solved.all()
    assert (loose.iterations <= tight.iterations).all()
    assert loose.iterations.sum() < tight.iterations.sum()


def test_common_options() -> None:
    expected = {"tol_gap_abs": 1e-5, "tol_gap_rel": 1e-5, "tol_feas": 1e-5, "max_iter": 7}
    assert Dense.common_options(1e-5, 7) == expected
    assert set(expected) == Dense.options


def test_the_iteration_limit() -> None:
    found = solve(random_program(CONES["mixed"], 6, batch=9), max_iter=2)
    assert (found.status == Status.MAX_ITERATIONS).all()
    assert (found.iterations == 2).all() and np.isnan(found.x).all()


@pytest.mark.parametrize("name", sorted(Dense.options))
@pytest.mark.parametrize("value", ["many", None, True, 0, -1, np.nan])
def test_a_wrong_value_names_its_option(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"'{name}'") + ".*expected"):
        solve(random_program(CONES["nonneg"], 6), **{name: value})


def test_verbose_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    program, expected = scalar_batch()
    found = Dense(program.structure).solve(program, {}, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].split() == ["instance", "iterations", "status"]
    for i, line in enumerate(lines[1:]):
        assert line.split() == [str(i), str(found.iterations[i]), expected[i].name]
    solve(program)
    assert not capsys.readouterr().out


def test_a_deadline_that_has_passed() -> None:
    program = random_program(CONES["mixed"], 6, batch=20)
    found = Dense(program.structure).solve(program, {}, deadline=time.monotonic() - 1.0)
    assert (found.status == Status.TIME_LIMIT).all() and np.isnan(found.x).all()


def test_a_deadline_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended by then keeps its answer."""
    monkeypatch.setattr("cvxlayers.solvers.dense.MEMORY", 0.0)  # one instance after the other
    asked = itertools.count()
    for module in ("engine", "iteration"):
        monkeypatch.setattr(f"cvxlayers.dense.{module}.is_over", lambda _: next(asked) > 50)
    program = random_program(CONES["mixed"], 6, batch=2).take(np.arange(2).repeat(10))
    found = Dense(program.structure).solve(program, {}, deadline=time.monotonic())
    over = found.status == Status.TIME_LIMIT
    assert over.any() and found.solved.any() and (over | found.solved).all()
    assert np.isnan(found.x[over]).all() and np.isfinite(found.x[found.solved]).all()


# ---- what is not taken ----


def test_too_many_unknowns_are_refused() -> None:
    n = 4001
    eye = Pattern((n, n), np.arange(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32))
    none = Pattern((0, n), np.zeros(0, np.int32), np.zeros(n + 1, np.int32))
    reason = Dense.refusal(ProblemStructure(ConeDims(), eye, none))
    assert re.search(r"DENSE .*4,000.*dense.*4,001", str(reason))


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0])
    monkeypatch.setattr("cvxlayers.solvers.dense.find_spec", lambda name: None)
    with pytest.raises(UnsupportedProblemError, match="DENSE needs PyTorch"):
        cvxlayers.numpy.CvxpyLayer(problem, [c], [x], solver="DENSE")


def test_it_is_no_default() -> None:
    A = sp.csc_array(np.ones((1, 2)))
    layer = cvxlayers.numpy.CvxpyLayer(*_simplex(A))
    assert layer.operations.solution_map.solver.name != "DENSE"


def _simplex(A: Any) -> tuple[cp.Problem, list[cp.Parameter], list[cp.Variable]]:
    x, c = cp.Variable(2), cp.Parameter(2)
    return cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [A @ x == 1]), [c], [x]
